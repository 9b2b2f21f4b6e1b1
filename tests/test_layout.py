"""The arrows of the design: a file imports from lower ranks and its own folder only."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "sgenas"
RANKS = {
    **dict.fromkeys(("errors", "tree", "registry", "random", "fields", "files", "device", "threads"), 0),
    **dict.fromkeys(("functional", "losses", "digests", "fingerprint"), 0),
    **dict.fromkeys(("optim", "bilevel", "spaces"), 1),
    **dict.fromkeys(("methods", "data", "run"), 2),
    **dict.fromkeys(("searching", "training", "report", "extensions"), 3),
    "experiments": 4,
    "cli": 5,
    "__main__": 6,
}
SAME_RANK = {("bilevel", "optim")}
"""Imports between two folders of one rank: estimators ask the inner optimizer."""
# The package itself offers the names that users need first; its own version is what any file may ask for.
PACKAGE = "sgenas"


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of sgenas that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: relative import"
            names = [node.module or ""]
            if node.module == PACKAGE:
                names = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            pieces = name.split(".")
            if pieces[0] == PACKAGE and len(pieces) > 1:
                found.add(pieces[1])
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in RANKS, f"{part} has no rank: add it to the design and to this test"
    for other in imported_parts(path):
        # the files of rank 0 stand in one folder, that of the package itself
        own_folder = other == part or RANKS[other] == RANKS[part] == 0 or (part, other) in SAME_RANK
        assert own_folder or RANKS[other] < RANKS[part], f"{path} must not import sgenas.{other}"


def test_the_check_sees_imports(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("def f():\n    from sgenas import tree\n    import sgenas.searching.loop as s\n")
    assert imported_parts(file) == {"tree", "searching"}


def test_every_file_is_found() -> None:
    assert {part_of(path) for path in FILES} <= set(RANKS)
    assert len(FILES) > 20


def test_the_package_offers_its_names_and_parts() -> None:
    import sgenas

    for name in sgenas.__all__:
        assert getattr(sgenas, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'banana'"):
        sgenas.banana  # noqa: B018
