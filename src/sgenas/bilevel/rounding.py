"""What low precision does to a hypergradient: measured on the problem at hand, beside float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sgenas import trees
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.result import Estimator
from sgenas.trees import Tree


@dataclass(frozen=True)
class Rounding:
    """noise_floor: ||i_low - i_high||, by how much rounding moves the indirect part of a hypergradient.
    length: ||i_high||, the part itself. Both in units of the outer loss per unit of alpha."""

    noise_floor: float
    length: float

    @property
    def share(self) -> float:
        """noise_floor / length: 0 where rounding changes nothing, 1 and more where it drowns the part."""
        if self.noise_floor == 0:
            return 0.0
        return self.noise_floor / self.length if self.length > 0 else float("inf")


def measure(
    estimator: Estimator,
    low: BilevelProblem,
    high: BilevelProblem,
    state: InnerState,
    alphas: Tree,
    inner_batches: Sequence[Any],
    outer_batch: Any,
    *,
    seed: int,
) -> Rounding:
    r"""The noise floor of an estimator whose losses are rounded:

        noise_floor = || i_low - i_high ||,    i = grad - d L_val / d alpha,

    i_low from the problem `low`, i_high from `high`, which is the same problem in a higher precision; both
    on the same batches, along the same directions (drawn from `seed`), from the same start. It holds for
    this mu, these batches and these weights. What is compared is the indirect part alone: the direct one is
    a plain derivative, which low precision leaves within its own rounding.

    Why not differences of one loss at tiny steps: these show the rounding of the loss, while an estimator
    subtracts gradients and projections, in which rounding adds up otherwise. Cost: two calls of the
    estimator. Raises what it raises, DivergenceError above all.
    """

    def indirect(problem: BilevelProblem) -> Tree:
        draw = torch.Generator().manual_seed(seed)
        return estimator(problem, state, alphas, inner_batches, outer_batch, generator=draw).indirect

    exact = indirect(high)
    noise = trees.subtract(indirect(low), exact)
    return Rounding(trees.norm(noise).item(), trees.norm(exact).item())
