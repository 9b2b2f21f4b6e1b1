import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgenas.errors import DataError, InvalidValueError
from sgenas.fields import documentation
from sgenas.spaces.darts_space.published import published
from sgenas.spaces.nasbench201_space.strings import from_string
from sgenas.training import TrainConfig

Make = Callable[..., TrainConfig]
BENCHMARK_CELL = from_string("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|")


def test_plain_data_round_trip(training: Make) -> None:
    for config in (training(), TrainConfig(BENCHMARK_CELL)):
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    plain = training().to_dict()
    assert TrainConfig.from_dict({"genotype": plain["genotype"]}) == TrainConfig(training().genotype)


@pytest.mark.parametrize("fault", ["unknown key", "no genotype", "operation"])
def test_broken_plain_data_raises(fault: str, training: Make) -> None:
    plain = training().to_dict()
    if fault == "unknown key":
        plain["momentun"] = 0.5
    elif fault == "no genotype":
        del plain["genotype"]
    else:
        plain["genotype"]["cells"]["normal"]["edges"][0]["operation"] = "magic"
    with pytest.raises(InvalidValueError, match={"operation": "magic"}.get(fault, "momentum|genotype")):
        TrainConfig.from_dict(plain)


def test_every_setting_is_documented() -> None:
    assert list(documentation(TrainConfig)) == list(TrainConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "warmup": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"precision": "half"}, "precision"),
        ({"log_every": 0}, "log_every"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"threads": 0}, "threads"),
        ({"channels": 0}, "channels"),
        ({"warmup": 3}, "warmup"),
        ({"warmup": -1}, "warmup"),
        ({"lr": 0.0}, "SGD.lr"),
        ({"lr_min": 1.0}, "lr_min"),
        ({"schedule": "never"}, "schedule"),
        ({"momentum": 1.0}, "SGD.momentum"),
        ({"momentum": 0.0}, "SGD.momentum"),
        ({"weight_decay": math.nan}, "SGD.weight_decay"),
        ({"grad_clip": 0.0}, "SGD.grad_clip"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"ema": 1.0}, "ema"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight"),
        ({"data": {"test_images": 1}}, "test_images"),
        ({"data": {"batch_size": 1}}, "batch_size"),
        ({"genotype": BENCHMARK_CELL}, "drop_path"),
    ],
)
def test_setting_out_of_range_raises(changes: dict[str, Any], field: str, training: Make) -> None:
    with pytest.raises(InvalidValueError) as caught:
        training(**changes)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"data": {"batch_size": 97}}, "batch_size"),
        ({"data": {"cutout": 9}}, "cutout"),
        ({"data": {"test_images": 9}}, "test_images"),
        ({"data": {"data": "no-test", "train_images": None}}, "test images"),
        ({"device": "abacus"}, "device"),
        ({"auxiliary_weight": 0.4}, "29 x 29"),
        ({"channels": 1}, "channels"),
        ({"layers": 2}, "layers"),
    ],
)
def test_settings_that_do_not_fit_the_images_leave_nothing_behind(
    changes: dict[str, Any], word: str, training: Make, photos: str, tmp_path: Path
) -> None:
    config = training(**changes)
    if config.data.data == "no-test":
        config = replace(config, data=replace(config.data, data=f"folder:{tmp_path / 'photos' / 'train'}"))
    with pytest.raises((InvalidValueError, DataError), match=word):
        config.run(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_recipes() -> None:
    cells = published("darts-v2")
    source = TrainConfig.of_recipe("source", cells)
    assert source == TrainConfig(cells)
    assert (source.epochs, source.data.batch_size, source.data.cutout) == (600, 96, 16)
    assert (source.lr, source.lr_min, source.momentum, source.weight_decay) == (0.025, 0, 0.9, 3e-4)
    assert (source.grad_clip, source.schedule, source.warmup, source.ema) == (5.0, "epoch", 0, None)
    assert (source.final_drop_path, source.head_weight, source.label_smoothing) == (0.2, 0.4, 0)
    assert TrainConfig.of_recipe("paper", cells) == replace(source, lr=0.005)
    fast = TrainConfig.of_recipe("fast", cells, {"epochs": 5, "data.data": "digits"})
    assert (fast.final_drop_path, fast.head_weight, fast.precision, fast.nesterov) == (0, 0, "auto", True)
    assert (fast.epochs, fast.data.data, fast.data.batch_size) == (5, "digits", 128)
    assert TrainConfig.of_recipe("fast", BENCHMARK_CELL).final_drop_path == 0
    with pytest.raises(InvalidValueError) as caught:
        TrainConfig.of_recipe("slow", cells)
    assert caught.value.field == "recipe"


def test_nasbench201_cell_trains_without_drop_path_and_head(training: Make) -> None:
    config = training(genotype=BENCHMARK_CELL, epochs=1, layers=1, drop_path=None, warmup=0)
    assert config.final_drop_path == config.head_weight == 0
    assert config.run(progress=False).finished
