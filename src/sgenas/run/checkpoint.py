"""Checkpoints: nested plain data and tensors in one safetensors file, replaced atomically, with a checksum.

The tensors are the file's tensors; everything else is JSON in its metadata, next to the BLAKE2 checksum of
both. Reading a checkpoint can never run code.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from sgenas.errors import CheckpointError, RunDirError, SgenasWarning, one_line
from sgenas.files import replacing

VERSION = "2"


class CheckpointWarning(SgenasWarning):
    """The newest checkpoint cannot be read, and the one before it is used."""


def save_checkpoint(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Writes ``state``, whole or not at all.

    Args:
        path: File to write.
        state: Tensors, numbers, strings, None, and lists, tuples and dicts of them.
        previous: Name that the old file gets.

    Raises:
        CheckpointError: If ``state`` holds anything else, or the disk refuses; the old file is still there.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_encode(state, tensors, "state"))
    metadata = {"format": "sgenas-checkpoint", "version": VERSION, "state": plain}
    metadata["checksum"] = _checksum(plain, tensors)
    content = save(tensors, metadata)
    try:
        with replacing(path, keep=previous) as file:
            file.write(content)
    except RunDirError as error:
        raise CheckpointError(f"checkpoint {one_line(error)}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what ``save_checkpoint`` wrote, tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, truncated, altered, or not a checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("version") != VERSION:
            raise ValueError(f"its version must be {VERSION}, got {metadata.get('version')!r:.40}")
        plain = metadata["state"]
        if metadata["checksum"] != _checksum(plain, tensors):
            raise ValueError("its checksum is wrong")
        state = _decode(json.loads(plain), tensors)
    except Exception as error:
        # a damaged file fails in one of many types, from the reader or from the decoder
        size = path.stat().st_size
        raise CheckpointError(f"checkpoint {path} is damaged ({size} bytes): {one_line(error)}") from None
    return state


def load_newest(path: Path, previous: Path) -> tuple[dict[str, Any], Path]:
    """``load_checkpoint(path)``, or if that fails ``previous`` with a CheckpointWarning; and which one it was.

    Raises:
        CheckpointError: That of ``path``, if neither can be read.
    """
    try:
        return load_checkpoint(path), path
    except CheckpointError as error:
        try:
            state = load_checkpoint(previous)
        except CheckpointError:
            advice = "" if path.is_file() else ": start the run again, with --overwrite"
            raise CheckpointError(f"{error}{advice}") from None
        warnings.warn(
            f"{error}; using {previous.name} of step {state.get('step')}, the steps after it are repeated",
            CheckpointWarning,
            stacklevel=2,
        )
        return state, previous


def _checksum(plain: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.blake2b(plain.encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _encode(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """JSON for ``value``; its tensors are moved into ``tensors``. Objects stand for what JSON does not have."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        if tensor.is_complex():
            # safetensors has no complex128
            return {"complex": _encode(torch.view_as_real(tensor.resolve_conj()), tensors, path)}
        # strides (channels-last weights) decide which kernels run, so a resumed run needs the same ones; those
        # of a copy, since expanded tensors share memory between their entries
        strides = None if tensor.is_contiguous() else list(torch.empty_like(tensor).stride())
        # a copy: safetensors refuses tensors that share memory
        tensors[path] = tensor.clone(memory_format=torch.contiguous_format)
        return {"tensor": path, "strides": strides}
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        # subclasses (numpy's float64) become what they are
        return float(value) if isinstance(value, float) else int(value)
    if isinstance(value, list):
        return [_encode(item, tensors, f"{path}.{index}") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors, f"{path}.{index}") for index, item in enumerate(value)]}
    if isinstance(value, Mapping):
        items = []
        for number, (key, item) in enumerate(value.items()):
            if not isinstance(key, str | int):
                raise CheckpointError(f"checkpoint keys must be str or int, got {type(key).__name__} in {path}")
            items.append([key, _encode(item, tensors, f"{path}.{number}")])
        return {"dict": items}
    raise CheckpointError(f"a checkpoint must hold tensors and plain data, got a {type(value).__name__} at {path}")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        if value["strides"] is None:
            return tensor
        return torch.empty_strided(tensor.shape, value["strides"], dtype=tensor.dtype).copy_(tensor)
    if "complex" in value:
        return torch.view_as_complex(_decode(value["complex"], tensors))
    if "tuple" in value:
        return tuple(_decode(item, tensors) for item in value["tuple"])
    return {key: _decode(item, tensors) for key, item in value["dict"]}
