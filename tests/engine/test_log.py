"""The log of a run that goes on: its order under a clock that is set back, and its size."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import stop_after
from torch import nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas.bilevel import FirstOrder
from sgenas.engine import resume_search, resume_training, run_search, run_training
from sgenas.engine.meter import MEASURED
from sgenas.engine.run_folder import RunFolder
from sgenas.engine.search import Search
from sgenas.errors import RunFolderError

Make = Callable[..., Any]
Same = Callable[[Path, Path], None]
RUNS = {
    "search": (run_search, resume_search, "small", "step/inner_loss"),
    "training": (run_training, resume_training, "training", "step/loss"),
}
"""name -> what runs and resumes it, the fixture with its settings, and a number of every step; 9 steps."""


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float, str], None]]:
    """Sets the clock on the wall forward or back by so many hours, and the time zone."""
    real = time.time
    with monkeypatch.context() as patch:

        def to(hours: float, zone: str) -> None:
            patch.setattr(time, "time", lambda: real() + 3600 * hours)
            patch.setenv("TZ", zone)
            time.tzset()

        yield to
    time.tzset()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def events_of(path: Path, tag: str) -> list[Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return list(events.Scalars(tag))


def board_sizes(path: Path) -> list[int]:
    """Bytes of the files of TensorBoard, from small to large."""
    return sorted(file.stat().st_size for file in (path / "tensorboard").iterdir())


@pytest.mark.parametrize("name", RUNS)
def test_a_clock_that_is_set_back_leaves_the_log_in_order(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, travel: Any, assert_same_runs: Same
) -> None:
    run, resume, settings, tag = RUNS[name]
    config, path = request.getfixturevalue(settings)(log_every=1), tmp_path / "run"
    run(config, tmp_path / "whole")
    travel(0, "EAST-14")
    run(config, path, stop=stop_after(5))
    for hours, zone in ((-1, "WEST+12"), (24, "UTC0"), (-1, "EAST-14")):
        travel(hours, zone)
        result = resume(path, stop=stop_after(1 if hours else 9))
    assert not result.finished
    travel(-2, "WEST+12")
    assert resume(path).finished
    assert_same_runs(tmp_path / "whole", path)

    rows = rows_of(path)
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 10))
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(row[measure] >= 0 for row in rows for measure in MEASURED if measure in row)
    events = events_of(path, tag)
    assert [event.step for event in events] == list(range(1, 10))
    # dated by the run's own seconds, whatever the clock said
    dates = np.array([event.wall_time for event in events])
    logged = np.array([row["seconds"] for row in rows if row["kind"] == "step"])
    np.testing.assert_allclose(dates - dates[0], logged - logged[0], atol=1e-3)


def test_a_search_in_a_module_does_not_look_at_the_clock(tmp_path: Path, travel: Any) -> None:
    torch.manual_seed(0)
    choice = sgenas.Choice({"linear": nn.Linear(2, 2), "skip": nn.Identity()}, name="block")
    data = TensorDataset(torch.randn(16, 2))
    seen: list[dict[str, Any]] = []

    def on_epoch(row: dict[str, Any]) -> None:
        seen.append(row)
        travel(-len(seen), "WEST+12")
        if len(seen) == 2:
            raise KeyboardInterrupt

    def search() -> Any:
        return sgenas.search(
            sgenas.ModuleSpace(nn.Sequential(nn.Linear(2, 2), choice)),
            data,
            data,
            lambda model, batch: model(batch[0]).square().mean(),
            estimator=FirstOrder(),
            epochs=4,
            batch_size=8,
            out=tmp_path / "run",
            on_epoch=on_epoch,
            progress=False,
        )

    with pytest.raises(KeyboardInterrupt):
        search()
    seconds = [row["seconds"] for row in search().history]
    assert len(seconds) == 4
    assert seconds[0] > 0
    assert seconds == sorted(seconds)


def test_dates_of_files_do_not_say_which_checkpoint_is_newer(small: Make, tmp_path: Path) -> None:
    run_search(small(), tmp_path / "run", stop=stop_after(5))
    folder = RunFolder(tmp_path / "run")
    os.utime(folder.checkpoint_path, (0, 0))
    os.utime(folder.previous_checkpoint_path, (2**31, 2**31))
    assert folder.read_checkpoint()["step"] == 5


@pytest.mark.parametrize("name", RUNS)
def test_however_often_a_run_goes_on_its_files_are_those_of_one_that_did_not(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run, resume, settings, _ = RUNS[name]
    config, path = request.getfixturevalue(settings)(log_every=1), tmp_path / "run"
    run(config, tmp_path / "whole")
    result = run(config, path, stop=stop_after(1))
    while not result.finished:
        result = resume(path, stop=stop_after(1))
    resume(path)
    names = [sorted(file.name for file in folder.iterdir()) for folder in (path, tmp_path / "whole")]
    assert names[0] == names[1]
    assert len(rows_of(path)) == len(rows_of(tmp_path / "whole"))
    assert board_sizes(path) == [0, *board_sizes(tmp_path / "whole")]


def test_a_board_that_is_open_sees_the_run_go_on(small: Make, tmp_path: Path, travel: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_search(small(log_every=1), tmp_path / "run", stop=stop_after(5))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/inner_loss")] == list(range(1, 6))
    # it looks for files with a later date in their names
    travel(1, "UTC0")
    resume_search(tmp_path / "run")
    events.Reload()
    assert [event.step for event in events.Scalars("step/inner_loss")] == list(range(1, 10))


ROW = {"kind": "step", "step": 1, "seconds": 1.0}


@pytest.mark.parametrize(
    "row", [3, {}, [], *({**ROW, **other} for other in ({"step": "x"}, {"seconds": "x"}, {"\ud800": 1.0}))]
)
def test_a_log_of_something_else_is_one_line(small: Make, tmp_path: Path, row: Any) -> None:
    run_search(small(), tmp_path / "run", stop=stop_after(4))
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(json.dumps(row).ljust(log.stat().st_size - 1) + "\n")
    with pytest.raises(RunFolderError, match=r"metrics.jsonl must hold the rows of a run: "):
        resume_search(tmp_path / "run")


def test_long_runs_log_less_often(small: Make, tmp_path: Path) -> None:
    def every(**settings: Any) -> int:
        return Search(small(**settings), RunFolder(tmp_path)).log_every

    # three steps an epoch
    assert every(log_every=None, epochs=50) == 10
    assert every(log_every=None, epochs=40_000) == 12
    assert every(log_every=None, epochs=40_001) == 13
    assert every(log_every=2, epochs=40_000) == 2
