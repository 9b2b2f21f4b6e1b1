"""Each side of a search sees all of its rows in each epoch, also if both sides have the same source."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import module_search, net, rows, squared_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

import sgenas
from sgenas.data.augmentation import Augmentation
from sgenas.data.batches import BatchStream
from sgenas.data.images import ImageSet
from sgenas.errors import InvalidValueError, RunWarning
from sgenas.run.batches import Stream

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
COUNT, SIZE = 32, 8


class Numbered(Dataset[tuple[Tensor, Tensor]]):
    """Row i has the features [i / 10]."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([row / 10]), torch.tensor([1.0])


class Unnumbered(IterableDataset[Any]):
    """The same rows, without a number."""

    def __iter__(self) -> Any:
        yield from (Numbered()[row] for row in range(COUNT))


def loader(**more: Any) -> Any:
    return DataLoader(Numbered(), SIZE, **more)


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def two_loaders() -> tuple[Any, Any]:
    sampler = RandomSampler(Numbered(), generator=draw())
    return loader(sampler=sampler), loader(sampler=sampler)


def twice(source: Any) -> tuple[Any, Any]:
    return source, source


PERSISTENT = {"num_workers": 1, "persistent_workers": True}
SAME: dict[str, Callable[[], tuple[Any, Any]]] = {
    "persistent workers": lambda: twice(loader(**PERSISTENT, shuffle=True, generator=draw())),
    "workers": lambda: twice(loader(num_workers=1)),
    "loader": lambda: twice(loader(shuffle=True, generator=draw())),
    "dataset": lambda: twice(Numbered()),
    "list": lambda: twice(list(loader())),
    "rows without a number": lambda: twice(Unnumbered()),
    "shared sampler": two_loaders,
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Rows that each side has taken, in order."""
    found: dict[str, list[int]] = defaultdict(list)
    plain = Stream.__next__

    def noting(self: Stream) -> Any:
        batch = plain(self)
        found[self._name].extend((batch[0].flatten() * 10).round().int().tolist())
        return batch

    monkeypatch.setattr(Stream, "__next__", noting)
    return found


@pytest.mark.parametrize("name", SAME)
def test_both_sides_see_every_row_once_per_epoch(name: str, seen: dict[str, list[int]]) -> None:
    train, val = SAME[name]()
    result = module_search(train_data=train, val_data=val, epochs=3, batch_size=SIZE)
    assert [row["step"] for row in result.history] == [4, 8, 12]
    assert set(seen) == {"train_data", "val_data"}
    for side in seen.values():
        epochs = [Counter(side[start : start + COUNT]) for start in range(0, len(side), COUNT)]
        assert epochs == [Counter(range(COUNT))] * 3


@pytest.mark.parametrize("name", ["persistent workers", "loader", "shared sampler"])
@pytest.mark.parametrize("steps", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_search_on_one_source_resumes_exactly(name: str, steps: int, tmp_path: Path) -> None:
    def run(path: str, **settings: Any) -> None:
        train, val = SAME[name]()
        module_search(train_data=train, val_data=val, epochs=2, run_dir=tmp_path / path, **settings)

    run("whole")
    run("run", stop=stop_after(steps))
    run("run")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


class OneIterator:
    """Gives the same iterator for every pass."""

    def __init__(self) -> None:
        self._batches = iter(list(loader()))

    def __iter__(self) -> Any:
        return self._batches


def images() -> BatchStream:
    pixels = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    return BatchStream(ImageSet(pixels, torch.arange(8)), 4, Augmentation(mean=(0.5,), std=(0.3,)), draw())


class Restarting(IterableDataset[Any]):
    """Its own iterator, which begins again with each pass."""

    def __iter__(self) -> Any:
        self._batches = iter(list(loader()))
        return self

    def __next__(self) -> Any:
        return next(self._batches)


@pytest.mark.parametrize("make", [OneIterator, images, Restarting])
def test_source_whose_batches_both_sides_would_take_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidValueError, match="train_data") as caught:
        module_search(train_data=(source := make()), val_data=source)
    assert caught.value.field == "val_data"
    assert "\n" not in str(caught.value)


# -- batch normalization ----------------------------------------------------------------------------------------


def batches(*sizes: int) -> list[Any]:
    return [rows(size, seed)[:] for seed, size in enumerate(sizes)]


def test_last_batch_of_one_row_is_left_out_with_batch_normalization() -> None:
    model = net(nn.BatchNorm1d(8))
    with pytest.warns(RunWarning) as warned:
        result = module_search(model, train_data=batches(8, 8, 1), val_data=DataLoader(rows(9), 4), epochs=3)
    assert {str(one.message).split(":")[0] for one in warned} == {"train_data", "val_data"}
    assert result.history[-1]["step"] == 6
    with pytest.warns(RunWarning, match="train_data"):
        result.derive()
    same = module_search(model, train_data=batches(8, 8), val_data=DataLoader(rows(8), 4), epochs=3)
    assert torch.equal(result.alphas["whose"], same.alphas["whose"])
    assert module_search(train_data=batches(8, 1), val_data=batches(8), epochs=1).history[0]["step"] == 2


def test_training_leaves_it_out_too() -> None:
    network = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.warns(RunWarning, match="train_data"):
        result = sgenas.train(
            network, DataLoader(rows(9), 4), batches(4, 1), squared_error, epochs=2, progress=False, device="cpu"
        )
    assert result.history[-1]["step"] == 4


@pytest.mark.parametrize("side", ["train_data", "val_data"])
def test_batches_of_one_row_alone_are_refused_with_batch_normalization(side: str) -> None:
    with pytest.raises(InvalidValueError, match="batch normalization") as caught:
        module_search(net(nn.BatchNorm1d(8)), **{side: batches(1, 1)})
    assert caught.value.field == "batch_size"
    assert "\n" not in str(caught.value)
