"""Evolution strategies, the paper's reference [3]: the outer objective after N inner steps as a black box."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from sgenas import tree
from sgenas.bilevel.estimators.base import Context, Estimator, require_finite_directions
from sgenas.bilevel.estimators.sge.aggregation import aggregate
from sgenas.bilevel.estimators.sge.directions import DIRECTIONS, check, draw, perturbed
from sgenas.bilevel.problem import Cost
from sgenas.errors import require
from sgenas.fields import option
from sgenas.tree import Tree


@dataclass(frozen=True)
class EvolutionStrategies(Estimator):
    r"""Evolution strategies: only values of F(alpha) = L_val(Y^N(alpha), alpha) are used.

        grad = (1/Q) sum_j [F(alpha + mu u_j) - F(alpha)] / mu u_j

    Every F follows the N inner steps from the same start on the same batches and is taken on the same outer
    batch (common random numbers). With ``antithetic`` directions the differences are central.

    The direct gradient is inside the estimate and as noisy as the rest: with p alphas the relative error is
    about sqrt((p + 1) / Q) of the *whole* gradient (SGE: of the indirect gradient alone). The result's
    ``direct`` is nevertheless the exact one, by a backward pass at Y^N (zero if the outer loss has no
    derivative), and ``indirect`` the rest of the estimate. The estimate is unbiased up to O(mu^2).

    ``diagnostics``: ``projections``, the differences (Q,); ``standard_error``, for independent directions,
    the estimated norm of the error. Cost: (Q + 1) (N + 1) forward and (Q + 1) N + 1 backward passes.

    Args:
        num_directions: Number of random directions Q, >= 1.
        smoothing: Perturbation scale mu in units of alpha, > 0.
        directions: Distribution of the directions; see ``SGE``.

    Raises:
        InvalidValueError: If a setting is out of range.
        DivergenceError: If a loss is NaN or infinite.
    """

    num_directions: int = option(10, flag="directions")
    smoothing: float = 0.01
    directions: str = option("gaussian", flag="direction-kind", choices=tuple(DIRECTIONS))

    draws: ClassVar[bool] = True
    uses_v: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check("EvolutionStrategies", self.directions, self.num_directions)
        good = 0 < self.smoothing < math.inf
        require(good, "EvolutionStrategies.smoothing", "> 0 and finite", self.smoothing)

    def indirect_cost(self, inner_steps: int) -> Cost:
        steps = self.num_directions * inner_steps
        return Cost(steps + self.num_directions, steps, steps)

    def trained_points(self, alphas: Tree, generator: torch.Generator) -> list[Tree]:
        return perturbed(alphas, draw(self.directions, self.num_directions, alphas, generator), self.smoothing)

    def indirect_gradient(self, context: Context) -> Tree:
        problem, alphas = context.problem, context.alphas
        assert context.generator is not None
        matrix = draw(self.directions, self.num_directions, alphas, context.generator)
        points, values = perturbed(alphas, matrix, self.smoothing), []
        for moved in points:
            end = problem.run(context.state, moved, context.inner_batches).end
            values.append(problem.outer_value(end.weights, moved, context.outer_batch))
        differences = (torch.stack(values) - context.outer_loss) / self.smoothing
        require_finite_directions(context, differences, points)
        found, known = aggregate(matrix, differences, self.directions)
        context.diagnostics.update(projections=differences, **known)
        return tree.subtract(tree.unflatten(found, alphas), context.direct)
