"""Files are written whole or not at all, and only where they belong."""

import json
import os
from pathlib import Path

import pytest

from sgenas.errors import RunDirError
from sgenas.files import locked, open_for_appending, read_json, replacing, write_text


def test_new_file_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with replacing(path, keep=tmp_path / "kept") as file:
        file.write(b"newer")
    assert (tmp_path / "kept").read_text() == "new"
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "kept"]


def test_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="none/file cannot be written: No such file"):
        write_text(tmp_path / "none" / "file", "")
    with pytest.raises(RunDirError, match="No space left"), replacing(tmp_path / "f"):
        raise OSError(28, "No space left on device")


def test_links_are_never_followed(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.write_text("kept")
    for name in ("link", "link.tmp"):
        (tmp_path / name).symlink_to(mine)
    write_text(link, "other")
    assert not link.is_symlink()
    assert mine.read_text() == "kept"
    link.unlink()
    link.symlink_to(mine)
    with pytest.raises(OSError, match="link"):
        open_for_appending(link)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=path.name):
            open_for_appending(path)
    assert mine.read_text() == "kept"


def test_lock_is_exclusive_and_leaves_no_owner(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    with locked(path, "grid"):
        assert str(os.getpid()) in path.with_suffix(".owner").read_text()
        with pytest.raises(RunDirError, match=f"grid is in use by process {os.getpid()}"), locked(path, "grid"):
            pass
    assert not path.with_suffix(".owner").exists()
    with locked(path, "grid"):
        pass


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ("\ud800", "JSON"),
        ("[]", "format"),
        ('{"format": "other"}', "format"),
        ('{"format": "mine"}', "version"),
        ('{"format": "mine", "version": 9}', "version"),
    ],
    ids=range(8),
)
def test_other_json_files_are_refused_in_one_line(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunDirError, match=f"file.json.*{fault}") as caught:
        read_json(path, "mine", 2)
    assert "\n" not in str(caught.value)


def test_json_file_of_the_right_kind_is_read(tmp_path: Path) -> None:
    content = {"format": "mine", "version": 2, "content": [1]}
    write_text(tmp_path / "file.json", json.dumps(content))
    assert read_json(tmp_path / "file.json", "mine", 2) == content
    with pytest.raises(RunDirError, match=r"none\.json"):
        read_json(tmp_path / "none.json", "mine", 2)
