"""First order: the direct gradient alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sgenas.bilevel.divergence import require_finite
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.trees import Tree


@dataclass(frozen=True)
class FirstOrder:
    """Eq. 3 without its second term: grad = d L_val(Y^N, alpha) / d alpha, the weights taken as constants.

    With N = 1 and the trajectory's end as the next weights this is the first-order DARTS alternation
    (arXiv:1806.09055, section 2.3 with xi = 0): a step of the weights, a step of the alphas, and so on.
    Cost: N + 1 forward and backward passes. `generator` is not used. Raises DivergenceError for a loss that
    is not finite.
    """

    def cost(self, inner_steps: int) -> Cost:
        """N + 1 passes, N steps."""
        return Cost(inner_steps + 1, inner_steps + 1, inner_steps)

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
        trajectory = problem.run(state, alphas, inner_batches)
        outer_loss, direct = problem.outer_alpha_gradient(trajectory.end.weights, alphas, outer_batch)
        require_finite(trajectory.losses, outer_loss)
        cost = self.cost(len(inner_batches))
        return HypergradientResult(direct, direct, trajectory.end, trajectory.losses, outer_loss, cost)
