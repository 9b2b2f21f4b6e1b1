"""Flat minima in the alphas (A2M): the hypergradient of the outer loss one step of ascent away."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from sgenas import tree
from sgenas.bilevel import BilevelProblem, Cost, Estimator, FirstOrder, HypergradientResult
from sgenas.bilevel.problem import Counter
from sgenas.errors import require
from sgenas.optim import InnerState
from sgenas.tree import Tree

EVALUATIONS = 4
"""Hypergradients of a step: at the alphas, one step of ascent away, and on both sides of the alphas."""
DIFFERENCE = 0.01
"""Distance to either side, as DARTS has it for its difference."""


@dataclass(frozen=True)
class Flatness:
    """Architecture-aware minimization (Gambella et al. 2025, arXiv:2503.10404) with any estimator.

    With the outer objective f(alpha) = L_val(w(alpha), alpha) and its hypergradient g, minimizes

        f(alpha + rho g(alpha)),

    whose gradient is, by the chain rule,

        g~ + rho H g~,   g~ = g(alpha + rho g(alpha)),   H = d g / d alpha at alpha,
        H g~ = (g(alpha + e) - g(alpha - e)) ||g~|| / (2 r),   e = r g~ / ||g~||,   r = 0.01.

    The ascent is not normalized, as in the released code, whose H is at the end of the ascent instead. g is the
    estimator's; all four calls share batches and random directions. With `FirstOrder`, for which the weights are
    constants, all four are at the weights of the first.

    Args:
        rho: Step of the ascent, at least 0; 0 for the plain hypergradient.
    """

    rho: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.rho < inf, "flatness", ">= 0 and finite", self.rho)

    @property
    def evaluations(self) -> int:
        """Hypergradients per step of the alphas."""
        return EVALUATIONS if self.rho else 1

    def cost(self, estimator: Estimator, inner_steps: int) -> Cost:
        """An upper bound of what a call costs."""
        one, more = estimator.cost(inner_steps), self.evaluations - 1
        if isinstance(estimator, FirstOrder):
            return one + Cost(more, more)
        return sum((one for _ in range(more)), one)

    def __call__(
        self,
        estimator: Estimator,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator,
    ) -> HypergradientResult:
        """The estimator's result with this ``grad`` and cost; all else is that of the plain hypergradient."""
        before = generator.get_state()
        result = estimator(problem, state, alphas, inner_batches, outer_batch, generator=generator)
        if not self.rho:
            return result
        after, counter = generator.get_state(), Counter(result.cost)

        def gradient(there: Tree) -> Tree:
            if isinstance(estimator, FirstOrder):
                counted = dataclasses.replace(problem, counter=counter)
                return counted.outer_alpha_gradient(result.state.weights, there, outer_batch)[1]
            generator.set_state(before)
            found = estimator(problem, state, there, inner_batches, outer_batch, generator=generator)
            counter.total += found.cost
            return found.grad

        grad = flat_gradient(gradient, alphas, result.grad, self.rho)
        generator.set_state(after)
        return dataclasses.replace(result, grad=grad, cost=counter.total)


def flat_gradient(gradient: Callable[[Tree], Tree], alphas: Tree, here: Tree, rho: float) -> Tree:
    """The gradient of f(alpha + rho g(alpha)) for g = ``gradient``, with g(alpha) = ``here``; three calls."""
    ascended = gradient(tree.add(alphas, here, rho))
    norm = tree.norm(ascended).clamp_min(torch.finfo(tree.tensors(ascended)[0].dtype).tiny)
    step = tree.scale(ascended, DIFFERENCE / norm)
    ahead, behind = gradient(tree.add(alphas, step)), gradient(tree.subtract(alphas, step))
    return tree.add(ascended, tree.subtract(ahead, behind), rho / (2 * DIFFERENCE) * norm)
