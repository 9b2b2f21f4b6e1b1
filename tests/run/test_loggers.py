"""Loggers: metrics.jsonl, TensorBoard, Weights & Biases, also of runs that resume under a changed clock."""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same_runs import assert_same_runs, rows
from stopping import stop_after
from tiny_searches import module_search, unstarted

from sgenas.errors import InvalidValueError, RunDirError
from sgenas.run.loggers import LOGGERS

ROW = {"kind": "step", "step": 1, "seconds": 1.0}


def search(path: Path | None, **settings: Any) -> Any:
    return module_search(run_dir=path, log_every=1, **settings)


@pytest.fixture
def travel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float, str], None]]:
    """Sets the system clock forward or back by so many hours, and the time zone."""
    real = time.time
    with monkeypatch.context() as patch:

        def to(hours: float, zone: str) -> None:
            patch.setattr(time, "time", lambda: real() + 3600 * hours)
            patch.setenv("TZ", zone)
            time.tzset()

        yield to
    time.tzset()


def events(path: Path, tag: str) -> list[Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = EventAccumulator(str(path / "tensorboard"))
        found.Reload()
        return list(found.Scalars(tag))


def test_rows_are_flat_and_dated_by_the_runs_own_seconds(tmp_path: Path) -> None:
    result = search(tmp_path / "run")
    found = rows(tmp_path / "run")
    assert [(row["kind"], row["epoch"], row["step"]) for row in found] == [
        *(("step", 0, step) for step in range(1, 5)),
        ("epoch", 0, 4),
        *(("step", 1, step) for step in range(5, 9)),
        ("epoch", 1, 8),
    ]
    assert {"inner_loss", "outer_loss", "direct_norm", "indirect_norm", "alpha_min", "alpha_max", "lr"} < set(found[0])
    assert [row for row in found if row["kind"] == "epoch"] == list(result.history)
    for name in ("inner_loss", "outer_loss", "weight_grad_norm"):
        mean = sum(row[name] for row in found[:4]) / 4
        assert found[4][name] == pytest.approx(mean, rel=1e-5)


def test_lines_beyond_the_last_checkpoint_are_cut_off(tmp_path: Path) -> None:
    """As after a kill: the log is ahead of the checkpoint, its last line half written."""
    search(tmp_path / "whole")
    search(tmp_path / "killed", stop=stop_after(6))
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as log:
        log.write(b'{"kind": "step", "epoch": 1, "step": 7}\n{"kind": "st')
    search(tmp_path / "killed")
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("damage", ["shorter", "other rows", "link"])
def test_log_that_does_not_match_the_checkpoint_is_an_error(damage: str, tmp_path: Path) -> None:
    search(tmp_path, stop=stop_after(6))
    log = tmp_path / "metrics.jsonl"
    if damage == "shorter":
        log.write_bytes(b"")
    elif damage == "other rows":
        log.write_bytes(b"[" * log.stat().st_size)
    else:
        log.rename(tmp_path / "target")
        log.symlink_to(tmp_path / "target")
    with pytest.raises(RunDirError, match=r"metrics\.jsonl") as caught:
        search(tmp_path)
    assert "\n" not in str(caught.value)


def test_long_runs_log_less_often() -> None:
    def every(**settings: Any) -> int:
        return unstarted(lambda: module_search(**settings)).log_every

    # four steps per epoch
    assert every(epochs=50) == 10
    assert every(epochs=25_000) == 10
    assert every(epochs=25_001) == 11
    assert every(epochs=25_001, log_every=2) == 2


def test_tensorboard_has_every_row_once_and_in_order(tmp_path: Path, travel: Any) -> None:
    path = tmp_path / "run"
    travel(0, "EAST-14")
    search(path, loggers=["tensorboard"], stop=stop_after(3))
    for hours, zone in ((-1, "WEST+12"), (24, "UTC0")):
        travel(hours, zone)
        assert not search(path, loggers=["tensorboard"], stop=stop_after(1)).finished
    travel(-2, "WEST+12")
    search(path, loggers=["tensorboard"])
    found = rows(path)
    assert [row["seconds"] for row in found] == sorted(row["seconds"] for row in found)
    steps = [row for row in found if row["kind"] == "step"]
    logged = events(path, "step/inner_loss")
    assert [event.step for event in logged] == [row["step"] for row in steps] == list(range(1, 9))
    np.testing.assert_allclose([event.value for event in logged], [row["inner_loss"] for row in steps], rtol=1e-6)
    dates = np.array([event.wall_time for event in logged])
    seconds = np.array([row["seconds"] for row in steps])
    np.testing.assert_allclose(dates - dates[0], seconds - seconds[0], atol=2e-3)
    assert [event.step for event in events(path, "epoch/outer_loss")] == [4, 8]


@pytest.mark.parametrize(
    "row", [3, {}, [], *({**ROW, **other} for other in ({"step": "x", "a": 1.0}, {"seconds": "x"}))], ids=repr
)
def test_rows_that_tensorboard_cannot_repeat_are_an_error(row: Any, tmp_path: Path) -> None:
    search(tmp_path, loggers=["tensorboard"], stop=stop_after(4))
    log = tmp_path / "metrics.jsonl"
    log.write_text(json.dumps(row).ljust(log.stat().st_size - 1) + "\n")
    with pytest.raises(RunDirError, match=r"metrics\.jsonl"):
        search(tmp_path, loggers=["tensorboard"])


def test_own_logger_gets_the_kept_rows_and_every_new_one(tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def open(self, directory: Path, rows: list[dict[str, Any]]) -> None:
            self.calls.append(("open", directory, len(rows)))

        def write(self, row: dict[str, Any]) -> None:
            self.calls.append(row["step"])

        def flush(self) -> None:
            self.calls.append("flush")

        def close(self) -> None:
            self.calls.append("close")

    first, second = Kept(), Kept()
    search(tmp_path, loggers=[first], epochs=1, checkpoint_every=2)
    # the step row and the epoch's row of step 4
    assert first.calls == [("open", tmp_path, 0), "flush", 1, 2, "flush", 3, 4, 4, "flush", "close"]
    path = tmp_path / "stopped"
    with pytest.raises(ZeroDivisionError):
        search(path, loggers=[second], stop=lambda: bool(1 / 0))
    assert second.calls[-1] == "close"
    third, path = Kept(), tmp_path / "resumed"
    search(path, stop=stop_after(3), epochs=1)
    search(path, loggers=[third], epochs=1)
    assert third.calls[:2] == [("open", path, 3), 4]


def test_unknown_logger_is_refused() -> None:
    with pytest.raises(InvalidValueError) as caught:
        search(None, loggers=["tensorbord"])
    assert caught.value.field == "loggers"
    assert set(LOGGERS) >= {"tensorboard", "wandb"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_works_offline_and_resumes_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = tmp_path / "run"
    search(path, loggers=["wandb"], stop=stop_after(3))
    identity = (path / "wandb-id.txt").read_text()
    assert search(path, loggers=["wandb"]).finished
    assert (path / "wandb-id.txt").read_text() == identity
    logs = list((path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert logs
    content = b"".join(log.read_bytes() for log in logs)
    assert b"step/inner_loss" in content
    assert b"epoch/outer_loss" in content
