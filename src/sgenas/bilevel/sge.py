"""The stochastic gradient estimator of the paper: Algorithm 1 with Eq. 6."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sgenas import trees
from sgenas.bilevel.directions import gaussian
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


@dataclass(frozen=True)
class SGE:
    r"""Stochastic gradient estimator: the Jacobian d w / d alpha is measured along random directions.

    Directions u_j ~ N(0, I), j = 1..Q, over all alphas jointly. From the same start, Y^t follows N inner
    steps at alpha and Y_j^t at alpha + mu u_j, all on the same batches. With delta_j = (Y_j^N - Y^N) / mu and
    v = d L_val(Y^N, alpha) / d w,

        grad = d L_val(Y^N, alpha) / d alpha + (1/Q) sum_j <delta_j, v> u_j                           (Eq. 6).

    num_directions: Q. smoothing: mu, in units of alpha. The estimate is unbiased for the derivative of the
    N steps up to O(mu); with p alphas in all, its indirect part has relative error about sqrt((p + 1) / Q).
    `diagnostics["projections"]` holds <delta_j, v>, shape (Q,).

    Cost: (Q + 1) N + 1 forward and backward passes. Memory: one more set of weights at a time, since the
    perturbed trajectories are followed one after the other. Raises InvalidValueError for Q < 1, mu <= 0 and
    a missing generator.
    """

    num_directions: int = 10
    smoothing: float = 0.01

    def __post_init__(self) -> None:
        if self.num_directions < 1:
            raise InvalidValueError(f"SGE.num_directions must be >= 1, got {self.num_directions}")
        if not 0 < self.smoothing < float("inf"):
            raise InvalidValueError(f"SGE.smoothing must be > 0 and finite, got {self.smoothing}")

    def cost(self, inner_steps: int) -> Cost:
        """(Q + 1) N + 1 passes, (Q + 1) N steps."""
        steps = (self.num_directions + 1) * inner_steps
        return Cost(steps + 1, steps + 1, steps)

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,
    ) -> HypergradientResult:
        if generator is None:
            raise InvalidValueError("SGE needs generator=torch.Generator() for its directions, got None")
        trajectory = problem.run(state, alphas, inner_batches)
        end = trajectory.end
        outer_loss, v, direct = problem.outer_gradients(end.weights, alphas, outer_batch)

        grad = direct
        projections = []
        for direction in gaussian(self.num_directions, alphas, generator):
            perturbed = problem.run(state, trees.add(alphas, direction, self.smoothing), inner_batches).end
            delta = trees.scale(trees.subtract(perturbed.weights, end.weights), 1 / self.smoothing)
            projection = trees.dot(delta, v)
            grad = trees.add(grad, direction, projection / self.num_directions)
            projections.append(projection)

        cost = self.cost(len(inner_batches))
        diagnostics = {"projections": torch.stack(projections)}
        return HypergradientResult(grad, direct, end, trajectory.losses, outer_loss, cost, diagnostics)
