"""Streams of batches from datasets, loaders, lists and resumable streams."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from sgenas.data.augmentation import Augmentation
from sgenas.data.batches import BatchStream
from sgenas.data.images import ImageSet
from sgenas.errors import DataError, InvalidValueError, RunWarning
from sgenas.run.batches import Stream

ROWS = TensorDataset(torch.arange(10))


class Endless(IterableDataset[int]):
    """Rows without a number."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


def stream(source: Any, size: int = 4, seed: int = 0, device: str = "cpu") -> Stream:
    return Stream(source, "train_data", size, torch.Generator().manual_seed(seed), torch.device(device))


def one_pass(source: Stream) -> list[list[int]]:
    found = [torch.as_tensor(batch[0] if isinstance(batch, list) else batch).tolist() for batch in source_pass(source)]
    assert source.length in (None, len(found))
    return found


def source_pass(source: Stream) -> Iterator[Any]:
    while True:
        yield next(source)
        if source.at_end:
            return


def test_datasets_are_shuffled_for_every_pass_from_the_seed() -> None:
    source = stream(ROWS)
    first, second = one_pass(source), one_pass(source)
    assert [len(batch) for batch in first] == [4, 4], "the rest is dropped"
    assert len({row for batch in first for row in batch}) == 8
    assert first != second
    again = stream(ROWS)
    assert [one_pass(again), one_pass(again)] == [first, second]
    assert one_pass(stream(ROWS, seed=1)) != first
    assert sorted(one_pass(stream(ROWS, size=64))[0]) == list(range(10)), "less than a batch: all of it"


def test_rows_by_index_are_enough() -> None:
    class Squares:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> dict[str, int]:
            return {"x": row, "y": row**2}

    first, second = source_pass(stream(Squares(), size=2))
    assert torch.equal(first["y"], first["x"] ** 2)
    assert sorted([*first["x"].tolist(), *second["x"].tolist()]) == [0, 1, 2, 3]


def test_loaders_lists_and_iterable_datasets_are_taken_as_they_are() -> None:
    assert one_pass(stream(DataLoader(ROWS, batch_size=5))) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    source = stream(Endless(), size=2)
    assert source.length is None
    assert one_pass(source) == one_pass(source) == [[0, 1], [2, 3], [4]]
    listed = stream(["text", 3])
    assert [next(listed) for _ in range(5)] == ["text", 3, "text", 3, "text"]


def test_tensors_in_nested_batches_go_to_the_device() -> None:
    batch = {"x": torch.ones(2), "more": [(torch.zeros(1), "name")], "length": 2}
    found = next(stream([batch], device="meta"))
    assert found["x"].device.type == found["more"][0][0].device.type == "meta"
    assert (found["more"][0][1], found["length"]) == ("name", 2)
    assert batch["x"].device.type == "cpu"


def images(seed: int = 0) -> BatchStream:
    pixels = torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1).expand(20, 1, 4, 4).contiguous()
    draw = torch.Generator().manual_seed(seed)
    return BatchStream(ImageSet(pixels, torch.arange(20)), 6, Augmentation(mean=(0.5,), std=(0.3,)), draw)


def loader(batch_size: int = 3) -> DataLoader[Any]:
    return DataLoader(ROWS, batch_size, shuffle=True, generator=torch.Generator().manual_seed(5))


def sampled() -> DataLoader[Any]:
    order = RandomSampler(ROWS, num_samples=7, generator=torch.Generator().manual_seed(2))
    return DataLoader(ROWS, batch_size=2, sampler=order)


class Drawn:
    """Batches that are drawn as they are asked for; how many is not known before."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(4)

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.randn(2, generator=self.generator) for _ in range(4))


SOURCES: dict[str, Callable[[], Any]] = {
    "dataset": lambda: ROWS,
    "loader": loader,
    "sampler": sampled,
    "iterable": Endless,
    "drawn": Drawn,
    "list": lambda: [torch.tensor([1]), torch.tensor([2]), torch.tensor([3])],
    "images": images,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 7])
def test_restored_stream_continues_bit_for_bit(name: str, taken: int) -> None:
    whole, first, second = (stream(SOURCES[name]()) for _ in range(3))
    expected = [next(whole) for _ in range(taken + 6)]
    for _ in range(taken):
        next(first)
    at_end = first.at_end if taken else None
    state = first.state_dict()
    second.load_state_dict(state)
    second.restore_generators(state)
    if taken:
        assert second.at_end == at_end
    found = [next(second) for _ in range(6)]
    for ours, theirs in zip(found, expected[taken:], strict=True):
        ours, theirs = (batch if isinstance(batch, list | tuple) else [batch] for batch in (ours, theirs))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", SOURCES)
def test_peek_takes_no_batch(name: str) -> None:
    peeked, plain = (stream(SOURCES[name]()) for _ in range(2))
    assert peeked.peek() is not None
    for _ in range(4):
        ours, theirs = (torch.as_tensor(batch[0]) for batch in (next(peeked), next(plain)))
        assert torch.equal(ours, theirs)


def test_position_beyond_a_shorter_pass_is_an_error() -> None:
    long, short = stream([torch.ones(1)] * 5), stream([torch.ones(1)] * 2)
    for _ in range(4):
        next(long)
    with pytest.raises(ValueError, match="4 batches"):
        short.load_state_dict(long.state_dict())


@pytest.mark.parametrize(
    "source",
    [
        (torch.ones(3, 2), torch.ones(3)),
        {"x": torch.ones(3)},
        torch.ones(3, 2),
        7,
        (row for row in range(3)),
    ],
    ids=["tuple", "dict", "tensor", "number", "generator"],
)
def test_sources_without_batches_are_refused(source: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        stream(source)
    assert caught.value.field == "train_data"


@pytest.mark.parametrize("make", [lambda: stream(TensorDataset(Tensor())), lambda: next(stream([]))])
def test_empty_data_is_an_error(make: Callable[[], object]) -> None:
    with pytest.raises(DataError, match="train_data"):
        make()


# -- single rows and loaders that are used twice -------------------------------------------------------------------


def rows_of_pass(source: Stream) -> list[int]:
    return [len(torch.as_tensor(batch[0] if isinstance(batch, list) else batch)) for batch in source_pass(source)]


def lengths(source: Stream) -> list[list[int]]:
    """Rows per batch in three passes."""
    return [rows_of_pass(source) for _ in range(3)]


NINE = TensorDataset(torch.arange(9))
SINGLE: dict[str, Callable[[], Any]] = {
    "list": lambda: [torch.ones(4), torch.ones(4), torch.ones(1)],
    "loader": lambda: DataLoader(NINE, 4),
    "shuffled loader": lambda: DataLoader(NINE, 4, shuffle=True, generator=torch.Generator().manual_seed(0)),
    "rows without a number": lambda: DataLoader(Nine(), 4),
}


class Misjudged:
    """Batches whose number is not what ``len`` says, as of a sampler that estimates it."""

    def __init__(self, says: int, gives: int) -> None:
        self.says, self.gives = says, gives

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(self.gives, 2, 1))


@pytest.mark.parametrize(("says", "gives", "got"), [(5, 3, "3"), (3, 5, "more")])
def test_passes_of_another_length_are_an_error(says: int, gives: int, got: str) -> None:
    """An epoch would never end, or end in the middle of the next pass."""
    batches = stream(Misjudged(says, gives))
    for _ in range(min(says, gives)):
        next(batches)
    with pytest.raises(DataError, match=rf"^train_data must give {says} batches per pass, its len\(\), got {got}$"):
        next(batches)


class Nine(IterableDataset[int]):
    """Nine rows without a number."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(9))


def dropping(source: Any) -> Stream:
    return Stream(source, "train_data", 4, torch.Generator(), torch.device("cpu"), drop_single_rows=True)


@pytest.mark.parametrize("name", SINGLE)
def test_last_batch_of_one_row_is_dropped_once_said(name: str) -> None:
    with pytest.warns(RunWarning, match="train_data.*one row") as warned:
        found = lengths(dropping(SINGLE[name]()))
    assert found == [[4, 4]] * 3
    assert len({str(one.message) for one in warned}) == 1
    assert sum(rows_of_pass(stream(SINGLE[name]()))) == 9, "only if asked to"


@pytest.mark.parametrize("source", [[torch.ones(1)] * 3, DataLoader(NINE, 1), DataLoader(Nine(), 1)])
def test_batches_that_all_have_one_row_are_kept(source: Any) -> None:
    assert set(rows_of_pass(dropping(source))) == {1}
    assert rows_of_pass(dropping(DataLoader(NINE, 4, drop_last=True))) == [4, 4]
    assert rows_of_pass(dropping(ROWS)) == [4, 4]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_streams_of_one_loader_with_persistent_workers_do_not_disturb_each_other() -> None:
    one = DataLoader(ROWS, 2, num_workers=1, persistent_workers=True)
    first, second = stream(one), stream(one)
    found: list[list[int]] = []
    for _ in range(5):
        found.append(next(first)[0].tolist())
        next(second)
        second.peek()
    assert first.at_end
    assert second.at_end
    assert found == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    # its own iterator is still there for others
    assert [len(batch[0]) for batch in one] == [2] * 5
