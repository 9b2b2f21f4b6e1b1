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
from typing import Any

import torch

from sgenas.errors import CheckpointError, RunFolderError, SgenasWarning
from sgenas.files import replacing

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
        raise CheckpointError(f"checkpoint {path} cannot be written: {_first_line(error)}") from None


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote, tensors on the CPU, without ever running code from the file.

    Raises CheckpointError when it is missing, truncated, not as it was written, not a checkpoint or of
    another version.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        content = path.read_bytes()
        _check_seal(memoryview(content))
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # a damaged file ends in any of a dozen types, from the zip reader to the restricted unpickler
        raise CheckpointError(
            f"checkpoint {path} is damaged ({path.stat().st_size} bytes): {_first_line(error)}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of sgenas")
    if state.get("version") != VERSION:
        raise CheckpointError(f"checkpoint {path}: version must be {VERSION}, got {state.get('version')!r}")
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
        step = f" of step {state['step']}" if "step" in state else ""
        warnings.warn(
            f"{error}; {previous.name}{step} takes its place: what came after it is lost,"
            " until the run is resumed and computes it again",
            CheckpointWarning,
            stacklevel=2,
        )
        return state, previous


SEAL = b"sgenas blake2b "
DIGEST_BYTES = 32


def _sealed(content: memoryview) -> tuple[bytes | memoryview, ...]:
    """The archive `content`, which has no comment, with one that holds its checksum, in parts."""
    # the last two bytes of an archive without a comment are the comment's length, 0
    head = content[:-2]
    comment = SEAL + hashlib.blake2b(head, digest_size=DIGEST_BYTES).hexdigest().encode()
    return head, len(comment).to_bytes(2, "little"), comment


def _check_seal(whole: memoryview) -> None:
    """Raises ValueError unless `whole` is what `_sealed` made."""
    length = 2 + len(SEAL) + 2 * DIGEST_BYTES
    # as long as any archive's end
    if len(whole) < length + 22 or bytes(whole[2 - length :][: len(SEAL)]) != SEAL:
        raise ValueError("it does not end with its checksum")
    if b"".join(_sealed(whole[: 2 - length])[1:]) != whole[-length:]:
        raise ValueError("its checksum is another")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
