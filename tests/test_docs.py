"""The documentation is consistent: what `mkdocs build --strict` finds, in a second, without mkdocs."""

import math
import re
import shlex
import unicodedata
from pathlib import Path

import pytest

import sgenas
from sgenas.cli.commands import COMMANDS
from sgenas.cli.commands.run import search_config
from sgenas.errors import InvalidValueError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
# written by `sgenas table1`, linked from the page that explains it
GENERATED = {path for path in PAGES if path.name == "table.md"}
WITH_README = [README, *PAGES]
NAV = re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCES = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without code blocks and code spans, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", FENCES.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Names of the page's headings, as Python-Markdown's table of contents makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCES.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        plain = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).encode("ascii", "ignore").decode()
        name = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        while name in found:
            name += "_1"
        found.add(name)
    return found


def commands(page: Path) -> list[list[str]]:
    """The `sgenas` commands of a page's unmarked blocks, split into words."""
    found = []
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        lines = [] if language else block.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        found += [line[1:] for line in words if line and line[0] in ("sgenas", ".venv/bin/sgenas")]
    return found


def parse(line: list[str]) -> None:
    """Parses a command line; of a new search also makes the configuration, which checks the flags together."""
    arguments, _ = COMMANDS[line[0]].parse([word for word in line[1:] if not word.startswith("--help")])
    if line[0] in ("search", "plan") and arguments.config is None:
        search_config(arguments)


def test_nav_has_every_page_once() -> None:
    assert len(NAV) == len(set(NAV)), "a page is twice in mkdocs.yml"
    assert {DOCS / page for page in NAV} == set(PAGES) - GENERATED, "mkdocs.yml and docs/ differ"


@pytest.mark.parametrize("page", WITH_README, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(DOCS), f"{target}: mkdocs has only the files in docs/"
        assert path.is_file(), f"{target}: no such page"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"


@pytest.mark.parametrize("page", [*WITH_README, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_files_named_in_code_exist(page: Path) -> None:
    text = FENCES.sub("", page.read_text(encoding="utf-8"))
    for path in re.findall(r"`(?:python )?((?:src|tests|docs|benchmarks|examples)/[\w./-]+\.(?:py|md))[ `]", text):
        assert "NAME" in path or (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", WITH_README, ids=name_of)
def test_no_formula_is_an_html_tag(page: Path) -> None:
    """`<u, v>` outside of code would be a tag to the browser, and invisible."""
    assert re.findall(r"<[A-Za-z_][^>]*>", prose(page)) == []


def test_headings_become_anchors() -> None:
    assert "what-a-projection-measures" in anchors(DOCS / "benchmarks" / "evidence.md")
    assert "nas-bench-201" in anchors(DOCS / "benchmarks" / "results.md")
    assert "what-is-divided" not in anchors(DOCS / "benchmarks" / "results.md")


def test_home_page_is_the_readme() -> None:
    hook: dict[str, object] = {"__file__": str(DOCS / "hooks.py"), "__name__": "hooks"}
    exec(compile((DOCS / "hooks.py").read_text(encoding="utf-8"), "hooks.py", "exec"), hook)
    page = type("Page", (), {"file": type("File", (), {"src_uri": "index.md"})})
    text = hook["on_page_markdown"]((DOCS / "index.md").read_text(encoding="utf-8"), page)  # type: ignore[operator]
    assert text.strip().replace("](", "](docs/") == README.read_text(encoding="utf-8").strip()


def test_reference_names_modules_that_exist() -> None:
    pages = (DOCS / "reference").glob("*.md")
    modules = re.findall(r"^::: (\S+)$", "\n".join(page.read_text(encoding="utf-8") for page in pages), re.MULTILINE)
    assert len(modules) > 20
    for module in modules:
        path = ROOT / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


@pytest.mark.parametrize("page", [page for page in WITH_README if commands(page)], ids=name_of)
def test_commands_parse(page: Path) -> None:
    for line in commands(page):
        parse(line)


def test_commands_are_found_and_checked() -> None:
    assert len(commands(DOCS / "getting-started" / "tutorial.md")) >= 8
    assert ["evaluate", "runs/first-trained"] in commands(DOCS / "how-to" / "train-and-export.md")
    for wrong in (["--no-such-flag", "1"], ["--estimator", "first-order", "--directions", "4"]):
        with pytest.raises(InvalidValueError):
            parse(["search", *wrong])


def test_cost_table_is_what_the_estimators_count() -> None:
    text = (DOCS / "concepts" / "cost-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) ((?:\| \d+\.\d\d ){5})\| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(rows) >= 8
    for directions, steps, ratios, first, difference in rows:
        count = int(steps)
        indirect = sgenas.SGE(num_directions=int(directions)).cost(count).forward - count
        baseline = sgenas.FirstOrder().cost(count).forward
        expected = [f"{(count + indirect / every) / baseline:.2f}" for every in (1, 2, 5, 10, 20)]
        assert ratios.replace("|", "").split() == expected
        for estimator, least in ((sgenas.FirstOrder(), first), (sgenas.FiniteDifference(), difference)):
            assert math.ceil(indirect / (estimator.cost(count).forward - count)) == int(least)


def test_one_version_everywhere() -> None:
    version = sgenas.__version__
    assert re.search(rf'^version = "{version}"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
