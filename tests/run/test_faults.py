"""Data that makes losses NaN, and sources of batches that take each other's batches."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, TensorDataset

from sgenas.errors import InvalidValueError
from sgenas.run.faults import DataFaults, explaining_single_rows, moved_by_both

ROWS = TensorDataset(torch.arange(8))


class SameIterator:
    """Gives the same iterator for every pass."""

    def __init__(self) -> None:
        self.rows = iter([1, 2])

    def __iter__(self) -> Iterator[int]:
        return self.rows


class Restarting(IterableDataset[int]):
    """Its own iterator, which begins again with each pass."""

    def __iter__(self) -> Iterator[int]:
        self.at = 0
        return self

    def __next__(self) -> int:
        self.at += 1
        if self.at > 4:
            raise StopIteration
        return self.at


class KeepsPosition(Sampler[int]):
    """Iterators that share a position which the object keeps."""

    def __iter__(self) -> Iterator[int]:
        self.at = 0
        while self.at < 4:
            yield self.at
            self.at += 1


class Wrapped:
    """An iterable over another one."""

    def __init__(self, inner: Any) -> None:
        self.inner = [inner]

    def __iter__(self) -> Iterator[Any]:
        yield from self.inner[0]


class Plain:
    """Keeps nothing."""

    def __iter__(self) -> Iterator[int]:
        yield from range(4)


class LazyRows:
    """Rows by index from an open file."""

    def __init__(self) -> None:
        self.file = open(__file__)  # noqa: SIM115

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> int:
        return row


def both(source: Any) -> tuple[Any, Any]:
    return source, source


def wrapped_twice(source: Any) -> tuple[Any, Any]:
    return Wrapped(source), Wrapped(source)


def loaders(**same: Any) -> tuple[Any, Any]:
    return DataLoader(ROWS, **same), DataLoader(ROWS, **same)


def persistent() -> Any:
    return DataLoader(ROWS, num_workers=1, persistent_workers=True)


MOVED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "same iterator": lambda: both(SameIterator()),
    "own iterator": lambda: both(Restarting()),
    "own iterator in loaders": lambda: (DataLoader(made := Restarting()), DataLoader(made)),
    "position in the object": lambda: both(KeepsPosition()),
    "sampler with a position": lambda: loaders(sampler=KeepsPosition()),
    "wrapped iterator": lambda: wrapped_twice(SameIterator()),
    "wrapped persistent workers": lambda: wrapped_twice(persistent()),
    "partial of an iterator": lambda: wrapped_twice(functools.partial(next, iter([1]))),
}
SEPARATE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "list": lambda: both([torch.ones(2)] * 3),
    "loader": lambda: both(DataLoader(ROWS, 2, shuffle=True)),
    "generator of loaders": lambda: loaders(shuffle=True, generator=torch.Generator()),
    "sampler": lambda: loaders(sampler=RandomSampler(ROWS)),
    "own position in workers": lambda: both(DataLoader(Restarting(), num_workers=1)),
    "plain iterable": lambda: both(Plain()),
    "wrapped loader": lambda: wrapped_twice(DataLoader(ROWS)),
    "two iterators": lambda: (SameIterator(), SameIterator()),
    "rows from a file": lambda: both(DataLoader(LazyRows())),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MOVED)
def test_sources_that_move_each_other_are_found(name: str) -> None:
    assert moved_by_both(*MOVED[name]()) is not None


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", SEPARATE)
def test_separate_sources_are_accepted_and_draw_nothing(name: str) -> None:
    first, second = SEPARATE[name]()
    before = torch.get_rng_state()
    assert moved_by_both(first, second) is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([torch.ones(2), torch.tensor([1, 2])], None),
        ({"x": [torch.tensor([1.0, torch.nan])]}, "batch 2 of val_data has NaN"),
        ([torch.tensor([torch.inf], dtype=torch.bfloat16)], "infinite"),
        ([torch.tensor(torch.nan, dtype=torch.complex64).real], "NaN"),
        ([torch.ones(2), torch.full((3, 2), -100)], "no label but -100"),
        ([torch.ones(2), torch.full((3, 2), 255)], "no label but 255"),
        ([torch.ones(2), torch.tensor([-100, 1])], None),
        ([torch.ones(0), torch.ones(0, dtype=torch.int64), "text", None], None),
        ([torch.full((2,), 255, dtype=torch.uint8), torch.ones(2, dtype=torch.bool)], None),
        ([torch.tensor([[torch.nan]]).to_sparse()], None),
    ],
)
def test_fault_names_the_data_and_the_batch(batch: Any, said: str | None) -> None:
    faults = DataFaults("val_data")
    faults.look_at([torch.ones(2)], 1)
    faults.look_at(batch, 2)
    faults.look_at([torch.ones(2)], 3)
    found = faults.describe()
    assert (found is None) == (said is None)
    assert said is None or said in str(found)
    faults.forgive()
    assert faults.describe() is None
    faults.look_at(batch, 5)
    assert faults.describe() is None, "steps on such batches went well"


def test_only_the_error_of_single_rows_is_explained() -> None:
    with pytest.raises(InvalidValueError, match="batch normalization") as caught, explaining_single_rows():
        torch.nn.BatchNorm1d(2)(torch.ones(1, 2))
    assert caught.value.field == "batch_size"
    with pytest.raises(ValueError, match="other"), explaining_single_rows():
        raise ValueError("other")


def test_complex_and_double_numbers_are_looked_at() -> None:
    faults = DataFaults("train_data")
    faults.look_at(Tensor([[1.0, torch.nan]]).double(), 4)
    assert "batch 4" in str(faults.describe())
