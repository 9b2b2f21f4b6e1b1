"""Settings of a laboratory run: typed, checked when made. The field docs are the command's help."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from sgenas.bilevel import SGD
from sgenas.engine.settings import Checked, require
from sgenas.experiments.lab.estimators import Spec, expand
from sgenas.experiments.lab.problems import LabProblem
from sgenas.experiments.lab.supernets import SupernetSettings, supernet
from sgenas.experiments.lab.toys import hyper_cleaning, quadratic, weight_decay, weight_decay_toy
from sgenas.spaces.nonlinearity import ACTIVATIONS, POOLINGS

FREE = (
    *("estimators", "directions", "smoothings", "inner_steps", "batch_sizes", "inner_lrs", "moments"),
    *("batches", "draws"),
)
"""Settings that may differ between two calls for one folder."""
# an empty tuple would be shown as no default at all
OWN = tyro.conf.arg(help_behavior_hint="(default: none)")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Defaults:
    """What a problem is measured with where nothing else is said."""

    make: Callable[["LabSettings"], LabProblem]
    inner_lr: float
    momentum: float
    weight_decay: float
    alpha_lr: float
    batch_size: int
    moments: tuple[int, ...]
    dtype: str = "float32"
    images: bool = False


def _supernet(name: str) -> Callable[["LabSettings"], LabProblem]:
    return lambda settings: supernet(name, settings.supernet, settings.seed)


PROBLEMS: dict[str, Defaults] = {
    "quadratic": Defaults(
        lambda settings: quadratic(settings.seed), 0.1, 0.9, 0.0, 0.05, 16, (0, 100), "float64"
    ),
    "weight-decay-toy": Defaults(
        lambda settings: weight_decay_toy(settings.seed), 0.1, 0.9, 0.0, 0.05, 16, (0, 100), "float64"
    ),
    "hyper-cleaning": Defaults(
        lambda settings: hyper_cleaning(settings.seed), 0.2, 0.9, 0.0, 0.1, 64, (0, 300)
    ),
    "weight-decay": Defaults(lambda settings: weight_decay(settings.seed), 0.2, 0.9, 0.0, 0.1, 64, (0, 300)),
    "darts": Defaults(_supernet("darts"), 0.025, 0.9, 3e-4, 3e-3, 64, (0, 60, 300), images=True),
    "nasbench201": Defaults(_supernet("nasbench201"), 0.025, 0.9, 3e-4, 3e-3, 64, (0, 60, 300), images=True),
}
"""name -> how to make it and its defaults. A new problem gets its row here."""


@dataclass(frozen=True)
class LabSettings(Checked):
    """What is measured: a problem, estimators, and the axes along which they are compared."""

    problem: str = "quadratic"
    """quadratic, weight-decay-toy, hyper-cleaning, weight-decay (these take seconds), darts or nasbench201"""
    estimators: tuple[str, ...] = ("first-order", "second-order", "sge", "unrolled")
    """specifications, such as first-order, sge or sge:q=4,orthogonal,variate; see docs/lab.md"""
    directions: tuple[int, ...] = (10,)
    """axis Q: for every estimator whose specification leaves q open"""
    smoothings: tuple[float, ...] = (0.01,)
    """axis mu: for every estimator whose specification leaves mu open"""
    inner_steps: tuple[int, ...] = (1, 5)
    """axis N: steps of the weights"""
    batch_sizes: Annotated[tuple[int, ...], OWN] = ()
    """axis: examples in a batch, inner and outer; the problem's own if not set"""
    inner_lrs: Annotated[tuple[float, ...], OWN] = ()
    """axis: learning rate of the inner steps; the problem's own if not set"""
    moments: Annotated[tuple[int, ...], OWN] = ()
    """axis: training steps of weights and alphas before measuring; the problem's own if not set"""
    batches: int = 5
    """independent draws of batches: what error bars are made of"""
    draws: int = 8
    """estimates by a random estimator on the same batches: tell bias from variance"""
    momentum: float | None = None
    """of the inner steps; the problem's own if not set"""
    weight_decay: float | None = None
    """of the inner steps; the problem's own if not set"""
    walk_lr: float | None = None
    """learning rate of the weights on the way to a moment; the problem's own if not set"""
    walk_batch_size: int | None = None
    """examples in a batch on the way to a moment; the problem's own if not set"""
    alpha_lr: float | None = None
    """of Adam for the alphas on the way to a moment; the problem's own if not set"""
    truth_directions: int = 8
    """random directions in which the real outer objective is asked for its slope; 0 leaves that truth out"""
    truth_steps: tuple[float, ...] = (0.001, 0.01, 0.1)
    """step sizes of those slopes, in the unit of mu"""
    dtype: str = "auto"
    """precision of the estimators: float32 or float64; auto: as the problem is usually solved"""
    truth_dtype: str = "float64"
    """precision of both truths"""
    data: str | None = None
    """darts, nasbench201: images, as in `sgenas search`, such as parquet:FOLDER; cifar10 if not set"""
    train_images: int = 10_000
    """darts, nasbench201: use only so many images, half of them for each loss"""
    channels: int = 4
    """darts, nasbench201: channels of the first cell"""
    layers: int = 3
    """darts: number of cells"""
    nodes: int = 4
    """darts: computed nodes of a cell"""
    cells: int = 1
    """nasbench201: cells in each of the 3 stages"""
    activation: str = "relu"
    """darts, nasbench201: relu, silu or softplus"""
    pooling: str = "hard"
    """darts: max pooling, hard or smooth"""
    seed: int = 0
    """of everything that is drawn"""
    device: str = "cpu"
    """darts, nasbench201, hyper-cleaning, weight-decay: auto, cpu, cuda or cuda:N"""

    def __post_init__(self) -> None:
        self._one_of("problem", tuple(PROBLEMS))
        for name in ("estimators", "directions", "smoothings", "inner_steps"):
            require(bool(getattr(self, name)), name, "followed by at least one value", "none")
        for name, least in (("directions", 1), ("inner_steps", 1), ("batch_sizes", 1), ("moments", 0)):
            for value in getattr(self, name):
                require(value >= least, name, f">= {least}", value)
        for name in ("smoothings", "inner_lrs", "truth_steps"):
            for value in getattr(self, name):
                require(0 < value < math.inf, name, "> 0 and finite", value)
        for name in ("estimators", "inner_steps", "batch_sizes", "inner_lrs", "moments", "truth_steps"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), name, "without repeats", values)
        self._at_least("batches", 1)
        self._at_least("draws", 2)
        self._at_least("truth_directions", 0)
        require(
            bool(self.truth_steps) or not self.truth_directions,
            "truth_steps",
            "followed by at least one value (or --truth-directions 0)",
            "none",
        )
        for name in ("walk_lr", "alpha_lr"):
            self._positive(name)
        self._at_least("walk_batch_size", 1)
        if self.momentum is not None:
            self._fraction("momentum")
        if self.weight_decay is not None:
            self._not_negative("weight_decay")
        self._one_of("dtype", ("auto", *DTYPES))
        self._one_of("truth_dtype", tuple(DTYPES))
        if self.defaults.dtype == "float64":
            for name in ("dtype", "truth_dtype"):
                value = getattr(self, name)
                require(value != "float32", name, f"float64 with --problem {self.problem}", value)
        images = self.defaults.images
        for name in ("data", "train_images", "channels", "activation"):
            self._default_unless(name, images, "--problem darts or nasbench201")
        for name in ("layers", "nodes", "pooling"):
            self._default_unless(name, self.problem == "darts", "--problem darts")
        self._default_unless("cells", self.problem == "nasbench201", "--problem nasbench201")
        for name, least in (("train_images", 2), ("channels", 2), ("layers", 3), ("nodes", 1), ("cells", 1)):
            self._at_least(name, least)
        self._one_of("activation", tuple(ACTIVATIONS))
        self._one_of("pooling", POOLINGS)
        # reads every specification, so that a wrong one fails here
        expand(self.estimators, self.directions, self.smoothings)

    @property
    def defaults(self) -> Defaults:
        """The problem's row."""
        return PROBLEMS[self.problem]

    @property
    def specs(self) -> list[Spec]:
        """Every estimator, Q and mu filled in."""
        return expand(self.estimators, self.directions, self.smoothings)

    @property
    def supernet(self) -> SupernetSettings:
        """Size and images of a supernet."""
        names = [item.name for item in dataclasses.fields(SupernetSettings)]
        values = {name: getattr(self, name) for name in names} | {"data": self.data or "cifar10"}
        return SupernetSettings(**values)

    def optimizer(self, lr: float) -> SGD:
        """Of the inner steps."""
        defaults = self.defaults
        return SGD(
            lr,
            defaults.momentum if self.momentum is None else self.momentum,
            defaults.weight_decay if self.weight_decay is None else self.weight_decay,
        )

    def axis(self, name: str) -> tuple[Any, ...]:
        """The values of an axis, the problem's own where none are given."""
        own = {
            "batch_sizes": (self.defaults.batch_size,),
            "inner_lrs": (self.defaults.inner_lr,),
            "moments": self.defaults.moments,
        }
        values: tuple[Any, ...] = getattr(self, name) or own[name]
        return values

    def fixed(self) -> dict[str, Any]:
        """What must be the same for two runs to belong into one folder: all that is no axis and no count."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE}
