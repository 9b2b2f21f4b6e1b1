"""Methods: what a name such as ``pc-darts`` means, one row each.

A method is a relaxation, a regularizer, a discretization, options of the space, and the settings of its
source. Any method goes with any estimator. A regularizer depends only on the alphas, so it enters only the
direct gradient. All alphas, those of PC-DARTS' edges included, are perturbed together.

Settings of sources and presets are {name: value}, with the names of the arguments of ``sgenas.search``. A dot
leads to a field of a component: ``"batch_size"``, ``"weight_optimizer.lr"``, ``"arch_optimizer.betas"``,
``"estimator.smoothing"``, ``"space.operations"``. ``"estimator"`` and ``"arch_optimizer"`` alone are names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sgenas.errors import InvalidValueError, require_choice
from sgenas.registry import Registry
from sgenas.spaces import (
    Argmax,
    BetaDecay,
    ConcentrationAnchor,
    Dirichlet,
    Discretization,
    EdgeNormalizedSoftmax,
    GumbelSoftmax,
    Regularizer,
    Relaxation,
    SearchSpace,
    Sigmoid,
    Softmax,
    TopEdges,
    ZeroOne,
)
from sgenas.spaces.discretization import THRESHOLD

Space = TypeVar("Space", bound=SearchSpace)


@dataclass(frozen=True)
class Method:
    """A method of differentiable architecture search.

    Args:
        source: Publication.
        spaces: Names of the supported spaces, each with the values of those settings that the user leaves at
            None.
        relaxation: How alphas become mixing weights.
        regularizer: Term of the outer loss; None for none.
        discretization: {name of a space: how mixing weights become an architecture}; the space's own where it
            is missing.
        settings: Settings of the source that differ from the defaults of a search; see this module.
        paper_name: Name in the SGE-NAS paper, None if the paper lacks the method.
    """

    source: str
    spaces: Mapping[str, Mapping[str, Any]]
    relaxation: Relaxation = field(default_factory=Softmax)
    regularizer: Regularizer | None = None
    discretization: Mapping[str, Discretization] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper_name: str | None = None

    def apply(
        self,
        space: Space,
        *,
        relaxation: Relaxation | None = None,
        discretization: Discretization | None = None,
    ) -> Space:
        """``space`` with the options and parts of this method.

        Args:
            space: Settings that are None in it take the values of the method. Its parts are replaced unless the
                user chose them for it, see ``SearchSpace.given``.
            relaxation: Instead of the space's and the method's.
            discretization: Instead of the space's and the method's.

        Raises:
            InvalidValueError: If the method does not support the space, or the space has settings with which
                the method makes no sense.
        """
        if space.name not in self.spaces:
            name = METHODS.name_of(self) or type(self).__name__
            raise InvalidValueError(
                f"method {name} supports the spaces {', '.join(self.spaces)}, got {space.name}",
                field="method",
            )
        rule = self.discretization.get(space.name, space.default_discretization)
        found = space.with_parts(
            options=self.spaces[space.name],
            relaxation=relaxation or space.given.get("relaxation", self.relaxation),
            discretization=discretization or space.given.get("discretization", rule),
        )
        # the method's are not the user's: the space may be searched again with another method
        found.given = space.given
        return found


EVERYWHERE: dict[str, dict[str, Any]] = {"nasbench201": {}, "nasbench-macro": {}, "module": {}}
"""The spaces other than DARTS', in which most methods have no options."""

METHODS: Registry[Method] = Registry("method", "sgenas.methods")

METHODS.register(
    "darts",
    Method(
        source="Liu et al., arXiv:1806.09055",
        spaces={"darts": {"operations": "darts"}} | EVERYWHERE,
        paper_name="SGE-NAS-a",
    ),
)
METHODS.register(
    "pc-darts",
    Method(
        source="Xu et al., arXiv:1907.05737",
        # choices in modules have neither cells nor edges
        spaces={"darts": {"operations": "darts", "partial_channels": 4}, "nasbench201": {"partial_channels": 4}},
        relaxation=EdgeNormalizedSoftmax(),
        settings={
            "weight_optimizer.lr": 0.1,
            "lr_min": 0.0,
            "batch_size": 256,
            "arch_optimizer.lr": 6e-4,
            "warmup_epochs": 15,
        },
        paper_name="SGE-NAS-b",
    ),
)
METHODS.register(
    "fair-darts",
    Method(
        source="Chu et al., arXiv:1911.12126",
        spaces={"darts": {"operations": "paper"}, "nasbench201": {"operations": "without-none"}, "module": {}},
        relaxation=Sigmoid(),
        regularizer=ZeroOne(weight=10.0),
        # the benchmark has one operation on an edge, so its cells keep the strongest
        discretization={"darts": TopEdges(threshold=THRESHOLD), "nasbench201": Argmax()},
        settings={
            "weight_optimizer.lr": 0.005,
            "batch_size": 128,
            "arch_optimizer.lr": 3e-3,
            "arch_optimizer.betas": (0.9, 0.999),
        },
        paper_name="SGE-NAS-c",
    ),
)
METHODS.register(
    "beta-darts",
    Method(
        source="Ye et al., arXiv:2203.01665",
        spaces={"darts": {"operations": "paper"}} | EVERYWHERE,
        regularizer=BetaDecay(weight=50.0),
        paper_name="SGE-NAS-d",
    ),
)
METHODS.register(
    "drnas",
    Method(
        source="Chen et al., arXiv:2006.10355",
        # the released search starts with 1 / 6 of the channels and ends with 1 / 4, of fewer operations
        spaces={"darts": {"operations": "paper"}} | EVERYWHERE,
        relaxation=Dirichlet(),
        regularizer=ConcentrationAnchor(weight=1e-3),
        settings={
            "weight_optimizer.lr": 0.1,
            "lr_min": 0.0,
            "arch_optimizer.lr": 6e-4,
            # the regularizer stands for it
            "arch_optimizer.weight_decay": 0.0,
            "warmup_epochs": 10,
        },
    ),
)
METHODS.register(
    "gdas",
    Method(
        source="Dong and Yang, arXiv:1910.04465",
        spaces={"darts": {"operations": "darts"}} | EVERYWHERE,
        relaxation=GumbelSoftmax(),
        settings={
            "weight_optimizer.nesterov": True,
            "weight_optimizer.weight_decay": 5e-4,
            "batch_size": 256,
            "epochs": 250,
        },
    ),
)


EPOCHS = 50
"""Of a method whose source says nothing else."""

PAPER: dict[str, Any] = {
    "space.operations": "paper",
    "space.activation": "relu",
    "estimator": "sge",
    "estimator.smoothing": 0.01,
    "estimator.num_directions": 10,
    "trajectory_lr": 0.01,
    "weight_optimizer.lr": 0.005,
    "arch_optimizer": "sgd",
    "arch_optimizer.lr": 0.01,
    "arch_optimizer.weight_decay": 0.0,
}
"""Settings of the SGE-NAS paper, the same for its four search runs (section 4 and Algorithm 1).

Where the paper says nothing (batch size, epochs, warm-up), the source of the method is followed. The smoothing,
which the paper does not give either, is that of its reference [11] (PZOBO, arXiv:2110.07004).
"""

NASBENCH201: dict[str, Any] = {
    "space": "nasbench201",
    "space.channels": 8,
    "space.layers": 3,
    "data.image_size": 16,
    "batch_size": 64,
    "epochs": 4,
    "weight_optimizer.lr": 0.025,
    "lr_min": 0.001,
    "arch_optimizer.lr": 1e-3,
    # near chance with the supernet's weights, whatever the cell
    "derived_every": 0,
    # the derived cell and the runner-up of each of the 6 edges
    "selection": "training",
    "selection.candidates": 7,
}
"""One protocol for all methods in NAS-Bench-201, for one thread of a CPU: on CIFAR-10 1,560 steps with all images at
16 x 16 pixels, and 7 trainings of 400 steps. Methods keep their parts, and their share of warm-up epochs. Evidence:
docs/benchmarks/results.md.
"""

PRESETS = ("source", "paper", "nasbench201")


def preset(method: str, kind: str = "source") -> dict[str, Any]:
    """Settings of a method, {name: value} as this module describes.

    Args:
        method: Registered name.
        kind: ``source`` for those of its source, ``paper`` for the SGE-NAS paper's on top of them,
            ``nasbench201`` for a search of that benchmark in minutes on a CPU.

    Raises:
        InvalidValueError: If a name is unknown.
    """
    require_choice("preset", kind, PRESETS)
    found = dict(METHODS.get(method).settings)
    if kind == "paper":
        # betas belong to the source's Adam, which the paper does not use
        found = {name: value for name, value in found.items() if name != "arch_optimizer.betas"} | PAPER
    elif kind == "nasbench201":
        share = found.get("warmup_epochs", 0) / found.get("epochs", EPOCHS)
        found |= NASBENCH201 | {"warmup_epochs": round(share * NASBENCH201["epochs"])}
    return found
