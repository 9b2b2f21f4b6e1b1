"""The stochastic gradient estimator of the paper: Algorithm 1 with Eq. 6."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import projections
from sgenas.bilevel.directions import gaussian
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.projections import Perturbation
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

COMPUTATIONS: dict[str, Callable[[Perturbation], Tensor]] = {
    # the cheapest exact one that was measured; where another wins, this is the line to change
    "auto": projections.streamed,
    "loop": projections.loop,
    "streamed": projections.streamed,
    "vectorised": projections.vectorised,
    "directional": projections.directional,
    "difference": projections.difference,
}
"""name -> how the projections are computed, see `sgenas.bilevel.projections`."""


@dataclass(frozen=True)
class SGE:
    r"""Stochastic gradient estimator: the Jacobian d w / d alpha is measured along random directions.

    Directions u_j ~ N(0, I), j = 1..Q, over all alphas jointly. From the same start, Y^t follows N inner
    steps at alpha and Y_j^t at alpha + mu u_j, all on the same batches. With delta_j = (Y_j^N - Y^N) / mu and
    v = d L_val(Y^N, alpha) / d w,

        grad = d L_val(Y^N, alpha) / d alpha + (1/Q) sum_j <delta_j, v> u_j                           (Eq. 6).

    num_directions: Q. smoothing: mu, in units of alpha. computation: how the projections <delta_j, v> are
    computed, one of COMPUTATIONS; all but `difference` give the same numbers up to rounding. chunk: for
    `vectorised`, the perturbed trajectories at a time (None: all, and half as many whenever a GPU runs out of
    memory).

    A single <delta_j, v> is off the derivative of the N steps along u_j by O(mu), the estimate is unbiased up
    to O(mu^2). With p alphas in all, its indirect part has relative error about sqrt((p + 1) / Q).
    `diagnostics["projections"]` holds <delta_j, v>, shape (Q,).

    Cost: (Q + 1) N + 1 forward and backward passes; `directional` and `difference` have no backward pass in
    the last step of a perturbed trajectory. Memory: one more set of weights at a time, but for `vectorised`,
    since the perturbed trajectories are followed one after the other. Raises InvalidValueError for Q < 1,
    mu <= 0, an unknown computation, a chunk < 1 or without effect, and a missing generator.
    """

    num_directions: int = 10
    smoothing: float = 0.01
    computation: str = "auto"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.num_directions < 1:
            raise InvalidValueError(f"SGE.num_directions must be >= 1, got {self.num_directions}")
        if not 0 < self.smoothing < float("inf"):
            raise InvalidValueError(f"SGE.smoothing must be > 0 and finite, got {self.smoothing}")
        if self.computation not in COMPUTATIONS:
            known = ", ".join(COMPUTATIONS)
            raise InvalidValueError(f"SGE.computation must be one of {known}, got {self.computation!r}")
        if self.chunk is not None and (self.chunk < 1 or self.computation != "vectorised"):
            raise InvalidValueError(
                f"SGE.chunk must be >= 1 and only applies with computation 'vectorised', got {self.chunk}"
            )

    def cost(self, inner_steps: int) -> Cost:
        """(Q + 1) N + 1 passes, (Q + 1) N steps; see the class for what saves backward passes.

        A forward-mode derivative counts as one forward pass.
        """
        steps = (self.num_directions + 1) * inner_steps
        if self.computation not in ("directional", "difference"):
            return Cost(steps + 1, steps + 1, steps)
        backward = steps + 1 - self.num_directions
        # two passes a slope, the unperturbed one included, or one for each direction alone
        slopes = self.num_directions
        if self.computation == "difference":
            slopes = 2 * (self.num_directions + 1)
        return Cost(backward + slopes, backward, steps)

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

        directions = gaussian(self.num_directions, alphas, generator)
        task = Perturbation(
            problem, state, alphas, directions, self.smoothing, inner_batches, trajectory, v, self.chunk
        )
        measured = COMPUTATIONS[self.computation](task)
        grad = direct
        for direction, projection in zip(directions, measured, strict=True):
            grad = trees.add(grad, direction, projection / self.num_directions)
        cost = self.cost(len(inner_batches))
        diagnostics = {"projections": measured}
        return HypergradientResult(grad, direct, end, trajectory.losses, outer_loss, cost, diagnostics)
