"""Fingerprints of what a run cannot write down, so that its directory recognizes it: data, networks, functions."""

import ast
import contextlib
import dis
import functools
import hashlib
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from sgenas.random import seeded

PREFIX = "blake2:"
"""Of every digest, by which `first_difference` tells it from a setting."""
WHOLE_BYTES, BLOCKS, SAMPLES = 2**20, 4096, 64
"""Larger tensors are hashed as the sums of 4096 blocks and 64 samples of 1 KB, at the speed of memory."""
ATTRIBUTES = ("data", "targets", "labels")
"""Where datasets of torchvision and others hold all their rows."""
DRAWN = ("indices", "weights", "num_samples", "replacement")
"""What PyTorch's samplers draw."""
MAX_DEPTH = 6


def digest(value: Any) -> str:
    """A short digest of plain data, tensors, arrays and functions; of other objects their class."""
    total = hashlib.blake2b(digest_size=8)
    _add(total, value, MAX_DEPTH, set())
    return PREFIX + total.hexdigest()


def describe_data(source: Any) -> dict[str, Any]:
    """Type, size and content of a source of batches, as far as it shows them without a pass over it."""
    found: dict[str, Any] = {"type": _name(type(source))}
    if hasattr(source, "batches_per_pass"):
        return found | {"batches": source.batches_per_pass}
    if isinstance(source, DataLoader):
        sampler = source.sampler if source.batch_size is not None else source.batch_sampler
        found |= {"batch_size": source.batch_size, "drop_last": source.drop_last, "sampler": _name(type(sampler))}
        found["drawn"] = digest([getattr(sampler, name, None) for name in DRAWN])
        return found | {"dataset": describe_data(source.dataset)}
    if isinstance(source, list | tuple):
        return found | {"batches": len(source), "content": digest(source)}
    if isinstance(source, Subset):
        return found | {"indices": digest(list(source.indices)), "dataset": describe_data(source.dataset)}
    with contextlib.suppress(TypeError, NotImplementedError):
        found["rows"] = len(source)
    if isinstance(source, TensorDataset):
        found["content"] = digest(source.tensors)
    elif not isinstance(source, IterableDataset) and hasattr(source, "__getitem__") and found.get("rows"):
        found["content"] = _content(source, found["rows"])
    return found


def describe_model(model: nn.Module, *, weights: bool = True) -> dict[str, Any]:
    """Classes, settings and (if ``weights``) values of a module."""
    layers = [
        (path, _name(type(part)), without_addresses(part.extra_repr()), _call(part))
        for path, part in model.named_modules()
    ]
    found = {"type": _name(type(model)), "parameters": sum(each.numel() for each in model.parameters())}
    found["layers"] = digest(layers)
    if weights:
        named = dict(model.named_parameters())
        trained = {name: tensor for name, tensor in named.items() if tensor.requires_grad}
        fixed = {name: tensor for name, tensor in named.items() if name not in trained}
        found["fixed_tensors"] = digest(fixed | dict(model.named_buffers()))
        found["start_weights"] = digest(trained)
    return found


def describe_function(function: Any) -> dict[str, Any]:
    """Name of a function, and a digest of its code and the constants that it uses."""
    named = function.func if isinstance(function, functools.partial) else function
    return {"name": _name(named if hasattr(named, "__qualname__") else type(named)), "code": digest(function)}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def without_addresses(text: str) -> str:
    """A description without memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


# -- datasets -----------------------------------------------------------------------------------------------


def _content(dataset: Any, rows: int) -> str | None:
    """A digest of the first, middle and last row, and of all rows if the dataset holds them in one attribute.

    None if a row is another one each time, although PyTorch's, NumPy's and Python's generators start alike.
    """

    def some() -> str:
        with seeded(0):
            return digest([dataset[index] for index in (0, rows // 2, rows - 1)])

    try:
        first, second = some(), some()
    except Exception:
        # a row that cannot be read is an error of the run itself, with its own message
        return None
    held = [vars(dataset).get(name) for name in ATTRIBUTES] if hasattr(dataset, "__dict__") else []
    return digest([first if first == second else None, *held])


# -- values -------------------------------------------------------------------------------------------------


def _add(total: "hashlib.blake2b", value: Any, depth: int, seen: set[int]) -> None:
    """Adds ``value`` to a hash; memory addresses have no part in it."""
    if isinstance(value, list | tuple) and len(value) > SAMPLES and all(type(each) is int for each in value):
        value = np.asarray(value)
    parts: Any = ()
    if isinstance(value, Tensor):
        total.update(f"{value.dtype} {tuple(value.shape)}".encode())
        _add_tensor(total, value.detach())
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        total.update(f"{value.dtype} {value.shape}".encode())
        _add_tensor(total, torch.from_numpy(np.require(value, requirements=["C", "W"]).reshape(-1).view(np.uint8)))
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        total.update(f"{value!r};".encode())
    elif depth == 0 or (isinstance(value, types.FunctionType) and id(value) in seen):
        total.update(_name(type(value)).encode())
    elif isinstance(value, Mapping):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, types.MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, types.FunctionType):
        seen.add(id(value))
        parts = _parts_of_function(value)
    elif isinstance(value, type | types.BuiltinFunctionType):
        total.update(str(value.__qualname__).encode())
    else:
        total.update(_name(type(value)).encode())
        parts = _parts_of_object(value)
    if parts:
        total.update(f"{len(parts)} of".encode())
    for part in parts:
        _add(total, part, depth - 1, seen)


def _add_tensor(total: "hashlib.blake2b", tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return
    tensor = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    # a copy begins at an address that is divisible by 8
    tensor = (tensor.clone() if tensor.storage_offset() else tensor).view(torch.uint8)
    count = tensor.numel() // (8 * BLOCKS) * 8 * BLOCKS
    if tensor.numel() > WHOLE_BYTES:
        sums = tensor[:count].view(torch.int64).view(BLOCKS, -1).sum(1)
        samples = tensor[:count].view(SAMPLES, -1)[:, :1024].reshape(-1)
        tensor = torch.cat([sums.view(torch.uint8), samples, tensor[count:]])
    total.update(tensor.cpu().numpy().data)


def _parts_of_object(value: Any) -> list[Any]:
    """State of modules, pixels of images, constants and code of other objects."""
    if isinstance(value, nn.Module):
        return [dict(value.state_dict()), without_addresses(value.extra_repr()), _constants(vars(value)), _call(value)]
    if hasattr(value, "__array_interface__"):
        return [np.asarray(value)]
    held = vars(value) if hasattr(value, "__dict__") and not isinstance(value, Dataset) else {}
    return [_constants(held), _call(value)]


def _call(value: Any) -> Any:
    """The function that a call of an object runs."""
    return inspect.getattr_static(type(value), "forward" if isinstance(value, nn.Module) else "__call__", None)


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    """Of a function in a script its code and the constants and functions that it uses; of a library's its name."""
    top = (function.__module__ or "").partition(".")[0]
    if top in sys.stdlib_module_names - {"__main__"} or top == "sgenas" or "-packages" in function.__code__.co_filename:
        return [function.__module__, function.__qualname__]
    code = function.__code__
    used = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    constants = {name: cell.cell_contents for name, cell in used.items()}
    constants |= {name: function.__globals__[name] for name in _names(code) if name in function.__globals__}
    # what the function assigns itself is a counter, and no constant
    kept = {name: value for name, value in constants.items() if name not in _assigned(code)}
    return [_source(function), function.__defaults__, _constants(kept)]


def _constants(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that nobody can be expected to change; lists and dicts may be counters and caches."""
    return {name: value for name, value in sorted(values.items()) if _is_constant(value)}


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    functions = (types.FunctionType, functools.partial)
    return value is None or isinstance(value, (bool, int, float, str, Tensor, np.ndarray, nn.Module, *functions))


def _source(function: types.FunctionType) -> Any:
    """Its source without comments and layout; of lambdas, whose source is a line with other things, the bytecode."""
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        if function.__name__ != "<lambda>":
            return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    return _bytecode(function.__code__)


def _bytecode(code: types.CodeType) -> list[Any]:
    constants = [_bytecode(each) if isinstance(each, types.CodeType) else each for each in code.co_consts]
    return [code.co_code, code.co_names, constants]


def _assigned(code: types.CodeType) -> set[str]:
    """Names of outer variables and globals that the code assigns."""
    outer = set(code.co_freevars)
    stores = [each for each in dis.get_instructions(code) if each.opname in ("STORE_DEREF", "STORE_GLOBAL")]
    inner = [_assigned(each) & outer for each in code.co_consts if isinstance(each, types.CodeType)]
    return {each.argval for each in stores}.union(*inner)


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    return {*code.co_names}.union(*inner)
