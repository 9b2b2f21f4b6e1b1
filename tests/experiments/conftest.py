import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgenas.experiments import presets
from sgenas.experiments.grid import Grid, Place, plan
from sgenas.experiments.outcome import Outcome, write_outcome

COMMAND = ("2026-11-24T10:00:00+00:00", "sgenas table1 --preset smoke --out OUT")
# not fewer channels than the 8 of smoke: PC-DARTS divides them by 4, and a part has at least 2
TINY_SEARCH = {"epochs": 2, "train_images": 60, "batch_size": 10, "layers": 3, "nodes": 1}
TINY_TRAINING = {
    "epochs": 2,
    "train_images": 40,
    "test_images": 30,
    "batch_size": 20,
    "channels": 2,
}
"""Three steps a search epoch and two a training epoch, about 20 ms each."""


def shrink_smoke() -> None:
    """Makes the preset smoke as small as can be, in this process."""
    smoke = presets.PRESETS["smoke"]
    presets.PRESETS["smoke"] = dataclasses.replace(
        smoke, search={**smoke.search, **TINY_SEARCH}, training={**smoke.training, **TINY_TRAINING}
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`shrink_smoke` for a test."""
    monkeypatch.setitem(presets.PRESETS, "smoke", presets.PRESETS["smoke"])
    shrink_smoke()


@pytest.fixture
def grid(tiny: None, tmp_path: Path) -> Grid:
    """A tiny grid on disk, two seeds."""
    made, _ = plan(tmp_path / "grid", "smoke", (), (0, 1), COMMAND)
    made.save()
    return made


def environment(**more: Any) -> dict[str, Any]:
    """Of a run, as `figures_of` keeps it."""
    return {
        "sgenas": "0.1.0",
        "torch": "2.14.1",
        "python": "3.11.7",
        "platform": "Linux-6-x86_64",
        "cores": 2,
        "device": "cpu",
        "device_name": "x86_64",
        "threads": 1,
        "git_commit": "0123456789abcdef",
        "started": "2026-11-24T10:00:00+00:00",
    } | more


def _figures(accuracy: float, **more: Any) -> dict[str, Any]:
    values = {"params": 1_500_000, "seconds": 1800.0, "forward": 1234, "backward": 1230} | more
    last = {"seconds": values["seconds"], "forward": values["forward"], "backward": values["backward"]}
    return {
        "test_accuracy": accuracy,
        "best_test_accuracy": accuracy,
        "test_images": 100,
        "params": values["params"],
        "search": {"environment": environment(), "last": last},
        "training": {"environment": environment(), "last": last},
    }


@pytest.fixture
def done() -> Callable[..., None]:
    """done(place, accuracy, params=..., seconds=...): makes a place that looks done."""

    def make(place: Place, accuracy: float, **figures: Any) -> None:
        place.training_folder.mkdir(parents=True, exist_ok=True)
        (place.training_folder / "metrics.jsonl").write_text("")
        outcome = Outcome("done", "2026-11-24T12:00:00+00:00", figures=_figures(accuracy, **figures))
        write_outcome(place, outcome)

    return make


@pytest.fixture
def failed() -> Callable[[Place, str], None]:
    """failed(place, reason): makes a place that has failed in its search."""

    def make(place: Place, reason: str) -> None:
        place.folder.mkdir(parents=True, exist_ok=True)
        write_outcome(place, Outcome("failed", "2026-11-24T11:00:00+00:00", "search", reason))

    return make
