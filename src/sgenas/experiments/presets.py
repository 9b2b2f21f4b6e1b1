"""How large the runs of a table are: the only place with these numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.data.sources import find_source
from sgenas.errors import require_choice
from sgenas.methods import METHODS
from sgenas.run.config import to_plain
from sgenas.searching.config import SearchConfig
from sgenas.spaces.darts_space.published import published
from sgenas.spaces.discretization import TopEdges
from sgenas.training.config import TrainConfig

SPACE = "darts"
# The baselines are first-order searches: their costs in the paper, 0.4 and 0.1 GPU days, are those that DARTS and
# PC-DARTS report for first order (second order took DARTS 1 GPU day), and the released codes of PC-DARTS, Fair
# DARTS and beta-DARTS search with first order.
TABLE_ESTIMATORS = ("first-order", "sge")
ANY_GENOTYPE = published("darts-v2")


@dataclass(frozen=True)
class TableRow:
    """A row of the table: a registered method with a registered estimator."""

    method: str
    estimator: str

    def __post_init__(self) -> None:
        METHODS.get(self.method)
        ESTIMATORS.get(self.estimator)

    @property
    def name(self) -> str:
        """Name in paths and messages."""
        return f"{self.method}-{self.estimator}"


def rows(methods: tuple[str, ...] = (), estimators: tuple[str, ...] = ()) -> tuple[TableRow, ...]:
    """The rows of a table, estimator by estimator as in the paper.

    Without ``methods`` all that support the DARTS space, without ``estimators`` first-order and sge.
    """
    methods = methods or tuple(name for name in METHODS if SPACE in METHODS.get(name).spaces)
    return tuple(TableRow(method, estimator) for estimator in estimators or TABLE_ESTIMATORS for method in methods)


@dataclass(frozen=True)
class Preset:
    """Sizes of the runs, on top of the settings of a method and a recipe.

    Args:
        purpose: What it is for.
        data: Default datasets.
        recipe: Recipe of the training runs.
        search: Settings of the searches by dotted path.
        training: Settings of the training runs by dotted path.
        alpha_lr_scale: Factor of the method's learning rate of the alphas, which would hardly move them in a
            short search.
        sge: Settings of the sge rows: ``"source"`` (of the method's source) or ``"paper"``.
        gpu: Whether it is made for a GPU.
    """

    purpose: str
    data: tuple[str, ...]
    recipe: str
    search: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    alpha_lr_scale: float = 1.0
    sge: str = "source"
    gpu: bool = False


# The derived cell is not evaluated in the supernet: the time of a search must be that of the search alone.
GRID_PRESETS = {
    "paper": Preset(
        "the paper's size, for GPUs",
        ("cifar10", "cifar100"),
        "paper",
        search={"derived_every": 0},
        sge="paper",
        gpu=True,
    ),
    "medium": Preset(
        "a twentieth of the paper's search steps, for one night on one GPU with 3 seeds",
        ("cifar10", "cifar100"),
        "fast",
        search={
            "derived_every": 0,
            "epochs": 10,
            "data.train_images": 12_500,
            "data.batch_size": 64,
            "space.channels": 8,
            "space.layers": 6,
        },
        training={"channels": 16, "layers": 8},
        # as far as the alphas of the source move, in a twentieth of its steps
        alpha_lr_scale=20.0,
        gpu=True,
    ),
    "small": Preset(
        "a small version for 2 CPU cores: minutes per job on one of them",
        ("cifar10", "cifar100"),
        "fast",
        search={
            "derived_every": 0,
            "epochs": 6,
            "data.image_size": 16,
            "data.train_images": 1024,
            "data.batch_size": 32,
            "space.channels": 8,
            "space.layers": 4,
        },
        training={
            "epochs": 12,
            "data.image_size": 16,
            # half of the recipe's, for images of half the side
            "data.cutout": 4,
            "data.train_images": 5000,
            "data.test_images": 5000,
            "data.batch_size": 64,
            "channels": 8,
            "layers": 5,
        },
        alpha_lr_scale=20.0,
    ),
    "smoke": Preset(
        "a test of the machinery; its figures mean nothing",
        ("digits",),
        "fast",
        search={
            "derived_every": 0,
            "epochs": 4,
            "data.train_images": 128,
            "data.batch_size": 32,
            "space.channels": 8,
            "space.layers": 3,
            "space.nodes": 2,
        },
        training={
            "epochs": 6,
            "data.batch_size": 64,
            "data.cutout": 0,
            "channels": 4,
            "layers": 3,
            "warmup": 1,
            "ema": None,
        },
        alpha_lr_scale=20.0,
    ),
}


def preset(name: str) -> Preset:
    """The preset ``name``; InvalidValueError if there is none."""
    require_choice("preset", name, tuple(GRID_PRESETS))
    return GRID_PRESETS[name]


def search_config(name: str, row: TableRow, data: str) -> SearchConfig:
    """The search of ``row`` on ``data`` at the size of a preset.

    A baseline has the settings of its method's source, sge those of ``Preset.sge``. If the preset shortens the
    search, the warm-up is the same share of the epochs.
    """
    sizes = preset(name)
    kind = sizes.sge if row.estimator == "sge" else "source"
    source = SearchConfig.of_method(row.method, {"estimator.name": row.estimator}, preset=kind)
    epochs = sizes.search.get("epochs", source.epochs)
    rate = to_plain(source.arch_optimizer)["lr"]
    changes = {
        **_on(data, sizes.search),
        "arch_optimizer.lr": sizes.alpha_lr_scale * rate,
        "warmup_epochs": round(source.warmup_epochs * epochs / source.epochs),
    }
    rule = METHODS.get(row.method).discretization.get(SPACE)
    if epochs < source.epochs and getattr(rule, "threshold", None) is not None:
        # in a few epochs no sigmoid rises from 1/2 to the threshold: every cell would be empty
        changes["discretization"] = to_plain(TopEdges())
    return SearchConfig.of_method(row.method, changes, base=source)


def train_config(name: str, data: str) -> TrainConfig:
    """The training on ``data`` at the size of a preset; any genotype stands for the one to come."""
    sizes = preset(name)
    return TrainConfig.of_recipe(sizes.recipe, ANY_GENOTYPE, _on(data, sizes.training))


def _on(data: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with a dataset; images that cannot be scaled, the digits, keep their size."""
    changes = dict(settings) | {"data.data": data}
    if not find_source(data)[0].resizes:
        changes.pop("data.image_size", None)
    return changes
