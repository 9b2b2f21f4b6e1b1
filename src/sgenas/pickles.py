"""What the pickle inside of a file of tensors would make, found out without unpickling it.

torch.save describes its tensors in a pickle, which names their bytes: other parts of the same archive. Of its
instructions only those are followed that say which bytes a tensor claims; nothing is made of them.
"""

import pickletools
import re
from collections.abc import Iterator
from typing import Any

_PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)"
    r"|torch (\w+Storage|Size|device|float\w+|u?int\d+)|torch\.storage UntypedStorage"
)
"""The only names of code in a file of tensors: what makes plain tensors of bytes that are in the file. Others
that weights_only=True lets through make tensors and arrays of any size out of a number."""
_OTHER_NAMES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
"""Instructions of a pickle that name or make objects in ways that torch.save does not use."""
_KEPT = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCHED = {"GET", "BINGET", "LONG_BINGET"}
_BYTES = {
    **dict.fromkeys(("torch ComplexDoubleStorage",), 16),
    **dict.fromkeys(("torch DoubleStorage", "torch LongStorage", "torch ComplexFloatStorage"), 8),
    **dict.fromkeys(("torch FloatStorage", "torch IntStorage"), 4),
    **dict.fromkeys(("torch HalfStorage", "torch BFloat16Storage", "torch ShortStorage"), 2),
    **dict.fromkeys(("torch CharStorage", "torch ByteStorage", "torch BoolStorage"), 1),
    **dict.fromkeys(("torch UntypedStorage", "torch.storage UntypedStorage"), 1),
}
"""Of an element of each kind of storage."""


def storages(content: bytes) -> Iterator[tuple[str, int]]:
    """(name, bytes) of every part of its archive that the pickle `content` makes tensors of, as it claims.

    Raises ValueError for a pickle that makes anything but plain tensors and plain data, and whatever the
    reader of instructions raises for one that is damaged.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name, taken = opcode.name, list(opcode.stack_before)
        if name in _OTHER_NAMES or name == "MEMOIZE":
            raise ValueError(f"it must hold tensors and plain data, got the instruction {name}")
        if name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            raise ValueError(f"it must hold tensors and plain data, got {argument!r}")
        if name in _KEPT:
            memo[argument] = stack[-1]
            continue
        items = []
        if pickletools.markobject in taken:
            while (item := stack.pop()) is not pickletools.markobject:
                items.append(item)
            taken = taken[: taken.index(pickletools.markobject)]
        items += [stack.pop() for _ in taken]
        if name == "BINPERSID":
            yield _storage(items[0])
        for made in opcode.stack_after:
            if made is pickletools.markobject:
                stack.append(made)
            elif name in _FETCHED:
                stack.append(memo[argument])
            elif name.startswith("TUPLE"):
                stack.append(tuple(reversed(items)))
            else:
                # of all that is made only texts, names and numbers matter: they have no items
                stack.append(argument if not items else None)


def _storage(named: Any) -> tuple[str, int]:
    match named:
        case ("storage", str(kind), str(key), str(), int(count)) if (
            kind in _BYTES and count >= 0 and key.isascii() and key.isdecimal()
        ):
            return key, count * _BYTES[kind]
    raise ValueError(f"it must hold tensors of a known kind, got {str(named)[:80]}")
