from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgenas.experiments.grid import Entry, Grid, GridSettings, Job, extend
from sgenas.experiments.outcome import Figures, Outcome, write_outcome
from sgenas.spaces.darts_space.published import published

COMMAND = ("2026-11-24T10:00:00+00:00", "sgenas table1 --preset smoke --out OUT")
PAPER_METHODS = ("darts", "pc-darts", "fair-darts", "beta-darts")


def tiny_entry(entry: Entry) -> Entry:
    """Two epochs of three steps in the search, two of two in the training, about 20 ms per step.

    Not fewer than 8 channels: PC-DARTS divides them by 4, and a part has at least 2.
    """
    images = replace(entry.search.data, train_images=60, batch_size=10)
    space = replace(entry.search.space, nodes=1)  # type: ignore[call-arg]
    search = replace(entry.search, epochs=2, warmup_epochs=0, data=images, space=space)
    images = replace(entry.training.data, train_images=40, test_images=30, batch_size=20)
    return replace(entry, search=search, training=replace(entry.training, epochs=2, channels=2, data=images))


def tiny_grid(path: Path, settings: GridSettings) -> Grid:
    """A grid on disk with tiny runs."""
    grid, _ = extend(path, settings, COMMAND)
    grid = Grid(path, replace(grid.plan, entries=tuple(map(tiny_entry, grid.plan.entries))))
    grid.save()
    return grid


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """The paper's methods, two seeds."""
    return tiny_grid(tmp_path / "grid", GridSettings("smoke", seeds=(0, 1), methods=PAPER_METHODS))


MACHINE = {
    "started": "2026-11-24T10:00:00+00:00",
    "device": "CPU (x86_64, 1 thread)",
    "machine": "Linux-6-x86_64, 2 cores",
    "versions": "sgenas 0.1.0 at 0123456789ab, torch 2.14.1, Python 3.11.7",
}


def figures(accuracy: float, **more: Any) -> Figures:
    values: dict[str, Any] = {"params": 1_500_000, "params_with_auxiliary": 1_600_000, "macs": 10}
    values |= {"search_seconds": 1800.0, "training_seconds": 1800.0, "forward": 1234.0, "backward": 1230.0}
    values |= {"genotype": published("darts-v2"), **MACHINE}
    return Figures(accuracy, accuracy, 100, **(values | more))


@pytest.fixture
def done() -> Callable[..., None]:
    """done(job, accuracy, params=..., search_seconds=...): makes a job look done."""

    def make(job: Job, accuracy: float, **more: Any) -> None:
        job.training_dir.mkdir(parents=True, exist_ok=True)
        (job.training_dir / "metrics.jsonl").write_text("")
        write_outcome(job, Outcome("2026-11-24T12:00:00+00:00", figures=figures(accuracy, **more)))

    return make


@pytest.fixture
def failed() -> Callable[[Job, str], None]:
    """failed(job, reason): makes a job look failed in its search."""

    def make(job: Job, reason: str) -> None:
        job.path.mkdir(parents=True, exist_ok=True)
        write_outcome(job, Outcome("2026-11-24T11:00:00+00:00", "search", reason))

    return make
