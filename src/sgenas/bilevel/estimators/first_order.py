"""First order: the direct gradient alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sgenas import tree
from sgenas.bilevel.estimators.base import Context, Estimator
from sgenas.tree import Tree


@dataclass(frozen=True)
class FirstOrder(Estimator):
    """The direct gradient d L_val(Y^N, alpha) / d alpha; the weights count as constants.

    With N = 1 and the end of the trajectory as the next weights this is the first-order DARTS alternation
    (arXiv:1806.09055, section 2.3 with xi = 0). Cost: N + 1 passes.
    """

    uses_v: ClassVar[bool] = False

    def trained_points(self, alphas: Tree, generator: torch.Generator) -> list[Tree]:
        return []

    def indirect_gradient(self, context: Context) -> Tree:
        """Zeros."""
        return tree.zeros_like(context.alphas)
