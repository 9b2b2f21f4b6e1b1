"""Digests of values, and of functions with everything that they use."""

import argparse
import ast
import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib
import inspect
import itertools
import re
import sys
import sysconfig
import textwrap
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

PREFIX = "blake2:"
"""Of every digest, by which `first_difference` tells it from a setting."""
WHOLE_BYTES, BLOCKS, SAMPLES = 2**20, 4096, 64
"""Larger tensors are hashed as the sums of 4096 blocks and 64 samples of 1 KB, at the speed of memory."""
SHOWN = (bool, int, float, complex, str, bytes, type(None), np.generic, PurePath, range, torch.dtype, torch.device)
"""Types whose ``repr`` says everything."""
CONTAINERS = (Mapping, list, set, deque)
NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
MAX_DEPTH = 40
STDLIB = sysconfig.get_path("stdlib")
STORING = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove"),
    *("reverse", "setdefault", "sort", "update"),
}
"""Methods that change a container."""
BEGINNING = ("__init__", "__new__", "__post_init__", "__setstate__")
"""Methods that assign attributes without changing them later."""


def digest(value: Any, *, strict: bool = False) -> str:
    """A short digest of plain data, tensors, arrays, objects and functions, with all that functions use.

    Unless it is ``strict``, it leaves out what may differ when a run goes on: variables and attributes that the
    functions assign, attributes that they do not name, and all containers if one of them stores in containers.
    """
    found = _Digest(strict=strict)
    found.add(value)
    if not strict and found.names:
        found = _Digest(found)
        found.add(value)
    return PREFIX + found.total.hexdigest()


def name_of(value: Any) -> str:
    """Module and qualified name of a class or function."""
    return f"{value.__module__}.{value.__qualname__}"


def without_addresses(text: str) -> str:
    """A description without memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


@dataclasses.dataclass
class Layer:
    """Stands for a module without its tensors and parts."""

    module: nn.Module


class _Digest:
    """A hash to which values are added; memory addresses and the order of sets have no part in it.

    Args:
        known: What was found out about the functions, to leave out what may change.
        strict: Whether to look at more than a resumed run must have: objects of libraries, rows of datasets,
            modules that a function imports when it runs.

    Attributes:
        names: All that the functions name.
        variables: Global and outer variables that they assign.
        attributes: Attributes that they assign outside of `BEGINNING`.
        stores: Whether one of them may store in a container.
    """

    def __init__(self, known: "_Digest | None" = None, *, strict: bool = False) -> None:
        self.total = hashlib.blake2b(digest_size=8)
        self._known, self._strict, self._depth = known, strict, 0
        self.names, self.variables, self.attributes = set[str](), set[str](), set[str]()
        self.stores = False
        # by id, with the value, whose id is free once it is gone
        self._seen: dict[int, tuple[int, Any]] = {}

    def add(self, value: Any) -> None:
        if isinstance(value, list | tuple) and len(value) > SAMPLES and all(type(each) is int for each in value):
            value = np.asarray(value)
        if isinstance(value, Tensor):
            self._write(f"{value.dtype} {tuple(value.shape)}")
            self._add_tensor(value.detach())
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            self._write(f"{value.dtype} {value.shape}")
            flat = np.require(value, requirements=["C", "W"]).reshape(-1)
            self._add_tensor(torch.from_numpy(flat.view(np.uint8)))
        elif isinstance(value, SHOWN):
            self._write(f"{value!r};")
        elif id(value) in self._seen or self._depth == MAX_DEPTH:
            self._write(f"again {self._seen.get(id(value), [None])[0]}")
        else:
            if not isinstance(value, tuple):
                self._seen[id(value)] = len(self._seen), value
            parts = self._parts(value)
            self._write(f"{len(parts)} of")
            self._depth += 1
            for part in parts:
                self.add(part)
            self._depth -= 1
            if isinstance(value, CONTAINERS):
                # equal ones may be one object or two; only those around it matter
                self._seen.pop(id(value))

    def _write(self, text: str) -> None:
        self.total.update(text.encode())

    def _add_tensor(self, tensor: Tensor) -> None:
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
        self.total.update(tensor.cpu().numpy().data)

    def _parts(self, value: Any) -> Sequence[Any]:
        if isinstance(value, Mapping):
            return [part for item in value.items() for part in item]
        if isinstance(value, list | tuple | deque):
            return list(value)
        if isinstance(value, set | frozenset):
            return sorted(map(self._member, value))
        if isinstance(value, np.ndarray):
            return [str(value.dtype), value.tolist()]
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, types.MethodType):
            return [value.__func__, value.__self__]
        if isinstance(value, types.FunctionType):
            return self._parts_of_function(value)
        if isinstance(value, type | types.BuiltinFunctionType):
            return [value.__qualname__, _members(value) if isinstance(value, type) else None]
        if isinstance(value, Layer):
            return self._parts_of_layer(value.module)
        return self._parts_of_object(value)

    def _member(self, value: Any) -> str:
        """Digest of a member of a set, whatever members come before it."""
        found = _Digest(self._known, strict=self._strict)
        found._seen, found._depth = dict(self._seen), self._depth
        found.add(value)
        for name in ("names", "variables", "attributes", "stores"):
            setattr(self, name, getattr(self, name) | getattr(found, name))
        return found.total.hexdigest()

    def _parts_of_object(self, value: Any) -> list[Any]:
        """State of modules, pixels of images, attributes and code of other objects."""
        kind = type(value)
        if isinstance(value, nn.Module):
            return [dict(value.state_dict()), [Layer(part) for part in value.modules()]]
        if hasattr(value, "__array_interface__"):
            return [name_of(kind), np.asarray(value)]
        held = dict(vars(value)) if hasattr(value, "__dict__") else {}
        slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
        names = itertools.chain(*([each] if isinstance(each, str) else each for each in slots))
        held |= {name: getattr(value, name) for name in names if hasattr(value, name)}
        if isinstance(value, Dataset) and not self._strict:
            held = {}
        elif _is_library(kind) and not dataclasses.is_dataclass(value) and not isinstance(value, NAMESPACES):
            # how it works inside changes
            kept = (*SHOWN, types.FunctionType) if self._strict else (types.FunctionType,)
            held = {name: item for name, item in held.items() if isinstance(item, kept)}
        wrapped = held.pop("__wrapped__", None)
        return [name_of(kind), _members(kind), wrapped, self._attributes(held)]

    def _parts_of_layer(self, part: nn.Module) -> list[Any]:
        """Settings and code of a module without its tensors and parts."""
        kind, usual = type(part), vars(nn.Module())
        held = {name: item for name, item in vars(part).items() if name not in usual}
        if not _is_library(kind):
            held = self._attributes(held)
        elif kind.__module__.partition(".")[0] == "sgenas":
            held = {}  # recorded elsewhere
        else:
            held = {name: item for name, item in held.items() if isinstance(item, SHOWN)}
        return [name_of(kind), without_addresses(part.extra_repr()), _members(kind), held]

    def _parts_of_function(self, function: types.FunctionType) -> list[Any]:
        """Of a function in a script its code and all that it uses; of a library's its name and what it wraps."""
        if _is_library(function):
            return [function.__module__, function.__qualname__, vars(function).get("__wrapped__")]
        code, used = function.__code__, dict[str, Any]()
        names = {name for each in _codes(code) for name in each.co_names}
        self.names |= {*names, function.__name__}
        self.variables |= _stored(code, "STORE_GLOBAL") | (_stored(code, "STORE_DEREF") & {*code.co_freevars})
        if function.__name__ not in BEGINNING:
            self.attributes |= _stored(code, "STORE_ATTR")
            stores = _stored(code, "STORE_SUBSCR", "DELETE_SUBSCR")
            self.stores = self.stores or bool(stores) or not STORING.isdisjoint(names)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            # (a cell is empty before its variable is assigned)
            with contextlib.suppress(ValueError):
                used[name] = cell.cell_contents
        # (other names are of attributes)
        outer = _stored(code, "LOAD_GLOBAL", "LOAD_NAME")
        used |= {name: function.__globals__[name] for name in sorted(outer & function.__globals__.keys())}
        if self._strict:
            used |= {name: _module(name) for name in _stored(code, "IMPORT_NAME")}
        for name, module in list(used.items()):
            if isinstance(module, types.ModuleType):
                del used[name]
                if not _is_library(module):
                    used |= {f"{name}.{each}": vars(module)[each] for each in names & vars(module).keys()}
        defaults = {"args": function.__defaults__, "named": function.__kwdefaults__}
        return [_source(function), vars(function).get("__wrapped__"), self._kept(defaults), self._variables(used)]

    def _attributes(self, held: dict[str, Any]) -> dict[str, Any]:
        known = self._known
        named = held.keys() if known is None else known.names - known.attributes
        return self._kept({name: item for name, item in held.items() if name in named})

    def _variables(self, used: dict[str, Any]) -> dict[str, Any]:
        assigned = () if self._known is None else self._known.variables
        return self._kept({name: item for name, item in used.items() if name not in assigned})

    def _kept(self, values: dict[str, Any]) -> dict[str, Any]:
        stores = self._known is not None and self._known.stores
        return {name: value for name, value in sorted(values.items()) if not (stores and _holds(value))}


def _holds(value: Any) -> bool:
    """Whether a value is a container, or a tuple with one."""
    return isinstance(value, CONTAINERS) or (isinstance(value, tuple) and any(map(_holds, value)))


def _members(kind: type) -> dict[str, Any]:
    """Methods and constants of a class of the user and of its bases."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if not _is_library(base):
            for name, member in vars(base).items():
                inner = [getattr(member, part, None) for part in ("__func__", "fget", "fset")]
                if isinstance(member, (*SHOWN, *CONTAINERS, types.FunctionType)) and name[:2] != "__":
                    found[name] = member
                elif isinstance(member, types.FunctionType) or any(inner):
                    found[name] = [member if isinstance(member, types.FunctionType) else None, *inner]
    return dict(sorted(found.items()))


def _is_library(owner: Any) -> bool:
    """Whether a module, class or function is of Python, sgenas or an installed package: its name says enough."""
    name = owner.__name__ if isinstance(owner, types.ModuleType) else getattr(owner, "__module__", None) or "builtins"
    top = name.partition(".")[0]
    if isinstance(owner, types.FunctionType):
        file = owner.__code__.co_filename
    else:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
    inner = top in sys.stdlib_module_names - {"__main__"} or top == "sgenas"
    # (a method of the user may be one that the standard library has made)
    return inner or "-packages" in file or file.startswith(STDLIB)


def _module(name: str) -> types.ModuleType | None:
    """A module that a function imports; None if it cannot be imported, which is the function's own error."""
    with contextlib.suppress(Exception):
        return importlib.import_module(name)
    return None


def _source(function: types.FunctionType) -> Any:
    """Its source without comments and layout; of lambdas, whose source is a line with other things, the bytecode."""
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        if function.__name__ != "<lambda>":
            # (of its code, since a function that wraps another one has the source of that)
            return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function.__code__))))
    return _bytecode(function.__code__)


def _bytecode(code: types.CodeType) -> list[Any]:
    constants = [_bytecode(each) if isinstance(each, types.CodeType) else each for each in code.co_consts]
    return [code.co_code, code.co_names, constants]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code and that of functions in it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)


def _stored(code: types.CodeType, *operations: str) -> set[str]:
    """Arguments of these instructions."""
    return {
        str(step.argval) for each in _codes(code) for step in dis.get_instructions(each) if step.opname in operations
    }
