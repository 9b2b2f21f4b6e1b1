"""Evolution strategies, the paper's reference [3]: the outer objective after N inner steps as a black box."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sgenas import trees
from sgenas.bilevel.averaging import average
from sgenas.bilevel.directions import check, draw
from sgenas.bilevel.divergence import along, first_not_finite, require_finite
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


@dataclass(frozen=True)
class EvolutionStrategies:
    r"""Evolution strategies: only values of F(alpha) = L_val(Y^N(alpha), alpha) are used.

        grad = (1/Q) sum_j [F(alpha + mu u_j) - F(alpha)] / mu u_j

    Every F follows the N inner steps from the same start on the same batches and is taken on the same outer
    batch (common random numbers: what the batches add to both sides cancels). With `sphere` directions it is
    the estimator of Gu et al., arXiv:2102.09026, the paper's reference [3]; with `antithetic` ones the
    differences are central.

    num_directions: Q. smoothing: mu, in units of alpha. directions: a name in `directions.KINDS`.

    The direct part is inside the estimate and as noisy as the rest: with p alphas its relative error is about
    sqrt((p + 1) / Q) of the *whole* gradient (SGE: of the indirect part alone). The result's `direct` is
    nevertheless the exact one, by a backward pass at Y^N that the estimate does not use (zero where the outer
    loss has no derivative), and `indirect` what the estimate differs from it by. A single difference is off
    by O(mu), the estimate is unbiased up to O(mu^2).

    `diagnostics`: "projections", the differences, (Q,); "standard_error", for independent directions (and
    pairs), the estimated length of the gradient's error. Cost: (Q + 1) (N + 1) forward and (Q + 1) N + 1
    backward passes. Memory: one more set of weights. Raises InvalidValueError for Q < 1, mu <= 0, unknown
    directions, an odd number of antithetic ones and a missing generator, DivergenceError for a loss that is
    not finite.
    """

    num_directions: int = 10
    smoothing: float = 0.01
    directions: str = "gaussian"

    def __post_init__(self) -> None:
        check("EvolutionStrategies", self.directions, self.num_directions)
        if not 0 < self.smoothing < float("inf"):
            raise InvalidValueError(
                f"EvolutionStrategies.smoothing must be > 0 and finite, got {self.smoothing}"
            )

    def cost(self, inner_steps: int) -> Cost:
        """(Q + 1) (N + 1) forward and (Q + 1) N + 1 backward passes, (Q + 1) N steps."""
        steps = (self.num_directions + 1) * inner_steps
        return Cost(steps + self.num_directions + 1, steps + 1, steps)

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,
        memory: Tree | None = None,  # noqa: ARG002
    ) -> HypergradientResult:
        if generator is None:
            raise InvalidValueError(
                "EvolutionStrategies needs generator=torch.Generator() for its directions, got None"
            )
        trajectory = problem.run(state, alphas, inner_batches)
        outer_loss, direct = problem.outer_alpha_gradient(trajectory.end.weights, alphas, outer_batch)
        require_finite(trajectory.losses, outer_loss)

        drawn = draw(self.directions, self.num_directions, alphas, generator)
        values, losses = [], []
        for direction in drawn.trees(alphas):
            moved = trees.add(alphas, direction, self.smoothing)
            other = problem.run(state, moved, inner_batches)
            values.append(problem.outer_value(other.end.weights, moved, outer_batch))
            losses.append(other.losses)
        measured = (torch.stack(values) - outer_loss) / self.smoothing
        index = first_not_finite(measured)
        if index is not None:
            require_finite(losses[index], values[index], along(index, self.num_directions))
        found = average(drawn, measured)
        diagnostics = {"projections": measured}
        if found.variance is not None:
            diagnostics["standard_error"] = found.variance.sqrt()
        grad, cost = trees.unflatten(found.gradient, alphas), self.cost(len(inner_batches))
        end = trajectory.end
        return HypergradientResult(grad, direct, end, trajectory.losses, outer_loss, cost, diagnostics)
