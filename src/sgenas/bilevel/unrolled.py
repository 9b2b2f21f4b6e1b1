"""Unrolled: the N inner steps differentiated exactly, backwards along the stored trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sgenas import trees
from sgenas.bilevel.curvature import mixed_slope, weight_slope
from sgenas.bilevel.divergence import require_finite
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


@dataclass(frozen=True)
class Unrolled:
    r"""The exact derivative of L_val(Y^N(alpha), alpha): reverse mode through the inner steps, by hand.

    Begin with y = d L_val(Y^N) / d w and z = 0, what the weights and the momentum after the last step are
    worth. A step from weights w with gradient g is walked back by

        b = z - lr y,   s = C^T b,   indirect += M s,   y += H s + wd b,   z = m b,

    H = d^2 L / d w^2 and M = d^2 L / (d alpha d w) of L_train at w, m the momentum, wd the weight decay, C
    the derivative of clipping at g (`SGD.pull_back`; the identity without it). This is what automatic
    differentiation through the steps computes, for the memory of one pass and of N sets of weights instead of
    N passes. H s and M s come together, from one pass in forward mode over the gradient
    (`curvature.weight_slope`).

    last_steps: k, walk back the last k steps only, as if Y^{N-k} did not depend on alpha (None: all N).

    Exact for smooth losses; ReLU and maximum count as if their kinks were not there. With k < N steps the
    error is what the steps before them would add; without momentum it falls as (1 - lr c)^k where the
    curvature is at least c.

    Cost: N + 1 passes and k in forward mode, which count twice. `generator` is not used. Raises
    InvalidValueError for k < 1 or k > N, DivergenceError for a loss that is not finite.
    """

    last_steps: int | None = None

    def __post_init__(self) -> None:
        if self.last_steps is not None and self.last_steps < 1:
            raise InvalidValueError(f"Unrolled.last_steps must be >= 1 or None, got {self.last_steps}")

    def cost(self, inner_steps: int) -> Cost:
        """N + 1 + 2 k passes, N steps."""
        passes = inner_steps + 1 + 2 * (self.last_steps or inner_steps)
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
        steps = len(inner_batches)
        walked = steps if self.last_steps is None else self.last_steps
        if steps and walked > steps:
            raise InvalidValueError(
                f"inner_batches must hold at least Unrolled.last_steps = {walked} batches, got {steps}"
            )
        clips = problem.inner_optimizer.grad_clip is not None
        losses, stored = [], []
        for index, step in enumerate(problem.steps(state, alphas, inner_batches)):
            losses.append(step.loss)
            if index >= steps - walked:
                stored.append((step.before.weights, step.grad if clips else {}))
        end = step.after
        outer_loss, v, direct = problem.outer_gradients(end.weights, alphas, outer_batch)
        require_finite(losses, outer_loss)
        indirect = _walk_back(problem, stored, alphas, inner_batches[steps - walked :], v)
        grad, cost = trees.add(direct, indirect), self.cost(steps)
        return HypergradientResult(grad, direct, end, tuple(losses), outer_loss, cost)


def _walk_back(
    problem: BilevelProblem, stored: list[tuple[Tree, Tree]], alphas: Tree, batches: Sequence[Any], v: Tree
) -> Tree:
    """The indirect part of `Unrolled` from the (weights, gradient) of each step; empties `stored`."""
    optimizer, loss = problem.inner_optimizer, problem.inner_loss
    indirect = trees.zeros_like(alphas)
    of_weights, of_buffers = v, trees.zeros_like(v)
    for batch in reversed(batches):
        weights, gradient = stored.pop()
        moved = trees.add(of_buffers, of_weights, -optimizer.lr)
        along = optimizer.pull_back(gradient, moved)
        if not stored:
            # nothing before the first step asks what its weights are worth
            return trees.add(indirect, mixed_slope(loss, weights, alphas, batch, along))
        curved, mixed = weight_slope(loss, weights, alphas, batch, along)
        indirect = trees.add(indirect, mixed)
        of_weights = trees.add(trees.add(of_weights, curved), moved, optimizer.weight_decay)
        of_buffers = trees.scale(moved, optimizer.momentum)
    return indirect
