"""Terms that a method adds to the outer loss: functions of the raw alphas, with a direct gradient only."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from sgenas.errors import require, require_choice
from sgenas.fields import option
from sgenas.registry import Registry
from sgenas.spaces.relaxations import concentration, edge_tables
from sgenas.tree import TensorDict


@dataclass(frozen=True)
class Regularizer:
    """Base of the regularizers: ``weight * factor * value(alphas)``.

    Attributes:
        rises_over: Steps of a search over which the factor grows from 0 to 1, and on at that rate; None if it is
            always 1. It is 1 until `at_step` is called.

    Args:
        weight: Coefficient of the term in the outer loss, at least 0.
    """

    rises_over: ClassVar[int | None] = None
    weight: float = 1.0
    # set by `at_step`
    factor: float = field(default=1.0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(0 <= self.weight < float("inf"), f"{type(self).__name__}.weight", ">= 0 and finite", self.weight)

    def at_step(self, step: int) -> Self:
        """The regularizer in step ``step`` of a search, counted from 0."""
        if self.rises_over is None:
            return self
        other = copy.copy(self)
        object.__setattr__(other, "factor", step / self.rises_over)
        return other

    def value(self, alphas: TensorDict) -> Tensor:
        """The term without its weight, a 0-d tensor."""
        raise NotImplementedError

    def __call__(self, alphas: TensorDict) -> Tensor:
        """The term of the outer loss, a 0-d tensor, differentiable in the alphas."""
        return self.weight * self.factor * self.value(alphas)


@dataclass(frozen=True)
class BetaDecay(Regularizer):
    """Mean over edges of logsumexp over the operations of an edge (beta-DARTS, arXiv:2203.01665).

    Its gradient is softmax(alpha) / edges: the largest alphas are pulled down most. The mean is over the
    edges of all tables together; the released code has one table. Weights of edges (PC-DARTS) are left alone. The
    coefficient rises with the steps,
    weight * step / 39,100: alphas move by about one learning rate per step, so a shorter search needs a
    weaker pull. A search of 2,000 steps ends at 2.6.

    Args:
        weight: Coefficient after 39,100 steps. 50 is the released code's 50 epoch / 100, in epochs of 391
            steps.
    """

    rises_over: ClassVar[int] = 39_100
    weight: float = 50.0

    def value(self, alphas: TensorDict) -> Tensor:
        edges = edge_tables(alphas)
        tables = [table for name, table in alphas.items() if name not in edges]
        return torch.cat([table.logsumexp(dim=-1).flatten() for table in tables]).mean()


@dataclass(frozen=True)
class ZeroOne(Regularizer):
    """Pushes sigmoid(alpha) towards 0 or 1 (Fair DARTS, arXiv:1911.12126).

        squared: -mean (sigmoid(alpha) - 1/2)^2      absolute: -mean |sigmoid(alpha) - 1/2|

    over all entries of all tables. Value and gradient of the squared form are 0 at alpha = 0.

    Args:
        weight: Coefficient of the term in the outer loss, at least 0.
        form: ``squared`` (the released code's default) or ``absolute``.
    """

    weight: float = 10.0
    form: str = option("squared", choices=("squared", "absolute"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("ZeroOne.form", self.form, ("squared", "absolute"))

    def value(self, alphas: TensorDict) -> Tensor:
        from_half = _entries(alphas.values()).sigmoid() - 0.5
        return -(from_half.square() if self.form == "squared" else from_half.abs()).mean()


@dataclass(frozen=True)
class ConcentrationAnchor(Regularizer):
    """Distance 1/2 sum (c - 1)^2 of the Dirichlet concentrations c = elu(alpha) + 1 from 1 (DrNAS, arXiv:2006.10355).

    For alpha >= 0 it has the gradient weight * alpha, as the weight decay of Adam by which the released code
    implements it. Use one of the two, not both.

    Args:
        weight: Coefficient of the term in the outer loss, at least 0.
    """

    weight: float = 1e-3

    def value(self, alphas: TensorDict) -> Tensor:
        return 0.5 * (_entries(concentration(table) for table in alphas.values()) - 1).square().sum()


def _entries(tables: Iterable[Tensor]) -> Tensor:
    return torch.cat([table.flatten() for table in tables])


REGULARIZERS: Registry[type[Regularizer]] = Registry("regularizer", "sgenas.regularizers")
REGULARIZERS.register("beta-decay", BetaDecay)
REGULARIZERS.register("zero-one", ZeroOne)
REGULARIZERS.register("concentration-anchor", ConcentrationAnchor)
