import json
from pathlib import Path

import pytest

from sgenas.errors import RunFolderError
from sgenas.files import Document, replacing


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


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("\ud800", "must be JSON"),
        ("[]", "format must be 'mine', got 'list'"),
        ('{"format": "other"}', "format must be 'mine', got 'other'"),
        ('{"format": "mine"}', "version must be 2, got None"),
        ('{"format": "mine", "version": 9}', "version must be 2, got 9"),
    ],
)
def test_a_document_that_is_none(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunFolderError, match=f"file.json.*{fault}") as caught:
        Document("mine", 2).read(path)
    assert "\n" not in str(caught.value)


def test_a_document_is_read(tmp_path: Path) -> None:
    path, kind = tmp_path / "file.json", Document("mine", 2)
    path.write_text(json.dumps({**kind.head, "content": [1]}))
    assert kind.read(path) == {"format": "mine", "version": 2, "content": [1]}
    with pytest.raises(RunFolderError, match="none.json cannot be read: No such file"):
        kind.read(tmp_path / "none.json")
