"""How large the runs of the table are: the only place with these numbers."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sgenas.engine import EstimatorSettings, SearchConfig, TrainSettings
from sgenas.engine.settings import changed
from sgenas.errors import ConfigError
from sgenas.methods import METHODS


@dataclass(frozen=True)
class Row:
    """A row of the table: a method of METHODS with an estimator, `first-order` or `sge`."""

    method: str
    estimator: str

    @property
    def name(self) -> str:
        """In paths and messages."""
        return f"{self.method}-{self.estimator}"


# The baselines are first-order searches: their costs in the paper, 0.4 and 0.1 GPU days, are those that
# DARTS and PC-DARTS give for first order (second order took DARTS 1 GPU day), and the released codes of
# PC-DARTS, Fair DARTS and beta-DARTS search with first order.
ROWS = tuple(Row(method, estimator) for estimator in ("first-order", "sge") for method in METHODS)
"""In the order of the paper's table."""


@dataclass(frozen=True)
class Preset:
    """What a run is given beyond the settings of its method and the recipe of its training.

    data: the data sets by default. recipe: of the training. search, training: by flag name, the sizes. sge:
    the settings that the SGE rows start from: of the method's source (and sge as it is by default,
    docs/choosing.md says why) or the paper's. alpha_lr_scale: factor of the method's own learning rate of the
    alphas, which would hardly move them in a short search. What it is for is said in `purpose`.
    """

    purpose: str
    data: tuple[str, ...]
    recipe: str
    search: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    alpha_lr_scale: float = 1.0
    sge: str = "source"


# The derived cell is not measured in the supernet: a search's time is to be that of the search.
PRESETS = {
    "paper": Preset(
        "the paper's size, for GPUs",
        ("cifar10", "cifar100"),
        "paper",
        search={"derived_every": 0},
        sge="paper",
    ),
    "small": Preset(
        "a small version for 2 CPU cores and 2 hours with 2 seeds",
        ("cifar10",),
        "fast",
        search={
            "derived_every": 0,
            "epochs": 6,
            "train_images": 1024,
            "batch_size": 32,
            "channels": 8,
            "layers": 4,
        },
        training={
            "epochs": 12,
            "train_images": 5000,
            "test_images": 5000,
            "batch_size": 64,
            "channels": 8,
            "layers": 5,
        },
        alpha_lr_scale=20.0,
    ),
    "smoke": Preset(
        "a trial of the machinery; its figures mean nothing",
        ("digits",),
        "fast",
        search={
            "derived_every": 0,
            "epochs": 4,
            "train_images": 128,
            "batch_size": 32,
            "channels": 8,
            "layers": 3,
            "nodes": 2,
        },
        training={
            "epochs": 6,
            "batch_size": 64,
            "channels": 4,
            "layers": 3,
            "warmup": 1,
            "ema": None,
            "cutout": 0,
        },
        alpha_lr_scale=20.0,
    ),
}


def preset(name: str) -> Preset:
    """The preset `name`; raises ConfigError for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def search_config(name: str, row: Row, data: str, seed: int) -> SearchConfig:
    """The search of `row` at the size of the preset `name`.

    A baseline has the settings of its method's source, sge those that the preset says (`--settings`). Where
    the sizes shorten a search, its warm-up is the same share of the epochs.
    """
    sizes = preset(name)
    source = SearchConfig.of_method(row.method, sizes.sge if row.estimator == "sge" else "source")
    if row.estimator != "sge":
        source = dataclasses.replace(source, estimator=EstimatorSettings(estimator=row.estimator))
    epochs = sizes.search.get("epochs", source.epochs)
    flags: dict[str, Any] = {
        **sizes.search,
        "data": data,
        "seed": seed,
        "alpha_lr": sizes.alpha_lr_scale * source.alphas.alpha_lr,
        "warmup_epochs": round(source.alphas.warmup_epochs * epochs / source.epochs),
    }
    if row.method == "fair-darts" and epochs < source.epochs:
        # in a few epochs no sigmoid climbs from 1/2 to the threshold: every cell would be empty
        flags["derivation"] = "top2"
    return changed(source, flags)


def train_settings(name: str, data: str, seed: int) -> TrainSettings:
    """The training of any cell at the size of the preset `name`."""
    sizes = preset(name)
    return changed(TrainSettings.of_recipe(sizes.recipe), {**sizes.training, "data": data, "seed": seed})
