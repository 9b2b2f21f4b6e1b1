"""Seconds, device seconds and peak memory of a run."""

import time

import pytest
import torch
from same_runs import rows
from stopping import stop_after
from tiny_searches import module_search

from sgenas.errors import CheckpointError
from sgenas.run import meter as module
from sgenas.run.checkpoint import load_checkpoint, save_checkpoint
from sgenas.run.meter import MEASURED, Meter

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


def test_time_outside_of_with_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, meter = Clocks(monkeypatch), Meter(CPU)
    assert meter.read() == values(0, 0, 0)
    with meter:
        clocks.wall, clocks.processor, clocks.memory = 103.0, 15.0, 3000
        assert meter.read() == values(3, 5, 3000), "two cores can be busy for longer than the wall clock"
    clocks.wall, clocks.processor = 200.0, 100.0
    assert meter.read() == values(3, 5, 3000)
    with meter:
        clocks.wall, clocks.processor = 201.5, 100.25
        assert meter.read() == values(4.5, 5.25, 3000)


def test_another_process_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, meter = Clocks(monkeypatch), Meter(CPU)
    meter.resume_from(values(7, 9, 5000))
    with meter:
        clocks.wall, clocks.processor = 101.0, 12.0
    assert meter.read() == values(8, 11, 5000), "the largest peak, not the sum"
    for damaged in ({}, {"seconds": 1.0}, values(1, 2, 3) | {"seconds": [1]}):
        with pytest.raises((LookupError, TypeError)):
            meter.resume_from(damaged)


def test_device_seconds_of_a_gpu_are_wall_clock_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, reset = Clocks(monkeypatch), []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    device = torch.device("cuda", 0)
    with Meter(device) as meter:
        clocks.wall, clocks.processor = 104.0, 10.5
        assert meter.read() == values(4, 4, 1000)
    assert reset == [device]


def test_resumed_run_adds_up(tmp_path: object) -> None:
    path = tmp_path / "checkpoint.safetensors"
    module_search(run_dir=tmp_path, stop=stop_after(5))
    state = load_checkpoint(path)
    assert state["measured"].keys() == set(MEASURED)
    save_checkpoint(path, state | {"measured": values(1000.0, 2000.0, 2**50)})
    last = module_search(run_dir=tmp_path).history[-1]
    assert 1000 < last["seconds"] < 1100
    assert 2000 < last["device_seconds"] < 2100
    assert last["peak_memory_bytes"] == 2**50
    assert [row["seconds"] for row in rows(tmp_path)] == sorted(row["seconds"] for row in rows(tmp_path))
    save_checkpoint(path, state | {"measured": {"seconds": 1.0}})
    with pytest.raises(CheckpointError):
        module_search(run_dir=tmp_path)
