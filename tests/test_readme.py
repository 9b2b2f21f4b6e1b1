"""What the README and the docs show must run."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{index}")
    for page in PAGES
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS)
def test_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README", "exec"), names)
    if "alphas" in names:
        decay = names["alphas"]["log_decay"]  # type: ignore[index]
        assert isinstance(decay, torch.Tensor)
        assert decay[:2].max() < decay[2:].min(), "the two inputs that matter are decayed least"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_in_the_readmeparse() -> None:
    from sgenas.commands import parse

    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^\.venv/bin/sgenas (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert parse(command.split()) is not None
