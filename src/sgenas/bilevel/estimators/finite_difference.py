"""Second-order DARTS: the last inner step differentiated by a finite difference in the weights."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from sgenas import tree
from sgenas.bilevel.estimators.base import Context, Estimator
from sgenas.bilevel.problem import Cost
from sgenas.errors import require
from sgenas.optim import step_vjp
from sgenas.tree import Tree


@dataclass(frozen=True)
class FiniteDifference(Estimator):
    r"""DARTS' second-order hypergradient (arXiv:1806.09055, Eq. 7 and 8), for any inner optimizer.

    w = Y^{N-1}, g = d L_train(w) / d w, w' = Y^N is the result of the optimizer's step from w with g, and
    p = (d w' / d g)^T d L_val(w') / d w. With epsilon = radius / ||p||, the indirect gradient is

        [ d L_train(w + epsilon p) / d alpha - d L_train(w - epsilon p) / d alpha ] / (2 epsilon)

    on the batch of the last inner step. For plain SGD p = -lr v and this is DARTS' formula. Only that step
    is differentiated: for N > 1 the dependence of Y^{N-1} on alpha is left out. Error O(radius^2); none if
    d L_train / d alpha is affine in w. Cost: N + 3 passes.

    Args:
        radius: Length of the step epsilon p in weight space, > 0; DARTS uses 0.01.
    """

    radius: float = 0.01

    differentiates_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 < self.radius < math.inf, "FiniteDifference.radius", "> 0 and finite", self.radius)

    def kept_steps(self, inner_steps: int) -> int:
        return 1

    def indirect_cost(self, inner_steps: int) -> Cost:
        return Cost(2, 2)

    def indirect_gradient(self, context: Context) -> Tree:
        problem, last, batch = context.problem, context.trajectory.steps[-1], context.inner_batches[-1]
        _, _, p = step_vjp(problem.inner_optimizer, last.before, last.grad, context.v)
        norm = tree.norm(p)
        # p = 0 has no indirect gradient: both sides of the difference are then equal instead of 0 / 0
        tiny = torch.finfo(norm.dtype).tiny
        epsilon = torch.where(norm > tiny, self.radius / norm.clamp_min(tiny), 0.0)
        weights = last.before.weights
        _, plus = problem.inner_alpha_gradient(tree.add(weights, p, epsilon), context.alphas, batch)
        _, minus = problem.inner_alpha_gradient(tree.add(weights, p, -epsilon), context.alphas, batch)
        return tree.scale(tree.subtract(plus, minus), norm / (2 * self.radius))
