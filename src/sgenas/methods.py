"""The table of methods: what each name of a search stands for. A new method is one row here.

Any method goes with any estimator. What a method adds to the outer loss depends on the alphas alone, so it
enters the hypergradient's direct part and no perturbed step. What a method has besides operations' alphas
(PC-DARTS' edge parameters) are alphas too, and are perturbed with the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sgenas.errors import InvalidValueError
from sgenas.spaces import regularisers
from sgenas.trees import Tree

Regulariser = Callable[[Tree], Tensor]


@dataclass(frozen=True)
class Method:
    """One row.

    spaces: the class of `sgenas.spaces.SPACES` for each search space that the method knows. operations: its
    default operation set in the DARTS space. options: settings of the space that only this method has.
    regularisers: by form, what may be added to the outer loss, the first by default. regulariser_weight: its
    factor; rising: whether that grows from 0 with the epochs, weight * epoch / epochs. settings: by flag
    name, what its source sets otherwise than the defaults. relaxation: of the choices in a module of one's
    own (`sgenas.spaces.modules.RELAXATIONS`), None for a method that has no form for them. paper_name: its
    name in the paper with the stochastic estimator. source: where it was published.
    """

    paper_name: str
    source: str
    spaces: Mapping[str, str]
    operations: str = "darts"
    options: tuple[str, ...] = ()
    regularisers: Mapping[str, Regulariser] = field(default_factory=dict)
    regulariser_weight: float = 0.0
    rising: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    relaxation: str | None = "softmax"


METHODS = {
    "darts": Method(
        "SGE-NAS-a",
        "Liu et al., arXiv:1806.09055",
        {"darts": "darts", "nasbench201": "nasbench201"},
    ),
    "pc-darts": Method(
        "SGE-NAS-b",
        "Xu et al., arXiv:1907.05737",
        {"darts": "pc-darts", "nasbench201": "pc-darts-nasbench201"},
        options=("partial_channels",),
        settings={"lr": 0.1, "lr_min": 0.0, "batch_size": 256, "alpha_lr": 6e-4, "warmup_epochs": 15},
        # part of a cell's channels: a module of one's own has no such thing
        relaxation=None,
    ),
    "fair-darts": Method(
        "SGE-NAS-c",
        "Chu et al., arXiv:1911.12126",
        {"darts": "fair-darts", "nasbench201": "fair-darts-nasbench201"},
        operations="paper",
        options=("derivation", "threshold"),
        regularisers={
            "squared": regularisers.zero_one_squared,
            "absolute": regularisers.zero_one_absolute,
        },
        regulariser_weight=10.0,
        settings={"lr": 0.005, "batch_size": 128, "alpha_lr": 3e-3, "alpha_beta1": 0.9},
        relaxation="sigmoid",
    ),
    "beta-darts": Method(
        "SGE-NAS-d",
        "Ye et al., arXiv:2203.01665",
        {"darts": "darts", "nasbench201": "nasbench201"},
        operations="paper",
        regularisers={"logsumexp": regularisers.beta_decay},
        # the code's 50 epoch / 100 ends near 50 in its 100 epochs
        regulariser_weight=50.0,
        rising=True,
    ),
}

PAPER: dict[str, Any] = {
    "operations": "paper",
    "activation": "relu",
    "smoothing": 0.01,
    "estimator": "sge",
    "directions": 10,
    "weights": "separate",
    "trajectory_lr": 0.01,
    "lr": 0.005,
    "alpha_optimizer": "sgd",
    "alpha_lr": 0.01,
    "alpha_weight_decay": 0.0,
}
"""The paper's own settings, the same for its four searches (section 4 and Algorithm 1), by flag name. Where
it says nothing (batch size, epochs, warm-up) the method's source is followed; the smoothing, which it does
not give either, is that of its reference [11] (PZOBO, arXiv:2110.07004)."""

PRESETS = ("source", "paper")


def method(name: str) -> Method:
    """The row `name`; raises InvalidValueError for an unknown one."""
    if name not in METHODS:
        raise InvalidValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def preset(name: str, kind: str = "source") -> dict[str, Any]:
    """Settings of a method by flag name: those of its source, or with "paper" the paper's on top of them."""
    if kind not in PRESETS:
        raise InvalidValueError(f"settings must be one of {', '.join(PRESETS)}, got {kind!r}")
    found = dict(method(name).settings)
    if kind == "paper":
        # the source's first moment belongs to Adam, which the paper does not use
        found = {flag: value for flag, value in found.items() if flag != "alpha_beta1"} | PAPER
    return found
