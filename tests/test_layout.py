"""The arrows of the design: a file imports from lower ranks and its own folder only."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "sgenas"
RANKS = {
    "errors": 0,
    "trees": 0,
    "limits": 0,
    "terminal": 0,
    "reading": 0,
    "pickles": 0,
    "archives": 0,
    "files": 0,
    "memory": 0,
    "bilevel": 1,
    "spaces": 1,
    "data": 1,
    "nets": 2,
    "methods": 2,
    "engine": 3,
    "report": 3,
    "experiments": 4,
    "display": 4,
    "inspection": 4,
    "commands": 5,
    "command_line": 6,
    "cli": 7,
    "__main__": 8,
}
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
        own_folder = other == part or RANKS[other] == RANKS[part] == 0
        assert own_folder or RANKS[other] < RANKS[part], f"{path} must not import sgenas.{other}"


def test_the_check_sees_imports(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text("def f():\n    from sgenas import trees\n    import sgenas.engine.search as s\n")
    assert imported_parts(file) == {"trees", "engine"}


def test_every_file_is_found() -> None:
    assert {part_of(path) for path in FILES} <= set(RANKS)
    assert len(FILES) > 20


def test_the_package_offers_its_names_and_parts() -> None:
    import sgenas

    for name in (*sgenas.__all__, "data", "engine", "report"):
        assert getattr(sgenas, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'banana'"):
        sgenas.banana  # noqa: B018
