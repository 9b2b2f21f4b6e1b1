"""Training runs on several processes, which torchrun starts on this machine: they equal those on one."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from same_runs import assert_same_runs, rows
from torchrun import Torchrun

from sgenas.digests import digest
from sgenas.errors import InvalidValueError
from sgenas.run.checkpoint import load_checkpoint
from sgenas.run.distributed import Processes
from sgenas.training import TrainConfig

Make = Callable[..., TrainConfig]


@pytest.mark.slow
def test_two_processes_train_as_one(training: Make, torchrun: Torchrun, tmp_path: Path) -> None:
    """Drop path, batch normalization and a moving average; a stop that one asks for; batches that differ."""
    config = training(data={"data_parallel": 2})
    config.run(tmp_path / "alone", progress=False)
    shared, stopped = ({"config": config.to_dict(), "run_dir": tmp_path / name} for name in ("shared", "stopped"))
    out = torchrun.done(2, shared, stopped | {"stop": 4}, {"unseeded": True})
    assert_same_runs(tmp_path / "alone", tmp_path / "shared")
    assert json.loads((tmp_path / "shared" / "config.json").read_text())["environment"]["processes"] == 2
    assert [line[:14] for line in out if "same first batch" in line] == ["0 ProcessError", "1 ProcessError"]
    assert len(out) == 2
    # resumed on one
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint.safetensors")["step"] == 4
    assert config.run(tmp_path / "stopped", progress=False).finished
    assert_same_runs(tmp_path / "alone", tmp_path / "stopped")


def test_number_of_processes_divides_that_of_shards(training: Make) -> None:
    for shards, processes in ((1, 2), (2, 4), (4, 3)):
        with pytest.raises(InvalidValueError) as caught:
            training(data={"data_parallel": shards}).run(processes=Processes(0, processes), progress=False)
        assert caught.value.field == "data_parallel"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_training_on_all(
    victim: int, training: Make, torchrun: Torchrun, tmp_path: Path
) -> None:
    config = training(epochs=40, checkpoint_every=1, log_every=1, data={"data_parallel": 2})
    path = tmp_path / "run"
    started = torchrun.start(2, {"config": config.to_dict(), "run_dir": path})
    deadline = time.monotonic() + 120
    while not ((path / "metrics.jsonl").exists() and len(rows(path)) >= 7):
        assert time.monotonic() < deadline
        assert started.poll() is None
        time.sleep(0.01)
    torchrun.ranks(started)[victim].kill()
    out, _ = started.communicate(timeout=120)
    assert started.returncode != 0
    assert any(line.startswith(f"{1 - victim} ProcessError") for line in out.splitlines()), out
    assert config.run(path, progress=False).finished
    config.run(tmp_path / "alone", progress=False)
    assert_same_runs(tmp_path / "alone", path)


@pytest.mark.slow
def test_command_line_trains_and_resumes_on_two_processes(training: Make, torchrun: Torchrun, tmp_path: Path) -> None:
    config = training(data={"data_parallel": 2})
    config.run(tmp_path / "alone", progress=False)
    line = ("-m", "sgenas", "train", "--config", str(tmp_path / "alone"), "--out", str(tmp_path / "shared"))
    started = torchrun.program(2, *line)
    out, err = started.communicate(timeout=240)
    assert started.returncode == 0, err
    assert "in 2 processes" in out
    assert out.count("test accuracy of the last epoch") == 1, "only the first process speaks"
    # the command line has callbacks of its own
    kept = [load_checkpoint(tmp_path / name / "checkpoint.safetensors")["own"] for name in ("alone", "shared")]
    assert digest(kept[0]) == digest(kept[1])
    resumed = torchrun.program(2, "-m", "sgenas", "resume", str(tmp_path / "shared"))
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
