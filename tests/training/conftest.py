from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cells import TINY_CELLS

from sgenas.data import TrainImageSettings
from sgenas.training import TrainConfig, Training

torch.set_num_threads(1)

TRAINING = TrainConfig(
    TINY_CELLS,
    epochs=3,
    log_every=2,
    checkpoint_every=2,
    channels=2,
    layers=3,
    drop_path=0.3,
    auxiliary_weight=0.0,
    ema=0.9,
    schedule="step",
    warmup=1,
    nesterov=True,
    label_smoothing=0.1,
    data=TrainImageSettings(data="digits", train_images=96, test_images=60, batch_size=32, cutout=2),
)
"""Three steps per epoch, about 20 ms each; every part that has a state is in use."""


@pytest.fixture
def training() -> Callable[..., TrainConfig]:
    """TRAINING with changes: training(epochs=2, data={"batch_size": 16})."""

    def changed(**changes: Any) -> TrainConfig:
        data = replace(TRAINING.data, **changes.pop("data", {}))
        return replace(TRAINING, data=data, **changes)

    return changed


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainConfig], Training]:
    """The `Training` of a configuration, before its first step, without a run directory."""

    def make(config: TrainConfig) -> Training:
        made: list[Training] = []
        with monkeypatch.context() as patch:
            patch.setattr(Training, "run", lambda self, stop: made.append(self))
            config.run(progress=False)
        return made[0]

    return make


@pytest.fixture
def steps() -> Callable[[Training, int], None]:
    """Takes that many steps, without tests and checkpoints."""

    def take(run: Training, count: int) -> None:
        for _ in range(count):
            run.take_step()
            run.step, run.step_in_epoch = run.step + 1, run.step_in_epoch + 1
            if run.epoch_is_over():
                run.epoch, run.step_in_epoch = run.epoch + 1, 0

    return take


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A dataset of images that are large enough for the auxiliary head."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return f"folder:{tmp_path / 'photos'}"
