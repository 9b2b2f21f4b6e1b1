"""No part of the library draws from a global generator, seeds one, or depends on one.

Searches are in tests/engine/test_deterministic.py, image files in tests/data, each of which has a guard.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from global_state import disturb, untouched
from readers import finished_run
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import sgenas
from sgenas.bilevel import (
    SGD,
    SGE,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.directions import KINDS
from sgenas.bilevel.toy import Quadratic
from sgenas.experiments.lab import LabSettings, run_lab
from sgenas.report import save_all
from sgenas.report.lab_record import read_lab
from sgenas.trees import Tree


@pytest.fixture(autouse=True)
def _imported() -> None:
    """The import of rich.style alone draws a number."""
    import rich.style  # noqa: F401


def twice(run: Callable[[], Any]) -> list[Any]:
    """What `run` gives with two different states of the global generators, which it leaves as they are."""
    found = []
    for seed in (1, 2):
        disturb(seed)
        with untouched():
            found.append(run())
    return found


def test_the_guard_sees_who_draws() -> None:
    import random

    import numpy as np

    for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
        with pytest.raises(AssertionError), untouched():
            draw()


ESTIMATORS: list[Estimator] = [
    *(FirstOrder(), FiniteDifference(), Unrolled(), Neumann(), ConjugateGradient()),
    *(EvolutionStrategies(4, directions=kind) for kind in KINDS),
    *(SGE(4, directions=kind) for kind in KINDS),
    *(SGE(4, computation=name) for name in ("loop", "streamed", "vectorised", "directional", "difference")),
    SGE(4, smoothing="auto", blocks="table", control_variate=("finite-difference", "memory")),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_estimators(estimator: Estimator) -> None:
    def run() -> Tree:
        draw = torch.Generator().manual_seed(0)
        toy = Quadratic.random(draw)
        problem = toy.problem(SGD(0.1))
        batches = [torch.randn(7, generator=draw, dtype=torch.float64) for _ in range(3)]
        start = problem.init(toy.weights)
        return estimator(problem, start, toy.alphas, batches[:2], batches[2], generator=draw).grad

    first, second = twice(run)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Rows without a number."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.linspace(-1, 1, 32).reshape(32, 1))


def rows() -> TensorDataset:
    return TensorDataset(torch.linspace(-1, 1, 32).reshape(32, 1))


def loader(workers: int) -> Any:
    draw = torch.Generator().manual_seed(5)
    return DataLoader(rows(), 8, shuffle=True, generator=draw, num_workers=workers)


@pytest.mark.parametrize(
    "source",
    [rows, Stream, lambda: loader(0), lambda: loader(2)],
    ids=["rows", "stream", "loader", "workers"],
)
def test_searches_in_modules(source: Callable[[], Any], tmp_path: Path) -> None:
    def loss(model: Callable[..., Tensor], batch: Any) -> Tensor:
        x = batch if isinstance(batch, Tensor) else batch[0]
        return (model(x) - x.abs()).square().mean()

    torch.manual_seed(0)
    choice = sgenas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="activation")
    model = nn.Sequential(nn.Linear(1, 4), choice, nn.BatchNorm1d(4), nn.Linear(4, 1))

    def run() -> list[Any]:
        space = sgenas.ModuleSpace(model)
        found = sgenas.search(space, source(), source(), loss, epochs=2, batch_size=8, progress=False)
        return [found.history[-1]["alphas"], found.derive().state_dict(), found.derive("fresh").state_dict()]

    first, second = twice(run)
    assert first[0] == second[0]
    for ours, theirs in zip(first[1:], second[1:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_reports(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    save_all(tmp_path / "run")  # what is drawn first imports a lot

    def run() -> bytes:
        save_all(tmp_path / "run")
        return (tmp_path / "run" / "cell.svg").read_bytes()

    first, second = twice(run)
    assert first == second


def test_the_laboratory(tmp_path: Path) -> None:
    settings = LabSettings("quadratic", ("sge", "first-order"), moments=(0, 2), inner_steps=(1,), batches=1)
    names = iter("ab")

    def run() -> list[Any]:
        out = tmp_path / next(names)
        assert run_lab(settings, out).finished
        return [
            {name: value for name, value in row.items() if "seconds" not in name}
            for row in read_lab(out)["rows"]
        ]

    first, second = twice(run)
    assert first == second
    assert len(first) == 4
