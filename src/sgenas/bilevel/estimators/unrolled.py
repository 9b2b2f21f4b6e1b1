"""Unrolled: the N inner steps differentiated exactly, backwards along the stored trajectory."""

from dataclasses import dataclass

from sgenas import tree
from sgenas.bilevel.estimators.base import Context, Estimator
from sgenas.bilevel.hvp import hvps, mixed_hvp
from sgenas.bilevel.problem import Cost
from sgenas.errors import require
from sgenas.optim import grad_cotangent, step_vjp
from sgenas.tree import Tree


@dataclass(frozen=True)
class Unrolled(Estimator):
    r"""The exact derivative of L_val(Y^N(alpha), alpha): reverse mode through the inner steps.

    Starts from the adjoints y = d L_val(Y^N) / d w (weights) and z = 0 (the optimizer's slots). A step from
    weights w with gradient g turns them into the adjoints (y, z, s) of (w, slots, g) by automatic
    differentiation of the optimizer's step, and

        indirect += M s,   y += H s,   H = d^2 L / d w^2,   M = d^2 L / (d alpha d w)   of L_train at w.

    This equals automatic differentiation through all steps, in the memory of one pass and N sets of weights,
    slots and gradients. H s and M s are forward-mode derivatives of the gradient. Exact for smooth losses;
    ReLU and maximum count as if they had no kinks. Cost: N + 1 + 2 k passes.

    Args:
        truncate: Backpropagate through the last k steps only, as if Y^{N-k} did not depend on alpha; >= 1.
            None: all steps. Without momentum the error falls as (1 - lr c)^k if the curvature is at least c.

    Raises:
        InvalidValueError: If ``truncate`` < 1, or there are fewer inner batches than it says.
    """

    truncate: int | None = None

    def __post_init__(self) -> None:
        require(self.truncate is None or self.truncate >= 1, "Unrolled.truncate", ">= 1 or None", self.truncate)

    def kept_steps(self, inner_steps: int) -> int:
        steps = inner_steps if self.truncate is None else self.truncate
        require(steps <= inner_steps, "Unrolled.truncate", f"at most {inner_steps} (inner batches)", steps)
        return steps

    def indirect_cost(self, inner_steps: int) -> Cost:
        steps = self.truncate or inner_steps
        return Cost(2 * steps, 2 * steps)

    def indirect_gradient(self, context: Context) -> Tree:
        problem, alphas, optimizer = context.problem, context.alphas, context.problem.inner_optimizer
        count = self.kept_steps(len(context.inner_batches))
        last = zip(context.trajectory.steps[-count:], context.inner_batches[-count:], strict=True)
        indirect, weights, slots = tree.zeros_like(alphas), context.v, None
        # nothing before the first of these steps needs the adjoints of its state
        (first, first_batch), *others = last
        for step, batch in reversed(others):
            weights, slots, grad = step_vjp(optimizer, step.before, step.grad, weights, slots)
            curved, mixed = hvps(problem, step.before.weights, alphas, batch, grad)
            indirect, weights = tree.add(indirect, mixed), tree.add(weights, curved)
        grad = grad_cotangent(optimizer, first.before, first.grad, weights, slots)
        return tree.add(indirect, mixed_hvp(problem, first.before.weights, alphas, first_batch, grad))
