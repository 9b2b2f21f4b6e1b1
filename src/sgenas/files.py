"""Writing files so that no reader, and no kill, ever leaves half of one, nor through a link that someone else
has put there; reading the library's own JSON."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from sgenas import limits, reading
from sgenas.errors import RunFolderError, SgenasError, one_line


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: it takes that name once it is whole and on the disk.

    Until then it is called `path` with .tmp added, and an old `path` stays as it is. keep: the name that the
    old one gets then, if there is one. Links of these names are replaced, what they lead to stays as it is.
    Raises RunFolderError when the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(path):
        try:
            temporary.unlink(missing_ok=True)
            with own_file(temporary, os.O_WRONLY | os.O_EXCL, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def own_file(path: Path, flags: int, mode: str) -> Any:
    """The file `path` itself, made where there is none; flags: of `os.open`, mode: of `open`.

    Raises OSError where a link or a pipe stands there: whoever hands on a folder could have put it into the
    place of a file that this library goes on writing, and it would lead anywhere.
    """
    safely = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags | safely, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"it must be a file, got a link to {os.readlink(path)!r}") from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it must be a file, got a pipe, socket or device")
    return os.fdopen(number, mode, encoding=None if "b" in mode else "utf-8")


def require_inside(folder: Path, path: Path, what: str) -> None:
    """Raises RunFolderError, about `what`, where links lead `path` out of `folder`; `folder` may be one."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RunFolderError(f"{what} must lie in {folder}, got a link to {path.resolve()}")


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the content of `path`, which parsed but may hold anything, into a
    RunFolderError that names it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, SgenasError):
            raise
        said = f"{type(error).__name__}: {one_line(error)}"
        raise RunFolderError(f"{path} must be as this version of sgenas writes it, got {said}") from error


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
        file = own_file(path, os.O_RDWR | os.O_APPEND, "a+")
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


@dataclass(frozen=True)
class Document:
    """A kind of JSON file of this library, told by the entries `format` and `version`.

    most: bytes that one may have.
    """

    format: str
    version: int
    most: int = limits.SETTINGS

    @property
    def head(self) -> dict[str, Any]:
        """The entries that say what it is."""
        return {"format": self.format, "version": self.version}

    def read(self, path: Path) -> dict[str, Any]:
        """The content of `path`.

        Raises RunFolderError for a file that is missing, too large, not JSON, or another.
        """
        try:
            found = json.loads(reading.text(path, self.most))
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
