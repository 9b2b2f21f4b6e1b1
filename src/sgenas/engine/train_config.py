"""Settings of a training run, the genotype among them; recipes by name. The field docs are the help."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sgenas.engine.config import ImageSettings
from sgenas.engine.settings import Checked, by_group, read, require
from sgenas.errors import ConfigError
from sgenas.nets.networks import takes_auxiliary
from sgenas.spaces.genotype import Genotype

SCHEDULES = ("epoch", "step")
PRECISIONS = ("auto", "float32", "bfloat16")
DROP_PATH = 0.2
AUXILIARY_WEIGHT = 0.4


@dataclass(frozen=True)
class TrainingImageSettings(ImageSettings):
    """Images: all training images train the network, the test images test it after every epoch."""

    test_images: int | None = None
    """use only so many test images, drawn evenly over the classes; all if not set"""
    batch_size: int = 96
    """images in a batch"""
    cutout: int = 16
    """side in pixels of a square that is blanked in each training image (0: none)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("test_images", 2)


@dataclass(frozen=True)
class NetworkSettings(Checked):
    """Network: what the genotype is stacked to, and what makes it harder to overfit."""

    channels: int | None = None
    """channels of the first cell; 36 if not set (16 for NAS-Bench-201)"""
    layers: int | None = None
    """number of cells; 20 if not set (for NAS-Bench-201 of each stage, 5)"""
    drop_path: float | None = None
    """probability of drop path that is risen to, in equal steps epoch by epoch from 0; 0.2 if not set
    (NAS-Bench-201 has no drop path)"""
    auxiliary_weight: float | None = None
    """factor of the auxiliary head's loss, 0: no such head; 0.4 if not set (NAS-Bench-201 has none)"""

    def __post_init__(self) -> None:
        self._at_least("channels", 1)
        self._at_least("layers", 1)
        if self.drop_path is not None:
            self._fraction("drop_path")
        if self.auxiliary_weight is not None:
            self._not_negative("auxiliary_weight")


@dataclass(frozen=True)
class OptimizerSettings(Checked):
    """Optimiser: stochastic gradient descent with a learning rate that falls by a cosine."""

    lr: float = 0.025
    """largest learning rate"""
    lr_min: float = 0.0
    """learning rate that the cosine falls to"""
    schedule: str = "epoch"
    """the learning rate changes at every epoch or at every step"""
    warmup: int = 0
    """epochs at the start in which the learning rate rises in equal steps"""
    momentum: float = 0.9
    """momentum"""
    nesterov: bool = False
    """Nesterov's momentum"""
    weight_decay: float = 3e-4
    """weight decay, of all weights"""
    grad_clip: float | None = 5.0
    """largest norm of the gradient ("None": no clipping)"""
    label_smoothing: float = 0.0
    """share of the target that is spread evenly over all classes"""
    ema: float | None = None
    """decay of a running average of the weights, which is then tested and exported; no average if not set"""

    def __post_init__(self) -> None:
        self._positive("lr")
        self._not_negative("lr_min")
        require(self.lr_min <= self.lr, "lr_min", f"at most --lr {self.lr}", self.lr_min)
        self._one_of("schedule", SCHEDULES)
        self._at_least("warmup", 0)
        self._fraction("momentum")
        self._default_unless("nesterov", self.momentum > 0, "--momentum above 0")
        self._not_negative("weight_decay")
        self._positive("grad_clip")
        self._fraction("label_smoothing")
        if self.ema is not None:
            require(0 < self.ema < 1, "ema", "in (0, 1)", self.ema)


@dataclass(frozen=True)
class TrainSettings(Checked):
    """All settings of a training run but the genotype.

    The defaults are those of the source: the evaluation of DARTS (cnn/train.py). Raises ConfigError for a
    setting outside what it accepts or without effect.
    """

    epochs: int = 600
    """passes through the training images; what is over after the last full batch of one is left out of it"""
    seed: int = 0
    """the same seed gives the same run on the same machine and number of threads (on a GPU with
    --deterministic; else sums may be added in another order there)"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1"""
    precision: str = "float32"
    """float32 (on a GPU TF32 in convolutions), bfloat16 for the layers that bear it, or auto: bfloat16 on a
    GPU and float32 on a CPU"""
    deterministic: bool = False
    """only operations that give the same result every time: on a GPU slower; one that has no such form ends
    the run and is named. On a CPU all have it, and results are the same without"""
    compile: bool = False
    """compile the network with torch.compile: minutes at the start, for fewer and larger kernels"""
    log_every: int | None = None
    """steps between two rows of metrics.jsonl; if not set 10, or as many more as leave 10,000 rows"""
    checkpoint_every: int = 500
    """steps between two checkpoints; there is one at the end of each epoch too"""
    data: TrainingImageSettings = field(default_factory=TrainingImageSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        self._at_least("epochs", 1)
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed)
        self._one_of("precision", PRECISIONS)
        self._at_least("log_every", 1)
        self._at_least("checkpoint_every", 1)
        warmup = self.optimizer.warmup
        require(warmup < self.epochs, "warmup", f"below --epochs {self.epochs}", warmup)
        rises = self.epochs > 1 or not self.network.drop_path
        require(rises, "epochs", "> 1 with --drop-path, which is 0 in the first", self.epochs)

    @classmethod
    def of_recipe(cls, name: str, **more: Any) -> Self:
        """The settings of the recipe `name`; `more`: fields that no recipe sets. Raises ConfigError."""
        if name not in RECIPES:
            raise ConfigError(f"--recipe must be one of {', '.join(RECIPES)}, got {name!r}")
        return cls(**by_group(cls, RECIPES[name].settings), **more)


@dataclass(frozen=True)
class TrainConfig(TrainSettings):
    """Settings of a training run with the genotype itself, so that it runs again from its folder alone."""

    genotype: Genotype = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not takes_auxiliary(self.genotype):
            for name in ("drop_path", "auxiliary_weight"):
                value = getattr(self.network, name)
                require(not value, name, f"0 in the space {self.genotype.space}, which has none", value)

    @property
    def drop_path(self) -> float:
        """The probability of drop path that is risen to."""
        return self._of_darts(self.network.drop_path, DROP_PATH)

    @property
    def auxiliary_weight(self) -> float:
        """The factor of the auxiliary head's loss."""
        return self._of_darts(self.network.auxiliary_weight, AUXILIARY_WEIGHT)

    def _of_darts(self, value: float | None, default: float) -> float:
        if value is not None:
            return value
        return default if takes_auxiliary(self.genotype) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data, ready for JSON; `from_dict` is its inverse."""
        return dataclasses.asdict(self) | {"genotype": self.genotype.to_dict()}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Reads what `to_dict` writes, all of it; raises ConfigError naming the first fault."""
        return read(cls, data, "config")


@dataclass(frozen=True)
class Recipe:
    """settings: by flag name, what differs from the defaults. source: where the numbers are from."""

    source: str
    settings: Mapping[str, Any]


RECIPES = {
    "source": Recipe("cnn/train.py of DARTS (arXiv:1806.09055), with its --auxiliary and --cutout", {}),
    # what it says besides (momentum 0.9, weight decay 3e-4, cosine) is the source's; on all else it is silent
    "paper": Recipe("section 3 of the SGE paper, where it may also speak of the search", {"lr": 0.005}),
    "fast": Recipe(
        "usual choices for few epochs; no measurement stands behind these numbers yet",
        {
            "epochs": 30,
            "precision": "auto",
            "batch_size": 128,
            "cutout": 8,
            "drop_path": 0.0,
            "auxiliary_weight": 0.0,
            "lr": 0.1,
            "schedule": "step",
            "warmup": 2,
            "nesterov": True,
            "weight_decay": 5e-4,
            "label_smoothing": 0.1,
            "ema": 0.999,
        },
    ),
}
