"""What may be wrong with data: values that make every loss NaN, and batches of one row."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas.errors import InvalidValueError

IGNORED = (-100, -1, 255)
"""Labels that losses are commonly told to ignore."""


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
                self._note("has NaN or infinite numbers", ~torch.isfinite(leaf).all(), number)
            elif leaf.dtype in (torch.int64, torch.int32) and leaf.ndim:
                for label in IGNORED:
                    said = f"has no label but {label}, which losses commonly ignore"
                    self._note(said, (leaf == label).all(), number)

    def _note(self, fault: str, bad: Tensor, number: int) -> None:
        before = self._first.get(fault, bad.new_zeros((), dtype=torch.int64))
        self._first[fault] = torch.where(bad & (before == 0), number, before)

    def forgive(self) -> None:
        """After steps that went well: what the batches have had until then does no harm."""
        self._harmless |= {fault for fault, number in self._first.items() if int(number)}
        self._first = {}

    def describe(self) -> str | None:
        """``"batch 3 of train_data has NaN or infinite numbers"``, or None."""
        for fault, number in self._first.items():
            if int(number) and fault not in self._harmless:
                return f"batch {int(number)} of {self._name} {fault}"
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
