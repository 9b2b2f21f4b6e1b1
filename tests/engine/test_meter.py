"""Seconds, device seconds and peak memory: what counts, and that all go on where they stood."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas.engine import SearchConfig, TrainConfig, resume_search, resume_training, run_search, run_training
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine import meter as module
from sgenas.engine.meter import MEASURED, Meter
from sgenas.errors import CheckpointError

CPU = torch.device("cpu")


class Clocks:
    """Stands for the clocks and the memory of a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.processor, self.memory = 100.0, 10.0, 1000
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.processor)
        monkeypatch.setattr(module, "peak_memory", lambda device: self.memory)


def values(*numbers: float) -> dict[str, float]:
    return dict(zip(MEASURED, numbers, strict=True))


def test_what_is_measured_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, meter = Clocks(monkeypatch), Meter(CPU)
    assert meter.read() == values(0, 0, 0)
    with meter:
        clocks.wall, clocks.processor, clocks.memory = 103.0, 15.0, 3000
        assert meter.read() == values(3, 5, 3000), "two cores can be busy for longer than the wall's time"
    clocks.wall, clocks.processor = 200.0, 100.0
    assert meter.read() == values(3, 5, 3000), "a pause does not count"
    with meter:
        clocks.wall, clocks.processor = 201.5, 100.25
        assert meter.read() == values(4.5, 5.25, 3000)


def test_another_process_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, meter = Clocks(monkeypatch), Meter(CPU)
    meter.go_on_from(values(7, 9, 5000))
    with meter:
        clocks.wall, clocks.processor = 101.0, 12.0
    assert meter.read() == values(8, 11, 5000), "the largest, not the sum"
    clocks.memory = 6000
    with meter:
        assert meter.read()["peak_memory_bytes"] == 6000
    for damaged in ({}, {"seconds": 1.0}, values(1, 2, 3) | {"seconds": [1]}):
        with pytest.raises((LookupError, TypeError)):
            meter.go_on_from(damaged)


def test_on_a_gpu_the_walls_seconds_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, reset = Clocks(monkeypatch), []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    device = torch.device("cuda", 0)
    with Meter(device) as meter:
        clocks.wall, clocks.processor = 104.0, 10.5
        assert meter.read() == values(4, 4, 1000)
    assert reset == [device]


@pytest.mark.parametrize("kind", ["search", "training"])
def test_a_stopped_run_adds_up(kind: str, small: Any, training: Any, tmp_path: Path) -> None:
    config: SearchConfig | TrainConfig = small() if kind == "search" else training()
    run: Any = run_search if kind == "search" else run_training
    resume: Any = resume_search if kind == "search" else resume_training
    asked = iter(range(1, 100))
    run(config, tmp_path, stop=lambda: next(asked) == 5)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    assert state["measured"].keys() == set(MEASURED)
    assert state["measured"]["seconds"] > 0
    checkpoints.save(path, state | {"measured": values(1000.0, 2000.0, 2**50)})
    last = resume(tmp_path).epochs[-1]
    assert 1000 < last["seconds"] < 1100
    assert 2000 < last["device_seconds"] < 2100
    assert last["peak_memory_bytes"] == 2**50
    checkpoints.save(path, state | {"measured": {"seconds": 1.0}})
    with pytest.raises(CheckpointError, match="does not fit this"):
        resume(tmp_path)
