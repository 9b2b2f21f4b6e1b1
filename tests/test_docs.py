"""The documentation hangs together: what `mkdocs build --strict` would find, in a second, without mkdocs."""

import re
import unicodedata
from pathlib import Path

import pytest

import sgenas
from sgenas.command_line.parsing import parse

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# what a table of results is written into, linked from the page that explains it
GENERATED = {path for path in PAGES if path.parent.parent == DOCS / "results"}
NAV = re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its code blocks and code spans, whose brackets are no links."""
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    )


def anchors(page: Path) -> set[str]:
    """Names of the page's headings, as Python-Markdown's table of contents makes them."""
    headings = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", headings, re.MULTILINE):
        plain = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).encode("ascii", "ignore").decode()
        name = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        while name in found:
            name += "_1"
        found.add(name)
    return found


def commands(page: Path) -> list[str]:
    """The `sgenas` commands of a page's plain blocks, without comments, lines joined; not the patterns."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            command = re.match(r"(?:\.venv/bin/)?sgenas (.*)", line.split(" #")[0].strip())
            if command and not re.search(r"\.\.\.|\[|\bCOMMAND\b", command[1]):
                found.append(command[1].replace('"', ""))
    return found


def test_every_page_is_in_the_navigation() -> None:
    assert len(NAV) == len(set(NAV)), "a page stands twice in mkdocs.yml"
    assert {DOCS / page for page in NAV} == set(PAGES) - GENERATED, "mkdocs.yml and docs/ differ"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_stay_in_the_documentation_and_name_headings(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(DOCS), f"{target}: mkdocs knows only what is in docs/"
        assert path.is_file(), f"{target}: no such page"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_no_formula_is_read_as_html(page: Path) -> None:
    """`<u, v>` outside of code would be a tag to the browser, and not be seen."""
    assert re.findall(r"<[A-Za-z_][^>]*>", prose(page)) == []


def test_the_check_sees_headings() -> None:
    assert "kinks-when-does-sge-measure-anything" in anchors(DOCS / "choosing.md")
    assert "unequal-classes" in anchors(DOCS / "own-data.md")
    assert "what-is-divided" not in anchors(DOCS / "choosing.md")


def test_modules_of_the_reference_exist() -> None:
    text = (DOCS / "reference.md").read_text()
    modules = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(modules) > 20
    for module in modules:
        path = ROOT / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda page: str(page.relative_to(DOCS))
)
def test_commands_parse(page: Path) -> None:
    for command in commands(page):
        assert parse(command.split()) is not None, command


def test_the_check_sees_commands() -> None:
    assert len(commands(DOCS / "tutorial.md")) >= 12
    assert "evaluate runs/first-trained" in commands(DOCS / "training.md")


def test_one_version_everywhere() -> None:
    version = sgenas.__version__
    assert re.search(rf'^version = "{version}"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
