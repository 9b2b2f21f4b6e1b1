"""Searches on several processes, which torchrun starts on this machine: they equal those on one."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from same_runs import assert_same_runs, rows
from tiny_searches import cells, module_search
from torchrun import Torchrun

from sgenas import SGE
from sgenas.errors import InvalidValueError
from sgenas.run.checkpoint import load_checkpoint
from sgenas.run.distributed import Processes
from sgenas.searching.selection import EvolutionSelection, RandomSelection, TrainingSelection

SGE_ = SGE(num_directions=3, smoothing=0.1, computation="sequential")


def wait_for_rows(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (path / "metrics.jsonl").exists() and len(rows(path)) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} rows: {process.communicate()}")


def test_two_processes_equal_one(torchrun: Torchrun, tmp_path: Path) -> None:
    """Three directions for two processes: a search, a stop that one of them asks for, and what one refuses."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    module_search(estimator=SGE_, run_dir=tmp_path / "alone", log_every=1)
    shared, stopped = tmp_path / "shared", tmp_path / "stopped"
    out = torchrun.done(
        2,
        {"run_dir": shared},
        # (the last checkpoint is written while the other process goes on)
        {"run_dir": stopped, "stop": 3, "slow": True},
        {"run_dir": stopped},
        {"run_dir": tmp_path / "full"},
        {"run_dir": tmp_path / "other", "disturbed": True},
    )
    assert_same_runs(tmp_path / "alone", shared)
    assert_same_runs(tmp_path / "alone", stopped)
    assert json.loads((shared / "config.json").read_text())["environment"]["processes"] == 2
    # a process that came to other numbers is found at the end of the epoch
    lines = [line for line in out if "all processes must have the same alphas" in line]
    assert [line[:14] for line in lines] == ["0 ProcessError", "1 ProcessError"]
    # what is wrong for the first is raised on all
    lines = [line for line in out if "new or empty" in line]
    assert [line[:10] for line in lines] == ["0 RunDirEr", "1 InvalidV"]
    assert len(out) == 4
    assert load_checkpoint(tmp_path / "other" / "checkpoint.safetensors")["step"] < 8


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "separate": (2, {"estimator": SGE_, "inner_steps": 2, "trajectory_lr": 0.1}),
    "antithetic": (2, {"estimator": SGE(num_directions=2, directions="antithetic", computation="sequential")}),
    "control variate": (
        2,
        {"estimator": SGE(num_directions=3, control_variate="finite-difference", computation="sequential")},
    ),
    "auto directions": (2, {"estimator": SGE("auto", computation="sequential"), "epochs": 5}),
    "watched": (2, {"estimator": SGE_, "eigenvalue_every": 1, "warmup_epochs": 1, "method": "gdas"}),
    "shards": (2, {"estimator": SGE_, "data": {"data_parallel": 2}}),
    "weighted shards": (
        2,
        {"estimator": SGE_, "data": {"data_parallel": 2, "train_images": 50, "class_weights": "balanced"}},
    ),
    "first-order shards": (2, {"data": {"data_parallel": 2}}),
    "random selection": (2, {"estimator": SGE_, "selection": RandomSelection(candidates=3)}),
    "training selection": (
        2,
        {"estimator": SGE_, "selection": TrainingSelection(candidates=2, steps=4), "data": {"data_parallel": 2}},
    ),
    "evolution": (
        2,
        {
            "strategy": "evolution",
            "selection": EvolutionSelection(candidates=4, population=3, batches=2),
            "data": {"data_parallel": 2},
        },
    ),
    "more processes than directions": (3, {"estimator": SGE(num_directions=2, computation="sequential")}),
    "both axes": (4, {"estimator": SGE_, "data": {"data_parallel": 2}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_kind_of_search_equals_that_of_one_process(count: int, torchrun: Torchrun, tmp_path: Path) -> None:
    cases = {name: cells(**changes) for name, (needs, changes) in CASES.items() if needs == count}
    runs = [{"config": config.to_dict(), "run_dir": tmp_path / "shared" / name} for name, config in cases.items()]
    assert torchrun.done(count, *runs) == []
    for name, config in cases.items():
        config.run(tmp_path / "alone" / name, progress=False)
        assert_same_runs(tmp_path / "alone" / name, tmp_path / "shared" / name)


@pytest.mark.slow
def test_batched_directions_equal_up_to_rounding(torchrun: Torchrun, tmp_path: Path) -> None:
    """Five directions in one pass are other sums than two and three of them."""
    config = cells(epochs=1, estimator=SGE(num_directions=5, computation="batched"), log_every=1)
    config.run(tmp_path / "alone", progress=False)
    torchrun.done(2, {"config": config.to_dict(), "run_dir": tmp_path / "shared"})
    for first, second in zip(rows(tmp_path / "alone"), rows(tmp_path / "shared"), strict=True):
        for name in ("inner_loss", "outer_loss", "direct_norm", "indirect_norm"):
            assert second[name] == pytest.approx(first[name], rel=0.02), name


@pytest.mark.slow
def test_any_number_of_processes_resumes(torchrun: Torchrun, tmp_path: Path) -> None:
    config = cells(estimator=SGE_, data={"data_parallel": 2})
    config.run(tmp_path / "alone", progress=False)
    run = {"config": config.to_dict(), "run_dir": tmp_path / "run", "stop": 2}
    torchrun.done(2, run)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["step"] == 2
    torchrun.done(3, run)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["step"] == 4
    assert config.run(tmp_path / "run", progress=False).finished
    assert_same_runs(tmp_path / "alone", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_search_on_all(victim: int, torchrun: Torchrun, tmp_path: Path) -> None:
    config = cells(epochs=12, checkpoint_every=1, log_every=1, estimator=SGE_)
    config.run(tmp_path / "alone", progress=False)
    path = tmp_path / "run"
    started = torchrun.start(2, {"config": config.to_dict(), "run_dir": path})
    wait_for_rows(path, 7, started)
    torchrun.ranks(started)[victim].kill()
    out, _ = started.communicate(timeout=120)
    assert started.returncode != 0
    assert any(line.startswith(f"{1 - victim} ProcessError") for line in out.splitlines()), out
    config.run(path, progress=False)
    assert_same_runs(tmp_path / "alone", path)


@pytest.mark.slow
def test_process_that_does_not_answer_is_given_up(torchrun: Torchrun, tmp_path: Path) -> None:
    config = cells(epochs=200, log_every=1, estimator=SGE_)
    path = tmp_path / "stuck"
    started = torchrun.start(2, {"config": config.to_dict(), "run_dir": path})
    wait_for_rows(path, 5, started)
    torchrun.ranks(started)[1].suspend()
    # 60 s of the worker, and torchrun gives the one that hangs half a minute before it kills it
    out, _ = started.communicate(timeout=200)
    assert started.returncode != 0
    assert any(line.startswith("0 ProcessError") for line in out.splitlines()), out


def test_estimators_that_draw_nothing_need_shards_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "_group", lambda self, members: None)
    for shards in (1, 3):
        with pytest.raises(InvalidValueError) as caught:
            module_search(processes=Processes(0, 2), batch_size=12, shards=shards)
        assert caught.value.field == "shards"
    assert torch.distributed.is_available()
