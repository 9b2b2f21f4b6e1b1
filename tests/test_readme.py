"""What the README and the docs show must run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
BLOCKS = {
    str(page.relative_to(ROOT)): re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for page in PAGES
}


@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each with what those before it on the page have made."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        exec(compile(block, page, "exec"), names)
    if page == "README.md":
        decay = names["alphas"]["log_decay"]
        assert decay[:2].max() < decay[2:].min(), "the two inputs that matter are decayed least"
    if page == "docs/own-module.md":
        assert names["space"].options == {"activation": ("relu", "silu", "none")}
        assert isinstance(names["network"], torch.nn.Sequential)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_in_the_readmeparse() -> None:
    from sgenas.command_line.parsing import parse

    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^\.venv/bin/sgenas (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert parse(command.split()) is not None
