"""Whole runs: the run directory, exact resume, determinism, divergence."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same_runs import assert_same_runs, rows
from stopping import stop_after
from torch.utils.data import TensorDataset

from sgenas.data import from_dataset, load
from sgenas.errors import CheckpointError, DivergenceError, InvalidValueError, RunDirError
from sgenas.run.checkpoint import load_checkpoint, save_checkpoint
from sgenas.spaces import Genotype
from sgenas.spaces.nasbench201_space.strings import from_string
from sgenas.training import TrainConfig, evaluate_run
from sgenas.training.objectives import PRECISIONS

Make = Callable[..., TrainConfig]
BENCHMARK_CELL = from_string("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|")


def test_training_fills_its_run_directory(training: Make, tmp_path: Path) -> None:
    config = training()
    result = config.run(tmp_path / "run", progress=False)
    assert result.finished
    assert result.path == tmp_path / "run"
    names = {path.name for path in result.path.iterdir()}
    checkpoints = {"checkpoint.safetensors", "checkpoint-previous.safetensors"}
    assert names - {"run.lock"} == {"config.json", "metrics.jsonl", "genotype.json"} | checkpoints
    head = json.loads((result.path / "config.json").read_text())
    assert head["kind"] == "training"
    assert TrainConfig.from_dict(head["config"]) == config
    assert head["environment"]["images"] == {"training": 96, "test": 60}
    assert head["environment"]["input"] == [1, 8, 8]
    assert Genotype.load(result.path / "genotype.json") == config.genotype == result.genotype

    found = rows(result.path)
    assert [(row["kind"], row["epoch"], row["step"]) for row in found] == [
        *(("step", 0, 2), ("step", 0, 3), ("epoch", 0, 3)),
        *(("step", 1, 4), ("step", 1, 6), ("epoch", 1, 6)),
        *(("step", 2, 8), ("step", 2, 9), ("epoch", 2, 9)),
    ]
    assert set(found[0]) == {"kind", "epoch", "step", "lr", "loss", "accuracy", "seconds"}
    last = found[-1]
    assert last == result.history[-1]
    assert {"train_loss", "train_accuracy", "test_loss", "test_accuracy"} < set(last)
    assert (last["forward"], last["backward"]) == (9, 9)
    assert last["drop_path"] == pytest.approx(0.2)
    accuracies = [row["test_accuracy"] for row in result.history]
    assert [row["best_test_accuracy"] for row in result.history] == list(np.maximum.accumulate(accuracies))


def test_training_learns_digits(training: Make) -> None:
    images = {"train_images": 400, "test_images": None, "cutout": 0}
    result = training(epochs=4, data=images, channels=8, drop_path=0.0, lr=0.2).run(progress=False)
    assert result.history[-1]["test_accuracy"] > 0.6, "chance is 0.1"
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


MODES: dict[str, dict[str, Any]] = {
    "everything": {},
    "plain": {"drop_path": 0.0, "ema": None, "schedule": "epoch", "warmup": 0, "momentum": 0.0},
    "benchmark": {"genotype": BENCHMARK_CELL, "layers": 1, "drop_path": None},
}
MODES["plain"]["nesterov"] = False


@pytest.mark.parametrize("mode", MODES)
def test_resumed_training_equals_an_uninterrupted_one(mode: str, training: Make, tmp_path: Path) -> None:
    config = training(**MODES[mode])
    config.run(tmp_path / "whole", progress=False)
    for steps in (1, 5):
        path = tmp_path / f"stopped-{steps}"
        assert not config.run(path, stop=stop_after(steps), progress=False).finished
        assert not config.run(path, stop=stop_after(2), progress=False).finished
        assert config.run(path, resume=True, progress=False).finished
        assert_same_runs(tmp_path / "whole", path)
    again = config.run(tmp_path / "whole", progress=False)
    assert again.finished
    assert len(again.history) == 3, "a finished training returns what it has"


def test_rows_after_the_last_checkpoint_are_written_again(training: Make, tmp_path: Path) -> None:
    training().run(tmp_path / "whole", progress=False)
    training().run(tmp_path / "killed", stop=stop_after(4), progress=False)
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as log:
        log.write(b'{"kind": "step", "epoch": 1, "step": 6}\n{"kind": "st')
    training().run(tmp_path / "killed", progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def test_run_directory_runs_again_from_its_config(training: Make, tmp_path: Path) -> None:
    training(deterministic=True).run(tmp_path / "a", progress=False)
    plain = json.loads((tmp_path / "a" / "config.json").read_text())["config"]
    TrainConfig.from_dict(plain).run(tmp_path / "b", progress=False)
    assert_same_runs(tmp_path / "a", tmp_path / "b")


def test_images_from_python_equal_those_by_name(training: Make, tmp_path: Path) -> None:
    whole = load("digits")
    parts = [TensorDataset(part.images, part.labels) for part in (whole.train, whole.test)]
    images = from_dataset(*parts, classes=whole.classes, name="mine", horizontal_flip=False)
    config = training(epochs=2)
    named, given = config.run(progress=False), config.run(tmp_path / "given", images=images, progress=False)
    assert [row["test_loss"] for row in named.history] == [row["test_loss"] for row in given.history]
    config.run(tmp_path / "stopped", images=images, stop=stop_after(2), progress=False)
    assert config.run(tmp_path / "stopped", images=images, progress=False).finished
    assert_same_runs(tmp_path / "given", tmp_path / "stopped")
    assert evaluate_run(tmp_path / "given", images=images).equal
    with pytest.raises(InvalidValueError, match="python:mine"):
        evaluate_run(tmp_path / "given")


def test_no_global_generator_is_used(training: Make) -> None:
    import rich.style  # noqa: F401  its import alone draws a number

    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    training().run(progress=False)
    assert states() == before


def test_diverging_training_raises_and_keeps_its_checkpoint(training: Make, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"is (nan|inf) at step 2 .*lr"):
        training(lr=1e30, grad_clip=None, warmup=0).run(tmp_path / "run", progress=False)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["step"] == 0


def test_run_directory_of_another_training_is_refused(training: Make, tmp_path: Path) -> None:
    training(epochs=2).run(tmp_path / "run", progress=False)
    with pytest.raises(RunDirError, match="seed"):
        training(epochs=2, seed=3).run(tmp_path / "run", progress=False)
    with pytest.raises(RunDirError, match="already"):
        training(epochs=2).run(tmp_path / "run", resume=False, progress=False)
    with pytest.raises(RunDirError, match="config.json"):
        training(epochs=2).run(tmp_path / "none", resume=True, progress=False)
    training(epochs=2, seed=3).run(tmp_path / "run", overwrite=True, progress=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["seed"] == 3


@pytest.mark.parametrize("part", ["network", "average", "optimizer", "train", "drop_path", "random"])
def test_checkpoint_with_other_parts_is_refused(part: str, training: Make, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoint.safetensors"
    training().run(tmp_path / "run", stop=stop_after(2), progress=False)
    state = load_checkpoint(path)
    state["own"][part] = {"other": torch.zeros(2)}
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="match"):
        training().run(tmp_path / "run", progress=False)


def test_checkpoint_of_other_images_is_refused(training: Make, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoint.safetensors"
    training().run(tmp_path / "run", stop=stop_after(2), progress=False)
    state = load_checkpoint(path)
    state["own"]["fingerprint"] = "0"
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="data"):
        training().run(tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match="images"):
        evaluate_run(tmp_path / "run")


def test_bf16_follows_ieee(training: Make) -> None:
    losses = {
        precision: [
            row["train_loss"] for row in training(precision=precision, device="cpu").run(progress=False).history
        ]
        for precision in PRECISIONS
    }
    assert losses["auto"] == losses["tf32"] == losses["ieee"], "on a CPU"
    assert losses["bf16"] != losses["ieee"]
    np.testing.assert_allclose(losses["bf16"], losses["ieee"], rtol=0.05)


SCRIPT = """
import json, sys, torch
from sgenas.training import TrainConfig
torch.set_num_threads(1)
TrainConfig.from_dict(json.loads(sys.argv[1])).run(sys.argv[2], progress=False)
"""
KILLS = int(os.environ.get("SGENAS_KILLS", "10"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_training_equals_an_uninterrupted_one(training: Make, tmp_path: Path) -> None:
    config = training(epochs=60, checkpoint_every=1, log_every=3)
    config.run(tmp_path / "whole", progress=False)
    path, draw, kills = tmp_path / "killed", random.Random(0), 0
    newest = path / "checkpoint.safetensors"
    while True:
        before = newest.stat().st_mtime_ns if newest.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(config.to_dict()), str(path)])
        while kills < KILLS and process.poll() is None:
            if newest.exists() and newest.stat().st_mtime_ns != before:
                time.sleep(draw.uniform(0, 0.2))
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        if process.wait() == 0:
            break
        assert process.returncode == -9
    assert kills == KILLS
    assert_same_runs(tmp_path / "whole", path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_deterministic_training_on_a_gpu_resumes_exactly(training: Make, tmp_path: Path) -> None:
    config = replace(training(device="cuda", precision="auto"), deterministic=True)
    config.run(tmp_path / "whole", progress=False)
    config.run(tmp_path / "stopped", stop=stop_after(4), progress=False)
    config.run(tmp_path / "stopped", progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    assert rows(tmp_path / "whole")[-1]["peak_memory_bytes"] > 0
