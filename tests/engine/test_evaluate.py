import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas.engine import TrainConfig, run_search, run_training
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine.evaluate import evaluate_run
from sgenas.errors import CheckpointError, ConfigError, RunFolderError

Make = Callable[..., TrainConfig]


@pytest.fixture
def run(training: Make, tmp_path: Path) -> Path:
    return run_training(training(), tmp_path / "run").path


def test_a_finished_training_reaches_its_logged_accuracy_again(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = evaluate_run(run)
    assert found.equal is True
    assert found.test_accuracy == found.logged_test_accuracy == last["test_accuracy"]
    assert found.test_loss == last["test_loss"]
    assert (found.test_images, found.epochs, found.step) == (60, 3, 9)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_log_that_says_something_else_is_noticed(run: Path) -> None:
    log = run / "metrics.jsonl"
    accuracy = evaluate_run(run).test_accuracy
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[-1]["test_accuracy"] = 0.987
    # not longer than it was: what lies behind the checkpoint's length is not read
    del lines[-1]["peak_memory_bytes"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate_run(run)
    assert (found.equal, found.logged_test_accuracy, found.test_accuracy) == (False, 0.987, accuracy)
    log.write_text("?" * 10000)
    with pytest.raises(RunFolderError, match="metrics.jsonl must hold the rows up to the checkpoint"):
        evaluate_run(run)


def test_in_the_middle_of_an_epoch_nothing_is_logged(training: Make, tmp_path: Path) -> None:
    asked = iter(range(1, 100))
    run_training(training(), tmp_path / "run", stop=lambda: next(asked) == 4)
    found = evaluate_run(tmp_path / "run")
    assert (found.epochs, found.step, found.logged_test_accuracy, found.equal) == (1, 4, None, None)


def test_the_device_is_chosen_where_it_is_tested(run: Path) -> None:
    """A run of a GPU that this machine has not."""
    head = json.loads((run / "config.json").read_text())
    head["config"]["device"] = "cuda:97"
    (run / "config.json").write_text(json.dumps(head))
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["config"]["device"] = "cuda:97"
    checkpoints.save(run / "checkpoint.pt", state)
    assert evaluate_run(run, device="cpu").equal is True
    with pytest.raises(ConfigError, match="--device must be auto or a device of this machine, got 'abacus'"):
        evaluate_run(run, device="abacus")


def test_what_is_no_training_is_refused(run: Path, small: Any, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="does not exist"):
        evaluate_run(tmp_path / "none")
    search = run_search(small(epochs=1), tmp_path / "search").path
    with pytest.raises(ConfigError, match="must be of a training run"):
        evaluate_run(search)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    checkpoints.save(run / "checkpoint.pt", state | {"images_digest": "0"})
    with pytest.raises(CheckpointError, match="made with other images than --data digits holds now"):
        evaluate_run(run)
    shutil.rmtree(run / "tensorboard")
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (run / name).unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        evaluate_run(run)
