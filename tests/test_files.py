from pathlib import Path

import pytest

from sgenas.errors import RunFolderError
from sgenas.files import replacing


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFolderError, match="none/file cannot be written: No such file or directory"),
        replacing(tmp_path / "none" / "file"),
    ):
        pass
    with pytest.raises(RunFolderError, match="cannot be written: No space left"), replacing(tmp_path / "f"):
        raise OSError(28, "No space left on device")
