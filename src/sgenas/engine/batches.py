"""Batches of any structure from whatever holds them: a data set, a loader, a list."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from sgenas.errors import DataError, InvalidValueError


class Batches:
    """The batches of `source`, as often as they are asked for, their tensors on `device`.

    source: a torch.utils.data.Dataset, or what else has a length and rows by number, of which batches of
    `batch_size` rows are drawn anew for every pass by `generator` (the last one is left out where it is not
    full); or what gives batches when it is iterated over, again at every pass: a DataLoader, a list. A batch
    may be anything; the tensors in nested tuples, lists and dicts are brought to the device. name: in
    messages.

    Raises InvalidValueError for what cannot be iterated over, or only once, and for a tuple of tensors or a
    dict, whose parts are no batches; DataError in a pass that has no batch.
    """

    def __init__(
        self, source: Any, name: str, batch_size: int, generator: torch.Generator, device: torch.device
    ) -> None:
        parts = isinstance(source, tuple) and all(isinstance(part, Tensor) for part in source)
        if parts or isinstance(source, Mapping | Tensor):
            raise InvalidValueError(
                f"{name} must be a Dataset, a DataLoader or an iterable of batches (of whole tensors make a"
                f" torch.utils.data.TensorDataset), got a {type(source).__name__}"
            )
        if isinstance(source, IterableDataset):
            source = DataLoader(source, batch_size)
        elif not isinstance(source, list | tuple) and _has_rows(source):
            rows = len(source)
            if rows < 1:
                raise DataError(f"{name} must have at least one row, got none")
            full = rows >= batch_size
            source = DataLoader(source, batch_size, shuffle=True, generator=generator, drop_last=full)
        if not isinstance(source, Iterable) or isinstance(source, Iterator):
            raise InvalidValueError(
                f"{name} must have rows, or be iterable once an epoch, got a {type(source).__name__}"
                f"{', which ends after the first' if isinstance(source, Iterator) else ''}"
            )
        self._source, self._name, self._device = source, name, device

    def __iter__(self) -> Iterator[Any]:
        found = False
        for batch in self._source:
            found = True
            yield pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self._device), batch)
        if not found:
            raise DataError(f"{self._name} must give at least one batch, got none")

    def endless(self) -> Iterator[Any]:
        """One pass after the other."""
        while True:
            yield from self


def _has_rows(source: Any) -> bool:
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")
