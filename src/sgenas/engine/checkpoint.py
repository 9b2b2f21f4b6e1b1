"""Checkpoints: everything a run needs to go on exactly where it was, in one file that is replaced at once.

The file is what torch.save writes, a zip archive, with a checksum of all its bytes as the archive's comment:
torch.load reads it as any other file, without looking at checksums, and `load` finds a flipped bit before it
becomes a weight.
"""

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sgenas import limits
from sgenas.archives import read_tensors
from sgenas.errors import CheckpointError, RunFolderError, SgenasWarning, one_line
from sgenas.files import replacing
from sgenas.reading import opened

FORMAT = "sgenas-checkpoint"
VERSION = 1


class CheckpointWarning(SgenasWarning):
    """The newest checkpoint cannot be read, and an older one is taken in its place."""


def save(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts), whole or not at all.

    What stood at `path` gets the name `previous`, if that is given. Whoever is killed on the way leaves the
    old file, under one of the two names. Raises CheckpointError when the disk refuses.
    """
    content = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, content)
    try:
        with replacing(path, keep=previous) as file:
            for part in _sealed(content.getbuffer()):
                file.write(part)
    except RunFolderError as error:
        raise CheckpointError(f"checkpoint {path} cannot be written: {one_line(error)}") from None


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote, tensors on the CPU, without ever running code from the file.

    Raises CheckpointError when it is missing, truncated, not as it was written, not a checkpoint or of
    another version.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with opened(path, limits.TENSORS) as file:
            _check_seal(file)
            state = read_tensors(file)
    except Exception as error:
        # a damaged file ends in any of a dozen types, from the zip reader to the restricted unpickler
        raise CheckpointError(
            f"checkpoint {path} is damaged ({path.stat().st_size} bytes): {one_line(error)}"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), str) or state["format"] != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of sgenas")
    version = state.get("version")
    if type(version) is not int or version != VERSION:
        raise CheckpointError(f"checkpoint {path}: version must be {VERSION}, got {version!r:.40}")
    return state


def load_newest(path: Path, previous: Path) -> tuple[dict[str, Any], Path]:
    """`load(path)`, or where that fails `load(previous)` with a CheckpointWarning; and which of them it was.

    Raises CheckpointError, that of `path`, when neither can be read.
    """
    try:
        return load(path), path
    except CheckpointError as error:
        try:
            state = load(previous)
        except CheckpointError:
            advice = "" if path.is_file() else ": start the run again, with --overwrite"
            raise CheckpointError(f"{error}{advice}") from None
        step = f" of step {state['step']}" if type(state.get("step")) is int else ""
        warnings.warn(
            f"{error}; {previous.name}{step} takes its place: what came after it is lost,"
            " until the run is resumed and computes it again",
            CheckpointWarning,
            stacklevel=2,
        )
        return state, previous


SEAL = b"sgenas blake2b "
DIGEST_BYTES = 32
PART = 2**20
"""Bytes of a file that are looked at together."""


def _sealed(content: memoryview) -> tuple[bytes | memoryview, ...]:
    """The archive `content`, which has no comment, with one that holds its checksum, in parts."""
    # the last two bytes of an archive without a comment are the comment's length, 0
    head = content[:-2]
    return head, *_end(hashlib.blake2b(head, digest_size=DIGEST_BYTES).hexdigest())


def _end(digest: str) -> tuple[bytes, bytes]:
    comment = SEAL + digest.encode()
    return len(comment).to_bytes(2, "little"), comment


def _check_seal(file: BinaryIO) -> None:
    """Raises ValueError unless `file` has what `_sealed` made. Holds no more than a part of it at a time."""
    length = 2 + len(SEAL) + 2 * DIGEST_BYTES
    left = file.seek(0, io.SEEK_END) - length
    file.seek(max(0, left))
    end = file.read(length)
    # no archive ends with less before its comment
    if left < 20 or not end[2:].startswith(SEAL):
        raise ValueError("it does not end with its checksum")
    file.seek(0)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    while part := file.read(min(left, PART)):
        digest.update(part)
        left -= len(part)
    if b"".join(_end(digest.hexdigest())) != end:
        raise ValueError("its checksum is another")
