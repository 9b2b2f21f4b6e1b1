"""Batches of any structure from any source: a dataset, a loader, a list, a resumable stream."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from sgenas.device import moved_batch
from sgenas.errors import DataError, InvalidValueError, RunWarning
from sgenas.losses import rows_of
from sgenas.run.faults import DataFaults


class Stream:
    """An endless stream of batches on ``device`` that can be resumed in the middle of a pass.

    Args:
        source: One of: a ``torch.utils.data.Dataset`` or another object with ``len`` and rows by index
            (batches of ``batch_size`` are drawn again for each pass, an incomplete last one is dropped); an
            iterable that gives the batches of one pass each time it is iterated over (a DataLoader, a list);
            a stream with ``__next__``, ``batches_per_pass``, ``state_dict`` and ``load_state_dict``.
        name: Name of the argument, for messages.
        batch_size: For sources with rows.
        generator: Draws the order of sources with rows.
        device: Device of the tensors of a batch, in nested tuples, lists and dicts.
        drop_single_rows: Leave out an incomplete batch of one row, as batch normalization requires.

    Attributes:
        length: Batches of a pass, None if unknown.
        taken: Batches taken in this pass.
        faults: What may be wrong with the batches.

    Raises:
        InvalidValueError: If the source cannot be iterated over more than once, or is a bare tensor, a tuple
            of tensors or a dict, whose parts are not batches.
        DataError: If a pass has no batch, or not as many as ``len`` of the source says.
    """

    def __init__(
        self,
        source: Any,
        name: str,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device,
        *,
        drop_single_rows: bool = False,
    ) -> None:
        self._name, self._device = name, device
        self.faults = DataFaults(name)
        self._resumable = all(
            hasattr(source, method) for method in ("__next__", "batches_per_pass", "state_dict", "load_state_dict")
        )
        self._source: Any = source if self._resumable else _iterable(source, name, batch_size, generator)
        if drop_single_rows and not self._resumable:
            self._source = _without_single_rows(self._source, name)
        self.length: int | None = source.batches_per_pass if self._resumable else _length(self._source)
        self._drop_single_rows = drop_single_rows and self.length is None
        self._pass: Iterator[Any] | None = None
        self._start: list[Tensor] = []
        self.taken = 0
        self._ahead: list[Any] = []

    @property
    def at_end(self) -> bool:
        """Whether the last batch was the last of its pass."""
        if self.length is not None:
            return self.taken == self.length
        self._look_ahead()
        return not self._ahead

    def _look_ahead(self) -> None:
        if not self._ahead:
            self._ahead = [batch for _, batch in zip(range(1), self._rest, strict=False)]

    @property
    def _rest(self) -> Iterable[Any]:
        """What is left of this pass."""
        # the truth of a loader's iterator is its length, which it need not have
        return () if self._pass is None else self._pass

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = moved_batch(self._next(), self._device)
        self.faults.look_at(batch, self.taken)
        return batch

    def _next(self) -> Any:
        if self._resumable:
            self.taken = self.taken % (self.length or 1) + 1
            return next(self._source)
        for batch in self._ahead or self._rest:
            self._ahead = []
            self.taken += 1
            if self.length is not None and self.taken > self.length:
                raise DataError(f"{self._name} must give {self.length} batches per pass, its len(), got more")
            return batch
        if self._pass is not None and self.taken < (self.length or 0):
            raise DataError(f"{self._name} must give {self.length} batches per pass, its len(), got {self.taken}")
        # what decides about a pass is the generators' state at its first batch
        self._start, self.taken = self._random_state(), 0
        self._pass = self._begin_pass()
        if self._drop_single_rows:
            self._pass = self._full_batches(self._pass)
        for batch in self._pass:
            self.taken = 1
            return batch
        raise DataError(f"{self._name} must give at least one batch per pass, got none")

    def _begin_pass(self) -> Iterator[Any]:
        loader = self._source
        if isinstance(loader, DataLoader) and loader.persistent_workers and loader._iterator is None:
            # the first pass draws a seed for the workers too, and a resumed run's first pass may be any
            states = self._random_state()
            iter(loader)
            self._set_random_state(states)
        return iter(loader)

    def _full_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Without those of one row, unless the first one has one row too."""
        first = None
        for batch in batches:
            rows = rows_of(batch)
            first = first or rows
            if rows == 1 != first:
                _warn_of_single_row(self._name)
            else:
                yield batch

    def peek(self) -> Any:
        """A first batch; the stream stays where it is, at its beginning."""
        if self._resumable:
            state = self._source.state_dict()
            batch = next(self._source)
            self._source.load_state_dict(state)
        else:
            states = self._random_state()
            batch = next(self._begin_pass(), None)
            self._set_random_state(states)
            if batch is None:
                raise DataError(f"{self._name} must give at least one batch per pass, got none")
        return moved_batch(batch, self._device)

    # -- exact resume ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position: of other sources the state of their generators when the pass began, and the batches
        taken since."""
        if self._resumable:
            return {"taken": self.taken, "source": self._source.state_dict()}
        return {
            "taken": self.taken,
            "ahead": bool(self._ahead),
            "start": self._start,
            "random": self._random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position of ``state_dict``, through the batches before it.

        Raises:
            ValueError: If the source has too few batches.
        """
        if self._resumable:
            self.taken = state["taken"]
            self._source.load_state_dict(state["source"])
            return
        self._pass, self.taken, self._ahead = None, 0, []
        if state["taken"]:
            self._set_random_state(state["start"])
            for number in range(state["taken"]):
                self._next()
                if self.taken != number + 1:
                    raise ValueError(f"a pass must have {state['taken']} batches, got {number}")
            if state["ahead"]:
                # which was drawn before the state of `restore_generators`
                self._look_ahead()

    def restore_generators(self, state: dict[str, Any]) -> None:
        """To be called once all streams are at their position: they may share a generator."""
        if not self._resumable:
            self._set_random_state(state["random"])

    @property
    def _generators(self) -> list[torch.Generator]:
        """Those that decide about the order of a pass, as far as the source shows them."""
        holders: list[Any] = [self._source]
        for name in ("sampler", "batch_sampler"):
            holders += [getattr(holder, name, None) for holder in holders]
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def _random_state(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set_random_state(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


def require_separate(first: Stream, second: Stream) -> None:
    """Raises InvalidValueError if both streams have one source that gives the same iterator to every pass."""
    ours, theirs = (getattr(stream._source, "dataset", stream._source) for stream in (first, second))
    if ours is not theirs or (hasattr(ours, "__getitem__") and not isinstance(ours, IterableDataset)):
        return
    workers = getattr(first._source, "num_workers", 0)
    if first._resumable or (not workers and iter(ours) is iter(theirs)):
        raise InvalidValueError(
            f"{second._name} must not share a {type(ours).__name__} with {first._name}, whose batches it would take;"
            " make a second one for it",
            field=second._name,
        )


def has_batch_norm(modules: Iterable[nn.Module]) -> bool:
    """Whether one of the modules normalizes over a batch, which needs two rows or more."""
    return any(isinstance(module, _BatchNorm) for module in modules)


def require_batches(source: Any, name: str) -> None:
    """Raises InvalidValueError for whole tensors, whose parts are not batches."""
    tensors = isinstance(source, tuple) and all(isinstance(part, Tensor) for part in source)
    if tensors or isinstance(source, Mapping | Tensor):
        raise InvalidValueError(
            f"{name} must be a Dataset, a DataLoader or an iterable of batches, got a {type(source).__name__};"
            " make a torch.utils.data.TensorDataset of whole tensors",
            field=name,
        )


def _iterable(source: Any, name: str, batch_size: int, generator: torch.Generator) -> Iterable[Any]:
    require_batches(source, name)
    if isinstance(source, IterableDataset):
        # without a generator of its own, a loader draws its workers' seed from the global one
        source = DataLoader(source, batch_size, generator=generator)
    elif not isinstance(source, list | tuple) and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        if len(source) < 1:
            raise DataError(f"{name} must have at least one row, got none")
        full = len(source) >= batch_size
        source = DataLoader(source, batch_size, shuffle=True, generator=generator, drop_last=full)
    if not isinstance(source, Iterable) or isinstance(source, Iterator):
        once = ", which ends after the first pass" if isinstance(source, Iterator) else ""
        raise InvalidValueError(
            f"{name} must have rows, or be iterable once per epoch, got a {type(source).__name__}{once}",
            field=name,
        )
    if isinstance(source, DataLoader) and source.persistent_workers:
        # such a loader has one iterator, and a second pass over it would end the first
        source = copy.copy(source)
        source._iterator = None
    return source


def _without_single_rows(source: Any, name: str) -> Any:
    """A list or loader without an incomplete batch of one row; other sources as they are."""
    kept = source
    if isinstance(source, list | tuple):
        kept = [batch for batch in source if rows_of(batch) != 1] or source
    elif isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset):
        size = source.batch_size or 1
        if size > 1 and not source.drop_last and len(source) > 1 and len(source.sampler) % size == 1:  # type: ignore[arg-type]
            kept = copy.copy(source)
            # not setattr, which a loader refuses for these
            vars(kept).update(drop_last=True, batch_sampler=BatchSampler(source.sampler, size, drop_last=True))
    if kept is not source and len(kept) < len(source):
        _warn_of_single_row(name)
    return kept


def _warn_of_single_row(name: str) -> None:
    text = f"{name}: a batch of one row is left out, since batch normalization needs two rows or more"
    warnings.warn(text, RunWarning, stacklevel=2)


def _length(source: Any) -> int | None:
    if isinstance(getattr(source, "dataset", None), IterableDataset):
        # len() of such a loader is an estimate
        return None
    try:
        return len(source) or None
    except TypeError:
        return None
