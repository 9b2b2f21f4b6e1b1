"""The same seed gives the same search, whatever the global generators say, and leaves them alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from global_state import twice, untouched
from same_runs import assert_same_runs
from tiny_searches import cells, module_search, net, rows
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from sgenas import SGE, EvolutionStrategies, Unrolled, tree
from sgenas.errors import InvalidValueError
from sgenas.searching.callbacks import HessianEigenvalue
from sgenas.spaces import NasBench201Settings


@pytest.fixture(autouse=True)
def _imported() -> None:
    """The import of rich.style alone draws a number."""
    import rich.style  # noqa: F401


def test_guard_of_these_tests_sees_who_draws() -> None:
    import random

    import numpy as np

    for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
        with pytest.raises(AssertionError), untouched():
            draw()


CELLS: dict[str, dict[str, Any]] = {
    "first order": {"eigenvalue_every": 1, "data": {"cutout": 2}},
    "sge": {"estimator": SGE(num_directions=2, smoothing="auto", directions="antithetic")},
    "gdas": {"method": "gdas", "estimator": EvolutionStrategies(num_directions=2)},
    "drnas": {"method": "drnas", "warmup_epochs": 0},
    "nasbench201": {"space": NasBench201Settings(channels=2, layers=1), "estimator": Unrolled()},
}


@pytest.mark.parametrize("name", CELLS)
def test_cell_search_depends_on_its_seed_alone(name: str, tmp_path: Path) -> None:
    changes = {"epochs": 1, "data": {}} | CELLS[name]
    space = changes.pop("space", None)
    config = cells(**changes)
    config = config if space is None else replace(config, space=space)
    paths = iter((tmp_path / "a", tmp_path / "b"))
    twice(lambda: config.run(next(paths), progress=False))
    assert_same_runs(tmp_path / "a", tmp_path / "b")


class Rows(IterableDataset[Any]):
    """Rows without a number."""

    def __iter__(self) -> Iterator[Any]:
        return iter(rows(32))


def loader(workers: int) -> Any:
    draw = torch.Generator().manual_seed(5)
    return DataLoader(rows(32), 8, shuffle=True, generator=draw, num_workers=workers)


SOURCES = {"rows": rows, "without a number": Rows, "loader": lambda: loader(0), "workers": lambda: loader(2)}


@pytest.mark.parametrize("source", SOURCES)
def test_module_search_depends_on_its_seed_alone(source: str) -> None:
    model = net(nn.BatchNorm1d(8))
    estimator = SGE(num_directions=2, smoothing=0.1)

    def run(seed: int = 0) -> Any:
        callbacks = [HessianEigenvalue([rows(8)[:]])]
        data = {"train_data": SOURCES[source](), "val_data": SOURCES[source]()}
        found = module_search(model, **data, seed=seed, estimator=estimator, callbacks=callbacks)
        eigenvalues = [torch.tensor(row["eigenvalue"]) for row in found.history]
        return [found.alphas, found.weights, eigenvalues, found.derive().state_dict()]

    first, second = (tree.tensors(found) for found in twice(run))
    assert all(map(torch.equal, first, second))
    assert not all(map(torch.equal, first, tree.tensors(run(seed=1))))


def test_deterministic_search_equals_a_plain_one_here(tmp_path: Path) -> None:
    for name, deterministic in (("a", False), ("b", True)):
        module_search(run_dir=tmp_path / name, deterministic=deterministic)
        assert not torch.are_deterministic_algorithms_enabled()
    assert_same_runs(tmp_path / "a", tmp_path / "b")


def test_deterministic_search_names_the_operation_it_cannot_have() -> None:
    class Put(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x).put_(torch.arange(x.numel()), x.detach(), accumulate=False) + x

    with pytest.raises(InvalidValueError, match="put") as caught:
        module_search(net(Put()), deterministic=True)
    assert caught.value.field == "deterministic"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_search_is_repeated_exactly(tmp_path: Path) -> None:
    for name in "ab":
        cells(device="cuda", estimator=SGE(num_directions=2)).run(tmp_path / name, progress=False)
    assert_same_runs(tmp_path / "a", tmp_path / "b")
