"""Writing files so that no reader, and no kill, ever leaves half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sgenas.errors import RunFolderError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: it takes that name once it is whole and on the disk.

    Until then it is called `path` with .tmp added, and an old `path` stays as it is. Raises RunFolderError
    when the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns what the system says against writing `path` into a RunFolderError that names it."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror or error}") from None
