"""The Python of README and docs runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    str(page.relative_to(ROOT)): re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for page in PAGES
}


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each with the names of those before it on the page."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in BLOCKS[page]:
        exec(compile(block, page, "exec"), names)
    if page == "README.md":
        decay = names["log_decay"]
        assert decay[:2].max() < decay[2:].min(), "the two inputs that matter are decayed least"
    if page == "docs/how-to/your-module.md":
        assert names["space"].columns == {"activation": ("relu", "silu", "none")}
        assert isinstance(names["network"], torch.nn.Sequential)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 700
