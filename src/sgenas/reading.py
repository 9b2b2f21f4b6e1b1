"""Opening files from strangers: never more of one is read than its kind may have."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """The file `path` to read, of at most `most` bytes.

    Raises OSError, whose `strerror` is one line, for one that cannot be opened, is larger, or is no file with
    an end: a pipe would keep its reader waiting, and some devices never stop.
    """
    # a pipe is opened without waiting for whoever writes into it
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
            raise OSError(errno.EINVAL, f"it must be a file, got {kind}")
        if found.st_size > most:
            raise too_large(most, found.st_size)
        yield file


def too_large(most: int, size: int) -> OSError:
    """What to raise for a file of `size` bytes where `most` are allowed."""
    return OSError(errno.EFBIG, f"it must have at most {most:,} bytes, got {size:,}")


def content(path: Path, most: int) -> bytes:
    """All bytes of `path`; raises as `opened`."""
    with opened(path, most) as file:
        found = file.read(most + 1)
    # one that grows meanwhile
    if len(found) > most:
        raise too_large(most, len(found))
    return found


def text(path: Path, most: int) -> str:
    """All of `path` as text; raises as `opened`, and UnicodeDecodeError for what is not UTF-8."""
    return content(path, most).decode("utf-8")
