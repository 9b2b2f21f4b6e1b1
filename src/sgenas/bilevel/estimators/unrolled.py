"""Unrolled: the N inner steps differentiated exactly, backwards along the stored trajectory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sgenas import tree
from sgenas.bilevel.estimators.base import Context, Estimator
from sgenas.bilevel.gradients import lacks_rule
from sgenas.bilevel.hvp import HVP, KEPT_GRAPHS, ROUTES, keeps_graph, measured_bytes
from sgenas.bilevel.problem import BilevelProblem, Cost, Trajectory
from sgenas.errors import require, require_choice
from sgenas.fields import option
from sgenas.optim import InnerState, step_vjp
from sgenas.tree import Tree


@dataclass(frozen=True)
class Unrolled(Estimator):
    r"""The exact derivative of L_val(Y^N(alpha), alpha): reverse mode through the inner steps.

    Starts from the adjoints y = d L_val(Y^N) / d w (weights) and z = 0 (the optimizer's slots). A step from
    weights w with gradient g turns them into the adjoints (y, z, s) of (w, slots, g) by automatic
    differentiation of the optimizer's step, and

        indirect += M s,   y += H s,   H = d^2 L / d w^2,   M = d^2 L / (d alpha d w)   of L_train at w.

    This equals automatic differentiation through all steps, in the memory of one pass and N sets of weights,
    slots and gradients, or, if passes are small, in that of all graphs. Exact for smooth losses; ReLU and maximum
    count as if they had no kinks. Cost: N + 1 + 2 k passes, at most k more by double backward.

    Args:
        truncate: Backpropagate through the last k steps only, as if Y^{N-k} did not depend on alpha; >= 1.
            None: all steps. Without momentum the error falls as (1 - lr c)^k if the curvature is at least c.
        hvp: How H s and M s are computed: ``reverse`` (double backward), ``forward`` (forward-mode AD over the
            gradient), ``auto`` (reverse if passes are small; where PyTorch has no rule, the other one) or
            ``finite-difference`` (of gradients, for smooth losses).

    Raises:
        InvalidValueError: If ``truncate`` < 1, there are fewer inner batches than it says, or the inner loss has
            no second derivative.
    """

    truncate: int | None = None
    hvp: str = option("auto", choices=ROUTES)

    differentiates_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_choice("Unrolled.hvp", self.hvp, ROUTES)
        require(self.truncate is None or self.truncate >= 1, "Unrolled.truncate", ">= 1 or None", self.truncate)

    def kept_steps(self, inner_steps: int) -> int:
        steps = inner_steps if self.truncate is None else self.truncate
        require(steps <= inner_steps, "Unrolled.truncate", f"at most {inner_steps} (inner batches)", steps)
        return steps

    def indirect_cost(self, inner_steps: int) -> Cost:
        passes = (3 if self.hvp in ("auto", "reverse") else 2) * (self.truncate or inner_steps)
        return Cost(passes, passes)

    def run(self, problem: BilevelProblem, state: InnerState, alphas: Tree, inner_batches: Sequence[Any]) -> Trajectory:
        """The unperturbed trajectory; its steps keep the graphs of their gradients if these are small."""
        keep = self.kept_steps(len(inner_batches))
        point = (state.weights, alphas, inner_batches[0])
        kept = self.hvp not in problem.findings.routes and keeps_graph(problem, self.hvp, *point)
        if kept and keep * measured_bytes(problem, *point) <= KEPT_GRAPHS:
            before = problem.counter.total
            try:
                return problem.run(state, alphas, inner_batches, keep=keep, graphs=True)
            except Exception as error:
                if not lacks_rule(error):
                    raise
                problem.counter.total = before
        return problem.run(state, alphas, inner_batches, keep=keep)

    def indirect_gradient(self, context: Context) -> Tree:
        problem, alphas, optimizer = context.problem, context.alphas, context.problem.inner_optimizer
        count = self.kept_steps(len(context.inner_batches))
        last = zip(context.trajectory.steps[-count:], context.inner_batches[-count:], strict=True)
        indirect, weights, slots = tree.zeros_like(alphas), context.v, None
        # nothing before the first of these steps needs the adjoints of its state
        (first, first_batch), *others = last
        for step, batch in reversed(others):
            weights, slots, grad = step_vjp(optimizer, step.before, step.grad, weights, slots)
            curved, mixed = HVP(problem, step.before.weights, alphas, batch, self.hvp, step.graph).both(grad)
            indirect, weights = tree.add(indirect, mixed), tree.add(weights, curved)
        _, _, grad = step_vjp(optimizer, first.before, first.grad, weights, slots)
        product = HVP(problem, first.before.weights, alphas, first_batch, self.hvp, first.graph)
        return tree.add(indirect, product.alphas(grad))
