"""Second-order DARTS: one step of the trajectory is differentiated, by a finite difference in the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sgenas import trees
from sgenas.bilevel.divergence import require_finite
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem, Trajectory
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


@dataclass(frozen=True)
class FiniteDifference:
    r"""DARTS' second-order hypergradient (arXiv:1806.09055, Eq. 7 and 8; architect.py of its code).

    w = Y^{N-1}, w' = Y^N (the "virtual step", momentum and weight decay included), v = d L_val(w') / d w,
    epsilon = radius / ||v||, and

        grad = d L_val(w') / d alpha
               - lr [ d L_train(w + epsilon v) / d alpha - d L_train(w - epsilon v) / d alpha ] / (2 epsilon),

    the difference taken around w, on the batch of the last inner step. Only that last step is differentiated:
    for N > 1 the dependence of Y^{N-1} on alpha is left out. Where gradient clipping is active, v is first
    pulled back through it (DARTS leaves that out); without clipping the two are the same.

    radius: length of the step epsilon v in weight space, DARTS' 0.01. Error O(epsilon^2), none where
    d L_train / d alpha is affine in w. one_sided: the difference is taken between w + epsilon v and w itself,
    whose gradient the last inner step gives along with its own: a pass less, error O(epsilon).
    Cost: N + 3 forward and backward passes, N + 2 if one-sided. `generator` is not used.
    Raises DivergenceError for a loss that is not finite.
    """

    radius: float = 0.01
    one_sided: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise InvalidValueError(f"FiniteDifference.radius must be > 0 and finite, got {self.radius}")

    def cost(self, inner_steps: int) -> Cost:
        """N + 3 passes, N + 2 if one-sided, N steps."""
        passes = inner_steps + (2 if self.one_sided else 3)
        return Cost(passes, passes, inner_steps)

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,  # noqa: ARG002
        memory: Tree | None = None,  # noqa: ARG002
    ) -> HypergradientResult:
        trajectory = problem.run(state, alphas, inner_batches, alpha_gradient=self.one_sided)
        outer_loss, v, direct = problem.outer_gradients(trajectory.end.weights, alphas, outer_batch)
        require_finite(trajectory.losses, outer_loss)
        indirect = one_step_indirect(problem, trajectory, alphas, inner_batches[-1], v, self.radius)
        grad, cost = trees.add(direct, indirect), self.cost(len(inner_batches))
        return HypergradientResult(grad, direct, trajectory.end, trajectory.losses, outer_loss, cost)


def one_step_indirect(
    problem: BilevelProblem, trajectory: Trajectory, alphas: Tree, batch: Any, v: Tree, radius: float
) -> Tree:
    """The indirect part of `FiniteDifference`, by two passes on the batch of the last inner step.

    One-sided, by one pass, where the trajectory has d L_train / d alphas of that step.
    """
    optimizer = problem.inner_optimizer
    v = optimizer.pull_back(trajectory.last_grad, v)
    length = trees.norm(v)
    # v = 0 has no indirect part: the floor makes both sides of the difference equal instead of 0/0
    epsilon = radius / length.clamp_min(torch.finfo(length.dtype).tiny)
    weights = trajectory.before_last.weights
    _, plus = problem.inner_alpha_gradient(trees.add(weights, v, epsilon), alphas, batch)
    if trajectory.last_alpha_grad is not None:
        return trees.scale(trees.subtract(plus, trajectory.last_alpha_grad), -optimizer.lr / epsilon)
    _, minus = problem.inner_alpha_gradient(trees.add(weights, v, -epsilon), alphas, batch)
    return trees.scale(trees.subtract(plus, minus), -optimizer.lr / (2 * epsilon))
