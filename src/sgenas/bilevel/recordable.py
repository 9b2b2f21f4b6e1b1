"""What a pass depends on, and what it does: whether it can be recorded as a CUDA graph, and whether it repeats."""

import sys
import traceback
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sgenas.bilevel.sharding import Whole
from sgenas.random import Seed

NUMBERS = {"_local_scalar_dense", "is_nonzero", "equal", "_linalg_check_errors"}
"""Operations that give Python a number, so that the CPU waits for the device."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Operations that count the entries of a mask first; with whole numbers as indices they do not wait."""
DROPOUT = ("dropout_p", "dropout")
"""Arguments of operations that draw only if they are above 0 (attention, recurrent layers)."""
LITERAL = 64
"""Most entries of a tensor made from Python's numbers whose values are compared."""
CONSTANTS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Kinds of values that are part of the key when they are among the inputs of a pass."""
TORCH = str(Path(torch.__file__).parent)


class UnrecordableError(Exception):
    """Why a pass cannot be recorded. It never leaves `Replays`."""


class Parts:
    """The tensors of a pass's inputs, and everything else about them.

    Attributes:
        tensors: All tensors.
        devices: Their only device.
        form: What two calls of one recording have in common.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.tensors: list[Tensor] = []
        apart = [self._apart(value) for value in inputs]
        self._builders = [build for _, build in apart]
        self.devices = {tensor.device for tensor in self.tensors}
        if len(self.devices) != 1:
            raise UnrecordableError(f"its inputs are on {len(self.devices)} devices")
        forms = tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in self.tensors)
        self.form: Hashable = (tuple(form for form, _ in apart), forms, *self.devices)

    def built(self, tensors: list[Tensor]) -> list[Any]:
        """The inputs with other tensors."""
        return [build(tensors) for build in self._builders]

    def _apart(self, value: Any) -> tuple[Hashable, Callable[[list[Tensor]], Any]]:
        """Takes the tensors of ``value``: (what is left, list of all tensors -> the value with those)."""
        first = len(self.tensors)
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return Tensor, lambda new: new[first]
        if type(value) is dict and all(isinstance(entry, Tensor) for entry in value.values()):
            # (weights: a thousand tensors at each call)
            names = tuple(value)
            self.tensors += value.values()
            return names, lambda new: dict(zip(names, new[first : first + len(names)], strict=True))
        if type(value) is Seed:
            # no part of the form, since a pass that draws is not recorded
            return Seed, lambda new: value
        if type(value) in CONSTANTS:
            return (type(value), repr(value)), lambda new: value
        if isinstance(value, Whole):
            form, build = self._apart(value.tables)
            return (type(value), form), lambda new: type(value)(build(new))
        leaves, structure = pytree.tree_flatten(value)
        if len(leaves) == 1 and leaves[0] is value:
            raise UnrecordableError(f"a {type(value).__name__} among its inputs")
        apart = [self._apart(leaf) for leaf in leaves]
        builders = [build for _, build in apart]
        form = (structure, tuple(form for form, _ in apart))
        return form, lambda new: pytree.tree_unflatten([build(new) for build in builders], structure)


class Identity:
    """A function as part of a key: equal to itself alone, unlike a dataclass; methods to those of the same object."""

    def __init__(self, function: Callable[..., Any]) -> None:
        method = isinstance(function, MethodType)
        self._parts = (function.__func__, function.__self__) if method else (function,)  # type: ignore[attr-defined]

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Identity) and len(self._parts) == len(other._parts)
        return same and all(a is b for a, b in zip(self._parts, other._parts, strict=True))  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(tuple(map(id, self._parts)))


def without_keywords(loss: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A loss, and the keywords that it is given as a `functools.partial`."""
    return (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a pass and raises UnrecordableError before the first one that a graph cannot repeat.

    These are random numbers, numbers that the CPU waits for, copies between devices, other tensors of the CPU, and
    changes in place of tensors that are not the pass's own.

    Args:
        inputs: The tensors that the pass may depend on, all on one device.

    Attributes:
        trace: A number per operation, equal in two passes if both do the same with the same constants. A tensor
            counts by where it comes from: which input, which result, or which tensor that is neither.
        operations: Their names.
        outside: The tensors that are neither inputs nor results, and which a graph would read where they are.
        refusal: The error that was raised, which the pass may have caught.
    """

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace: list[int] = []
        self.operations: list[str] = []
        self.outside: dict[int, Tensor] = {}
        self._device = inputs[0].device
        self._origins = {_storage(tensor): number for number, tensor in enumerate(inputs)}
        self._inputs = self._made = len(inputs)
        # numbers of the CPU, held so that no tensor of another origin takes the place of one
        self._numbers: list[Tensor] = []
        self.refusal: UnrecordableError | None = None

    def run(self, function: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What ``function`` returns.

        Raises:
            UnrecordableError: Also if ``function`` catches it.
        """
        # the backward pass in this thread, in one order
        with torch.autograd.set_multithreading_enabled(False), self:
            found = function()
        if self.refusal is not None:
            raise self.refusal
        return found

    def difference(self, other: "Watch") -> str | None:
        """The first operation that is not the same in the other pass; None if all are."""
        if self.trace == other.trace:
            return None
        pairs = enumerate(zip(self.trace, other.trace, strict=False))
        first = next((index for index, (ours, theirs) in pairs if ours != theirs), None)
        return "the number of its operations" if first is None else self.operations[first]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # (to skip it, PyTorch would import it for seconds)
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        leaves = pytree.arg_tree_leaves(*args, **kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        why = self._obstacle(func, name, args, kwargs, tensors)
        if why is not None:
            self.refusal = UnrecordableError(f"{name} {why}{place(traceback.walk_stack(sys._getframe()))}")
            raise self.refusal
        # (whether autograd detaches a tensor depends on who else refers to it)
        if name != "detach":
            self.operations.append(name)
            self.trace.append(hash((func, *(self._described(leaf, literal=name == "lift_fresh") for leaf in leaves))))
        found = func(*args, **kwargs)
        known = {_storage(tensor) for tensor in tensors}
        for tensor in pytree.tree_leaves(found):
            if isinstance(tensor, Tensor) and (name == "lift_fresh" or _storage(tensor) not in known):
                self._origins[_storage(tensor)] = self._made
                self._made += 1
                if tensor.device != self._device:
                    self._numbers.append(tensor)
        return found

    def _obstacle(self, func: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> str | None:
        """What is in the way of recording an operation."""
        if any(tensor.layout != torch.strided for tensor in tensors):
            return "has a sparse tensor"
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
            return "draws random numbers"
        if name in NUMBERS or torch.Tag.data_dependent_output in func.tags:
            return "waits for a number"
        if name in INDEXING:
            if any(index.dtype in (torch.bool, torch.uint8) for index in tensors[1:]):
                return "waits for the size of a selection"
        elif torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
            return "waits for the size of its result"
        return self._foreign(name, kwargs, tensors) or self._changed(func, args, kwargs)

    def _foreign(self, name: str, kwargs: Any, tensors: list[Tensor]) -> str | None:
        wanted = kwargs.get("device")
        ours = any(tensor.device == self._device for tensor in tensors)
        others = [tensor for tensor in tensors if tensor.device != self._device]
        if name == "lift_fresh" and ours and self._device.type != "cpu":
            return "copies numbers from the host"
        if not ours and (wanted is None or torch.device(wanted).type != self._device.type):
            return None
        if others and wanted is not None:
            return "copies between devices"
        for tensor in others:
            # a number of this pass's own is a constant that the trace has
            if tensor.ndim or _storage(tensor) not in self._origins:
                return f"reads a tensor on {tensor.device}"
        if wanted is not None and torch.device(wanted).type != self._device.type:
            return "copies between devices"
        return None

    def _changed(self, func: Any, args: Any, kwargs: Any) -> str | None:
        if not func._schema.is_mutable:
            return None
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                values = args[number] if number < len(args) else kwargs.get(argument.name)
                for tensor in pytree.tree_leaves(values):
                    if isinstance(tensor, Tensor) and self._origins.get(_storage(tensor), -1) < self._inputs:
                        return "changes a tensor in place that is not its own"
        return None

    def _described(self, leaf: Any, literal: bool) -> Hashable:
        if not isinstance(leaf, Tensor):
            return repr(leaf) if isinstance(leaf, float) else (type(leaf), leaf)
        place = _storage(leaf)
        origin: Hashable = None if literal else self._origins.get(place)
        if origin is None:
            # kept, so that nothing else takes its place
            self.outside[place] = leaf
            # a literal is a new tensor in each pass, with the same numbers
            same = literal and leaf.numel() <= LITERAL
            origin = tuple(map(repr, leaf.flatten().tolist())) if same else ("outside", place)
        return origin, leaf.storage_offset(), leaf.shape, leaf.dtype


def _storage(tensor: Tensor) -> int:
    return id(tensor) if tensor.layout != torch.strided else tensor.untyped_storage()._cdata


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    for name in DROPOUT:
        if name in names:
            given = dict(zip(names, args, strict=False)) | kwargs
            return bool(given.get(name, 0.0) > 0)
    return True


def place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """``" at file.py:12 (Linear)"``: the innermost line that is not PyTorch's, and the module that it is in.

    Args:
        frames: Frames and their lines, the innermost first.
    """
    where, module = "", ""
    for frame, line in frames:
        if not where and not frame.f_code.co_filename.startswith((TORCH, __file__)):
            where = f" at {Path(frame.f_code.co_filename).name}:{line}"
        if not module and isinstance(frame.f_locals.get("self"), nn.Module):
            module = f" ({type(frame.f_locals['self']).__name__})"
    return where + module if where else ""
