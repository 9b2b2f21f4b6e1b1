"""Checkpoints: everything a run needs to go on exactly where it was, in one file that is replaced at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sgenas.errors import CheckpointError, RunFolderError
from sgenas.files import replacing

FORMAT = "sgenas-checkpoint"
VERSION = 1


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts), whole or not at all.

    Whoever is killed on the way leaves the old file as it was. Raises CheckpointError when the disk refuses.
    """
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
    # torch's writer turns a full disk into a RuntimeError
    except (RunFolderError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be written: {_first_line(error)}") from None


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote, tensors on the CPU, without ever running code from the file.

    Raises CheckpointError when it is missing, truncated, not a checkpoint or of another version.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist: start the run again, with --overwrite")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
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


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
