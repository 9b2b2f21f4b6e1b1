"""Batches from data sets, loaders and lists, and what holds no batches."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sgenas.engine.batches import Batches, Endless
from sgenas.errors import DataError, InvalidValueError


def batches(source: Any, size: int = 4, seed: int = 0, device: str = "cpu") -> Batches:
    return Batches(source, "train_data", size, torch.Generator().manual_seed(seed), torch.device(device))


ROWS = TensorDataset(torch.arange(10))


def drawn(source: Batches) -> list[list[int]]:
    return [batch[0].tolist() for batch in source]


def test_a_data_set_is_drawn_anew_for_every_pass_from_the_seed() -> None:
    source = batches(ROWS)
    first, second = drawn(source), drawn(source)
    assert [len(batch) for batch in first] == [4, 4], "what is over is left out"
    assert len({row for batch in first for row in batch}) == 8
    assert first != second
    again = batches(ROWS)
    assert [drawn(again), drawn(again)] == [first, second]
    assert drawn(batches(ROWS, seed=1)) != first
    assert sorted(drawn(batches(ROWS, size=64))[0]) == list(range(10)), "smaller than a batch: all of it"


def test_rows_are_enough_for_a_data_set() -> None:
    class Squares:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> dict[str, int]:
            return {"x": row, "y": row**2}

    first, second = batches(Squares(), size=2)
    assert torch.equal(first["y"], first["x"] ** 2)
    assert sorted([*first["x"].tolist(), *second["x"].tolist()]) == [0, 1, 2, 3]


def test_loaders_lists_and_streams_are_taken_as_they_are() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    assert drawn(batches(DataLoader(ROWS, batch_size=5))) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [batch.tolist() for batch in batches(Stream(), size=2)] == [[0, 1], [2, 3], [4]]
    assert list(batches(["text", 3])) == ["text", 3]


def test_tensors_in_nested_batches_go_to_the_device() -> None:
    batch = {"x": torch.ones(2), "more": [(torch.zeros(1), "name")], "length": 2}
    (found,) = batches([batch], device="meta")
    assert found["x"].device.type == found["more"][0][0].device.type == "meta"
    assert (found["more"][0][1], found["length"]) == ("name", 2)
    assert batch["x"].device.type == "cpu"  # type: ignore[attr-defined]


def test_endless_begins_again() -> None:
    stream = Endless(batches([1, 2, 3]))
    assert [next(stream) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((torch.ones(3, 2), torch.ones(3)), "make a torch.utils.data.TensorDataset\\), got a tuple"),
        ({"x": torch.ones(3)}, "got a dict"),
        (torch.ones(3, 2), "got a Tensor"),
        (7, "train_data must have rows, or be iterable once an epoch, got a int"),
        ((row for row in range(3)), "got a generator, which ends after the first"),
    ],
)
def test_what_holds_no_batches_is_refused(source: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        batches(source)


@pytest.mark.parametrize("make", [lambda: batches(TensorDataset(Tensor())), lambda: next(iter(batches([])))])
def test_empty_data_is_an_error(make: Callable[[], object]) -> None:
    with pytest.raises(DataError, match="train_data must .* at least one"):
        make()
