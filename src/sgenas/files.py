"""Files of a run: written whole or not at all, never through a link, by one process at a time."""

import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from sgenas.errors import RunDirError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an OSError inside ``with`` into a RunDirError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{path} cannot be written: {error.strerror or error}") from None


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write in place of ``path``, which takes that name once it is complete and on the disk.

    Args:
        path: File to replace. A link of that name is replaced; its target stays as it is.
        keep: Name that the old file gets, if there is one.

    Raises:
        RunDirError: If the file cannot be written; the old one stays as it is.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(path):
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def open_for_appending(path: Path) -> BinaryIO:
    """``path`` itself, created if missing.

    Raises:
        OSError: If it is a link or no regular file: an untrusted run directory could point it anywhere.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        # the first two are POSIX's, the third is Windows'
        flags |= getattr(os, name, 0)
    if path.is_symlink():
        raise OSError(f"{path} must be a regular file, got a link")
    number = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(f"{path} must be a regular file")
    return os.fdopen(number, "ab")


@contextmanager
def locked(path: Path, what: str, *, timeout: float = 0.0) -> Iterator[None]:
    """Holds the lock file ``path``; the system releases it when the process ends, however that happens.

    Args:
        path: Lock file; its owner's name stands in ``path`` with the suffix ``.owner``.
        what: What is locked, for the message.
        timeout: Seconds to wait for another process.

    Raises:
        RunDirError: If another process holds it; the message names the owner.
    """
    owner = path.with_suffix(".owner")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            raise OSError(f"it is a link to {os.readlink(path)}")
        lock = FileLock(path)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            name = "another process"
            with contextlib.suppress(OSError):
                name = owner.read_text(encoding="utf-8").strip()[:200] or name
            raise RunDirError(f"{what} is in use by {name}; stop that process or use another directory") from None
    try:
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def read_json(path: Path, format: str, version: int) -> dict[str, Any]:
    """The object in a JSON file whose entries ``format`` and ``version`` must be these.

    Raises:
        RunDirError: If the file is missing, not JSON, or another kind or version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise RunDirError(f"{path} must be JSON, got other text") from None
    for name, wanted in (("format", format), ("version", version)):
        got = found.get(name) if isinstance(found, dict) else type(found).__name__
        if got != wanted:
            raise RunDirError(f"{path}: {name} must be {wanted!r}, got {got!r}")
    content: dict[str, Any] = found
    return content
