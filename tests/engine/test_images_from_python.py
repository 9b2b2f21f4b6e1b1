"""Runs on images handed over in Python: equal to runs on the same images by name, and resumable with them."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import TensorDataset

from sgenas.data import ImageData, from_dataset, load
from sgenas.engine import resume_search, resume_training, run_search, run_training
from sgenas.engine.evaluate import evaluate_run
from sgenas.engine.plan import plan_search
from sgenas.errors import CheckpointError, ConfigError, DataError

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    whole = load("digits")
    assert whole.test is not None
    train, test = (TensorDataset(part.images, part.labels) for part in (whole.train, whole.test))
    return from_dataset(train, test, classes=whole.classes, name="mine", mirror=False)


def rows(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if "loss" in name} for line in lines]


def test_a_search_equals_that_on_the_same_images_by_name_and_resumes(
    small: Make, digits: ImageData, tmp_path: Path, assert_same_runs: Any
) -> None:
    config = small(epochs=2)
    run_search(config, tmp_path / "named")
    whole = run_search(config, tmp_path / "whole", images=digits)
    assert rows(tmp_path / "named") == rows(tmp_path / "whole")
    kept = json.loads((whole.path / "config.json").read_text())["config"]
    assert kept["data"]["data"] == "python:mine"
    asked = iter([False, True])
    assert not run_search(config, tmp_path / "stopped", stop=lambda: next(asked), images=digits).finished
    assert resume_search(tmp_path / "stopped", images=digits).finished
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_resume_needs_the_same_images(small: Make, digits: ImageData, tmp_path: Path) -> None:
    asked = iter([True])
    path = run_search(small(), tmp_path / "run", stop=lambda: next(asked), images=digits).path
    with pytest.raises(
        DataError, match="^--data python:mine .*: images of python:mine were handed over in Python"
    ):
        resume_search(path)
    images = digits.train.images.clone()
    images[:, 0, 4, 4] ^= 1
    changed = dataclasses.replace(digits, train=dataclasses.replace(digits.train, images=images))
    expected = f"checkpoint {path / 'checkpoint.pt'} was made with other images than those handed over"
    with pytest.raises(CheckpointError, match=f"^{re.escape(expected)}$"):
        resume_search(path, images=changed)


def test_a_training_too(training: Make, digits: ImageData, tmp_path: Path, assert_same_runs: Any) -> None:
    config = training(epochs=2)
    run_training(config, tmp_path / "named")
    run_training(config, tmp_path / "whole", images=digits)
    assert rows(tmp_path / "named") == rows(tmp_path / "whole")
    asked = iter([False, True])
    run_training(config, tmp_path / "stopped", stop=lambda: next(asked), images=digits)
    assert resume_training(tmp_path / "stopped", images=digits).finished
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    assert evaluate_run(tmp_path / "whole", images=digits).equal
    with pytest.raises(DataError, match="evaluate_run with images=..."):
        evaluate_run(tmp_path / "whole")
    with pytest.raises(DataError, match="--data python:mine must have test images, got none"):
        run_training(config, tmp_path / "none", images=dataclasses.replace(digits, test=None))


def test_settings_that_contradict(
    small: Make, digits: ImageData, tmp_path: Path, fails: Callable[..., str]
) -> None:
    with pytest.raises(ConfigError, match="--data-dir must not be set with images from Python, got 'x'"):
        run_search(small(data={"data_dir": "x"}), tmp_path / "run", images=digits)
    with pytest.raises(ConfigError, match="--image-size must not be set with images from Python, got 4"):
        run_search(small(data={"image_size": 4}), tmp_path / "run", images=digits)
    with pytest.raises(DataError, match="--data python:mine --train-images 9: limit must be at least 10"):
        run_search(small(data={"train_images": 9}), tmp_path / "run", images=digits)
    command = ("search", "--data", "python:mine", "--out", str(tmp_path / "run"))
    assert "images of python:mine were handed over in Python and must be again" in fails(*command)
    assert list(tmp_path.iterdir()) == []


def test_a_plan(small: Make, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgenas.engine.plan.ENOUGH_SECONDS", 0.0)
    config = small(data={"data": "folder:/none", "train_images": None})
    found = plan_search(config, images=digits)
    assert found.facts["images"] == {"training": 719, "validation": 719}
