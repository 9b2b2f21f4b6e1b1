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
            # a loader draws a number for its workers at every pass: from the global generator without its own
            source = DataLoader(source, batch_size, generator=generator)
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

    @property
    def generators(self) -> list[torch.Generator]:
        """Those that decide about the order of a pass, as far as the source tells."""
        holders: list[Any] = [self._source]
        for name in ("sampler", "batch_sampler"):
            holders += [getattr(holder, name, None) for holder in holders]
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def random_state(self) -> list[Tensor]:
        """The states of `generators`."""
        return [generator.get_state() for generator in self.generators]

    def set_random_state(self, states: list[Tensor]) -> None:
        """Goes to where `random_state` was taken; ValueError for another number of states."""
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)


class Endless:
    """One pass through `batches` after the other; can be taken up again in the middle of one."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._pass: Iterator[Any] | None = None
        self._start: list[Tensor] = []
        self._taken = 0

    def _begin(self) -> Iterator[Any]:
        self._start, self._taken, self._pass = self._batches.random_state(), 0, iter(self._batches)
        return self._pass

    def __next__(self) -> Any:
        for batch in self._pass or ():
            self._taken += 1
            return batch
        # only now: what decides about a pass is the state at its first batch
        batch = next(self._begin())
        self._taken = 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is: the generators' states at the beginning of the pass, and the batches taken since."""
        return {"start": self._start, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was taken, through the batches before it."""
        if state["taken"] == 0:
            self._pass = None
            return
        self._batches.set_random_state(state["start"])
        self._begin()
        for number in range(state["taken"]):
            next(self)
            if self._taken != number + 1:
                raise ValueError(f"a pass must have {state['taken']} batches, got {number}")


def _has_rows(source: Any) -> bool:
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")
