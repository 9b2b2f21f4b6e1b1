"""What may be wrong with data: values that make every loss NaN, and sources that take each other's batches."""

import contextlib
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sgenas.errors import InvalidValueError

IGNORED = (-100, -1, 255)
"""Labels that losses are commonly told to ignore."""
STATELESS = ("builtins", "torch.utils.data.sampler", "torch.utils.data.distributed")
"""Modules whose iterables keep no position in themselves."""
MAX_DEPTH = 4
"""Levels of attributes and containers that are searched for shared iterators."""


class DataFaults:
    """Remembers the first batch with NaN or infinite numbers, and the first one without any label that counts.

    Nothing is read from the device before someone asks.

    Args:
        name: Name of the data, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: dict[str, Tensor] = {}
        self._harmless: set[str] = set()

    def look_at(self, batch: Any, number: int) -> None:
        """Takes note of ``batch``, the one of that number in its pass."""
        for leaf in pytree.tree_leaves(batch):
            if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or not leaf.numel():
                continue
            if leaf.is_floating_point() and leaf.element_size() > 1:
                self._note("number", ~torch.isfinite(leaf).all(), number)
            elif leaf.dtype in (torch.int64, torch.int32) and leaf.ndim:
                for label in IGNORED:
                    self._note(str(label), (leaf == label).all(), number)

    def _note(self, kind: str, bad: Tensor, number: int) -> None:
        before = self._first.get(kind, bad.new_zeros((), dtype=torch.int64))
        self._first[kind] = torch.where(bad & (before == 0), number, before)

    def forgive(self) -> None:
        """After steps that went well: what the batches have had until then does no harm."""
        self._harmless |= {kind for kind, number in self._first.items() if int(number)}
        self._first = {}

    def describe(self) -> str | None:
        """``"batch 3 of train_data has NaN or infinite numbers"``, or None."""
        for kind, number in self._first.items():
            if int(number) and kind not in self._harmless:
                if kind == "number":
                    return f"batch {int(number)} of {self._name} has NaN or infinite numbers"
                return f"batch {int(number)} of {self._name} has no label but {kind}, which losses commonly ignore"
        return None


@contextlib.contextmanager
def explaining_single_rows() -> Iterator[None]:
    """Turns batch normalization's error about a batch of one row into an InvalidValueError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InvalidValueError(
            f"batch_size must be at least 2 with batch normalization, and so must the rows of each batch of a list or"
            f" loader, got a batch of one row ({str(error).splitlines()[0][:120]})",
            field="batch_size",
        ) from None


def moved_by_both(first: Any, second: Any) -> Any:
    """An object that a pass through either of two sources of batches moves; None if there is none.

    Args:
        first: A source.
        second: Another source, or the same one.

    Returns:
        An iterator, file or resumable stream that both have, a loader with persistent workers, or an iterable
        object that keeps its position in itself.
    """
    ours, theirs = _reachable(first), _reachable(second)
    return next((part for key, part in ours.items() if key in theirs and _is_moved(part)), None)


def _reachable(value: Any, depth: int = MAX_DEPTH, found: dict[int, Any] | None = None) -> dict[int, Any]:
    """{id: object} of what iterating over ``value`` may move, with its attributes and items."""
    found = {} if found is None else found
    plain = isinstance(value, Tensor | torch.nn.Module | str | bytes | int | float | type | types.ModuleType | None)
    if depth == 0 or id(value) in found or plain or _has_rows(value):
        return found
    found[id(value)] = value
    parts: Iterable[Any] = vars(value).values() if hasattr(value, "__dict__") else ()
    if isinstance(value, DataLoader) and value.num_workers:
        # workers have copies of their dataset
        parts = [part for part in parts if part is not value.dataset]
    elif isinstance(value, types.FunctionType):
        parts = [cell.cell_contents for cell in value.__closure__ or ()]
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    for part in parts:
        _reachable(part, depth - 1, found)
    return found


def _has_rows(value: Any) -> bool:
    """Whether it has rows by index, and so no position."""
    if isinstance(value, Dataset):
        return not isinstance(value, IterableDataset)
    indexed = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return indexed and not isinstance(value, list | tuple | dict)


def _is_moved(shared: Any) -> bool:
    """Whether one pass over an object that two sources have moves the other's."""
    if isinstance(shared, Iterator) or hasattr(shared, "__next__"):
        return True
    if isinstance(shared, DataLoader):
        return bool(shared.persistent_workers)
    if not isinstance(shared, Iterable) or type(shared).__module__ in STATELESS:
        return False
    before, one = _position(shared), iter(shared)
    if iter(shared) is one:
        return True
    next(one, None)
    return _position(shared) != before


def _position(value: Any) -> list[tuple[int, str, Any]]:
    """The numbers that an object and its parts hold."""
    return [
        (key, name, number)
        for key, part in _reachable(value).items()
        if hasattr(part, "__dict__")
        for name, number in vars(part).items()
        if isinstance(number, int | float)
    ]
