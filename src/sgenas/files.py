"""Writing files so that no reader, and no kill, ever leaves half of one; reading the library's own JSON."""

import contextlib
import fcntl
import io
import json
import math
import os
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sgenas.errors import RunFolderError


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: it takes that name once it is whole and on the disk.

    Until then it is called `path` with .tmp added, and an old `path` stays as it is. keep: the name that the
    old one gets then, if there is one. Raises RunFolderError when the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
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


@contextmanager
def locked(path: Path, what: str, *, patience: float = 0.0) -> Iterator[None]:
    """Keeps the file `path`, so that no other process keeps it too; its content says who does.

    The system lets go of it when the process ends, however that happens. patience: seconds to wait for
    another; on a file server a dead machine's hold takes a while to end. A file system that knows no locks
    gives none, in silence. Raises RunFolderError, about `what`, when another process still has it or the
    file cannot be written.
    """
    until = time.monotonic() + patience
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        while not _lock(file):
            if time.monotonic() >= until:
                file.seek(0)
                owner = file.read(200).strip() or "another process"
                raise RunFolderError(f"{what} must be used by one process, got a second: {owner} runs there")
            time.sleep(0.1)
        with naming(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def _lock(file: IO[str]) -> bool:
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


MOST_BYTES = 2**30
"""Of all arrays of a file together."""


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, none of them pickled.

    Sizes are looked at before anything is allocated: a header may claim any shape, and a few packed bytes
    may grow without end. Raises RunFolderError when the file cannot be read, is damaged or holds more than
    MOST_BYTES.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            size = sum(record.file_size for record in records)
            if size > MOST_BYTES:
                raise ValueError(f"its arrays must have at most {MOST_BYTES} bytes, got {size}")
            return {
                record.filename.removesuffix(".npy"): _array(archive.read(record.filename))
                for record in records
            }
    except Exception as error:
        # from the zip reader, the decompressors and numpy, in a dozen types
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise RunFolderError(f"{path} cannot be read: {said}") from None


def _array(content: bytes) -> NDArray[Any]:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy format {version} is not known")
    shape, _, dtype = readers[version](stream)
    declared, there = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if declared != there:
        raise ValueError(f"an array must have the {declared} bytes of its shape {shape}, got {there}")
    stream.seek(0)
    found: NDArray[Any] = np.load(stream, allow_pickle=False)
    return found


@dataclass(frozen=True)
class Document:
    """A kind of JSON file of this library, told by the entries `format` and `version`."""

    format: str
    version: int

    @property
    def head(self) -> dict[str, Any]:
        """The entries that say what it is."""
        return {"format": self.format, "version": self.version}

    def read(self, path: Path) -> dict[str, Any]:
        """The content of `path`. Raises RunFolderError for a file that is missing, not JSON, or another."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            raise RunFolderError(f"{path} must be JSON, got text that is not") from None
        for name, wanted in self.head.items():
            got = found.get(name) if isinstance(found, dict) else type(found).__name__
            if got != wanted:
                raise RunFolderError(f"{path}: {name} must be {wanted!r}, got {got!r}")
        content: dict[str, Any] = found
        return content


RUN = Document("sgenas-run", 1)
"""config.json of a run folder: the engine writes it, the report reads it without the engine."""
