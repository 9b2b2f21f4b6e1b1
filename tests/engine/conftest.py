import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sgenas.engine import (
    DataSettings,
    EstimatorSettings,
    NetworkSettings,
    OptimizerSettings,
    SearchConfig,
    SpaceSettings,
    TrainConfig,
    TrainingImageSettings,
)
from sgenas.spaces.genotype import Cell, Edge, Genotype

SMALL = SearchConfig(
    epochs=3,
    log_every=2,
    checkpoint_every=2,
    data=DataSettings(data="digits", train_images=120, batch_size=16),
    space=SpaceSettings(channels=2, layers=3, nodes=1),
    estimator=EstimatorSettings(directions=2),
)
"""Three steps an epoch, about 20 ms a pass."""


TINY_CELLS = Genotype(
    "darts",
    (
        ("normal", Cell((Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "skip_connect")), (2,), nodes=1)),
        ("reduce", Cell((Edge(0, 2, "max_pool_3x3"), Edge(1, 2, "dil_conv_3x3")), (2,), nodes=1)),
    ),
)
TRAINING = TrainConfig(
    genotype=TINY_CELLS,
    epochs=3,
    log_every=2,
    checkpoint_every=2,
    data=TrainingImageSettings(data="digits", train_images=96, test_images=60, batch_size=32, cutout=2),
    network=NetworkSettings(channels=2, layers=3, drop_path=0.3, auxiliary_weight=0.0),
    optimizer=OptimizerSettings(ema=0.9, schedule="step", warmup=1, nesterov=True, label_smoothing=0.1),
)
"""Three steps an epoch, about 20 ms each; every part that has a state of its own is in use."""


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    parts = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **parts)


@pytest.fixture(scope="session")
def small() -> Callable[..., SearchConfig]:
    """SMALL with changes by group: small(epochs=2, weights={"weights": "separate"})."""
    return lambda **changes: _changed(SMALL, changes)


@pytest.fixture
def training() -> Callable[..., TrainConfig]:
    """TRAINING with changes by group."""
    return lambda **changes: _changed(TRAINING, changes)


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A data set of images that are large enough for the auxiliary head."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return f"folder:{tmp_path / 'photos'}"


@pytest.fixture
def lopsided(tmp_path: Path) -> str:
    """A data set of 60, 36 and 12 grey images of 8 x 8 in three classes, and 6 of each to test."""
    draw = np.random.default_rng(0)
    for part, counts in (("train", (60, 36, 12)), ("test", (6, 6, 6))):
        for name, count in zip("abc", counts, strict=True):
            folder = tmp_path / "lopsided" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{index}.png")
    return f"folder:{tmp_path / 'lopsided'}"
