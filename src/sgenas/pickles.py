"""A reader of what torch.save writes, of which it knows tensors and plain data and nothing else.

The file is a zip archive: a pickle describes the objects, and each tensor's bytes are a part of their own.
The pickle is a list of instructions for a stack; of those the few are carried out here that torch.save uses
for such data (pickle protocol 2, as documented in Python's pickletools), so that no object is made but
dictionaries, lists, tuples, texts, numbers and tensors of bytes that are there.
"""

import math
import pickletools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

INSTRUCTIONS = 500_000
"""Of a pickle; 5,000 tensors take 100,000."""
DEEPEST = 50
"""Levels of containers in containers."""
MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_DTYPES = {
    "torch ComplexDoubleStorage": torch.complex128,
    "torch ComplexFloatStorage": torch.complex64,
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
"""What torch calls the bytes of each type of number."""
_ORDERED, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_NAMES = {_ORDERED, _TENSOR, *_DTYPES}


class _Name(str):
    """Of code: it can stand before its arguments or in a tensor's description, and nowhere else."""


Read = Callable[[str, int], Tensor]
"""(name of a part, its bytes) -> them, uint8; raises ValueError where it has not as many."""


def read_pickle(content: bytes, read: Read) -> Any:
    """The object that the pickle `content` describes, its tensors' bytes by `read`.

    Raises ValueError for anything but tensors and plain data, for tensors that stand for more numbers than
    their bytes hold, and for more than INSTRUCTIONS and DEEPEST allow; whatever Python raises (LookupError,
    TypeError) for a damaged one.
    """
    found = _Stack(read).run(content)
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner = {id(child): child for each in level for child in _children(each)}
        level = list(inner.values())
    if level:
        raise ValueError(f"it must have at most {DEEPEST} levels")
    return found


def _children(each: Any) -> Iterable[Any]:
    """The containers inside of one, of whose items none is half a tensor or a name of code."""
    items = each.values() if isinstance(each, dict) else each if isinstance(each, list | tuple) else ()
    return [item for item in _Stack.plain(items) if isinstance(item, dict | list | tuple)]


class _Stack:
    def __init__(self, read: Read) -> None:
        self._read = read
        self._parts: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > INSTRUCTIONS:
                raise ValueError(f"it must have at most {INSTRUCTIONS:,} instructions")
            name = opcode.name
            if name == "STOP":
                break
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[argument] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            elif name in _MAKES:
                _MAKES[name](self)
            elif name == "GLOBAL":
                if argument not in _NAMES:
                    raise ValueError(f"it must hold tensors and plain data, got {argument!r}")
                self._stack.append(_Name(argument))
            elif name != "PROTO":
                raise ValueError(f"it must hold tensors and plain data, got the instruction {name}")
        if len(self._stack) != 1:
            raise ValueError(f"it must hold one object, got {len(self._stack)}")
        self.plain(self._stack)
        return self._stack[0]

    def _pop(self, count: int) -> list[Any]:
        """The last `count` values, in the order in which they came."""
        values = self._stack[len(self._stack) - count :]
        if len(values) < count or any(value is MARK for value in values):
            raise ValueError("it must have what its instructions take")
        del self._stack[len(self._stack) - count :]
        return values

    def _to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    @staticmethod
    def plain(values: Iterable[Any]) -> Iterable[Any]:
        """The values, none of which is a name of code or bytes without a tensor."""
        for value in values:
            if isinstance(value, _Name | _Part):
                raise ValueError(f"it must hold tensors and plain data, got {value!s:.80}")
        return values

    def _mark(self) -> None:
        self._stack.append(MARK)

    def _dict(self) -> None:
        self._stack.append({})

    def _list(self) -> None:
        self._stack.append([])

    def _tuple(self, values: list[Any]) -> None:
        self._stack.append(tuple(values))

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        keys = values[::2]
        # a tuple's hash goes down into it without an end
        if type(target) is not dict or not all(isinstance(key, str | int | float) for key in keys):
            raise ValueError("it must have dictionaries with texts and numbers for keys")
        target.update(zip(keys, self.plain(values[1::2]), strict=True))

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("it must append to lists")
        target.extend(self.plain(values))

    def _part(self) -> None:
        match self._pop(1)[0]:
            case ("storage", _Name() as kind, str(key), str(), int(count)) if kind in _DTYPES and count >= 0:
                self._stack.append(_Part(_DTYPES[kind], key, count))
            case named:
                raise ValueError(f"it must hold tensors of a known kind, got {str(named)[:80]}")

    def _reduce(self) -> None:
        made, arguments = self._pop(2)
        if made == _ORDERED and isinstance(made, _Name) and arguments == ():
            self._stack.append({})
        elif made == _TENSOR and isinstance(made, _Name) and isinstance(arguments, tuple):
            self._stack.append(self._tensor(*arguments[:4]))
        else:
            raise ValueError(f"it must hold tensors and plain data, got a call of {str(made)[:80]}")

    def _build(self) -> None:
        # what a module's state dict knows of its versions
        self._pop(1)
        if type(self._stack[-1]) is not dict:
            raise ValueError("it must hold tensors and plain data, got the instruction BUILD")

    def _tensor(self, part: Any, start: Any, size: Any, stride: Any) -> Tensor:
        whole = [start, *size, *stride]
        if not isinstance(part, _Part) or not all(type(each) is int and each >= 0 for each in whole):
            raise ValueError("a tensor must have a part, a place and a shape")
        count = math.prod(size)
        last = start + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if count > part.count or (count and last >= part.count):
            raise ValueError(f"a tensor of shape {size} must be inside of its {part.count:,} numbers")
        length = part.count * part.dtype.itemsize
        if part.key not in self._parts:
            self._parts[part.key] = self._read(part.key, length)
        content = self._parts[part.key]
        if len(content) != length:
            raise ValueError(f"a tensor must have the bytes of its part, {len(content):,}, got {length:,}")
        return content.view(part.dtype).as_strided(size, stride, start)


class _Part:
    """The bytes of a tensor, before it has a shape."""

    def __init__(self, dtype: torch.dtype, key: str, count: int) -> None:
        self.dtype, self.key, self.count = dtype, key, count


_MAKES: dict[str, Callable[[_Stack], None]] = {
    "MARK": _Stack._mark,
    "EMPTY_DICT": _Stack._dict,
    "EMPTY_LIST": _Stack._list,
    "EMPTY_TUPLE": lambda stack: stack._tuple([]),
    "TUPLE1": lambda stack: stack._tuple(stack._pop(1)),
    "TUPLE2": lambda stack: stack._tuple(stack._pop(2)),
    "TUPLE3": lambda stack: stack._tuple(stack._pop(3)),
    "TUPLE": lambda stack: stack._tuple(stack._to_mark()),
    "SETITEM": lambda stack: stack._set(stack._pop(2)),
    "SETITEMS": lambda stack: stack._set(stack._to_mark()),
    "APPEND": lambda stack: stack._append(stack._pop(1)),
    "APPENDS": lambda stack: stack._append(stack._to_mark()),
    "BINPERSID": _Stack._part,
    "REDUCE": _Stack._reduce,
    "BUILD": _Stack._build,
}
"""What each instruction does that makes or changes an object."""
