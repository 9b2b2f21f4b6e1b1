"""A check at the start of a module search: are the second derivatives those of the training?"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas import tree
from sgenas.bilevel import BilevelProblem, Estimator
from sgenas.bilevel.hvp import HVP
from sgenas.errors import InvalidValueError
from sgenas.losses import Loss
from sgenas.optim import SGD
from sgenas.random import generator
from sgenas.spaces.modules import ModuleSpace
from sgenas.tree import TensorDict, Tree

TOLERANCE = 1e-3


def require_second_derivatives(
    space: ModuleSpace, batch: Any, loss: Loss, weights: TensorDict, alphas: TensorDict, estimator: Estimator
) -> None:
    """Checks what an estimator that differentiates gradients relies on, in float64, for about ten passes.

    A training follows the gradients g of the inner loss with respect to the weights. For random v and p,
    <p, (H v, M v)> by the estimator's route must be the derivative of <v, g> along p, by central differences. It is
    another number if the model has ``detach()``, gradient reversal or an operation with a wrong rule. Does nothing if
    the model does not work in float64 or has a kink within the step of the differences.

    Raises:
        InvalidValueError: If they differ, or PyTorch has no second derivative.
    """
    if not estimator.differentiates_gradients:
        return
    exact = space.double().seeded(0)
    like = exact.initial_weights()
    draw = generator(0, "second derivatives")
    # away from weights of 0, at which many units are at their kink
    w: Tree = tree.map(
        lambda value, other: value.to(other) + 1e-3 * torch.randn(value.shape, generator=draw).to(other), weights, like
    )
    a: Tree = {name: alpha.double() for name, alpha in alphas.items()}
    batch = pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, batch)
    if any(value.is_complex() for value in w.values()):
        return

    def inner(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return loss(exact.bind(weights, alphas), batch)

    problem = BilevelProblem(inner, inner, SGD(1.0))
    v, along_w, along_a = (_drawn(values, draw) for values in (w, w, a))
    zero_w, zero_a = tree.zeros_like(w), tree.zeros_like(a)
    route = getattr(estimator, "hvp", None)
    if route is None:
        # (DARTS' second order takes the mixed product alone)
        along_w = zero_w

    def derivative(along: tuple[Tree, Tree], onto: tuple[Tree, Tree]) -> tuple[float, float]:
        """Of <onto, gradient> along a direction, and by how much it changes with half the step."""
        found = []
        for step in (2e-6, 1e-6):
            sides = []
            for sign in (step, -step):
                at = tree.add(w, along[0], sign), tree.add(a, along[1], sign)
                _, *gradients = problem.inner_gradients(*at, batch)
                sides.append(sum(tree.dot(*pair).item() for pair in zip(gradients, onto, strict=True)))
            found.append((sides[0] - sides[1]) / (2 * step))
        return found[1], abs(found[0] - found[1])

    try:
        right, doubt = derivative((along_w, along_a), (v, zero_a))
        if route in (None, "finite-difference"):
            claimed, more = derivative((v, zero_a), (along_w, along_a))
            doubt += more
        else:
            curved, mixed = HVP(problem, w, a, batch, route).both(v)
            claimed = (tree.dot(curved, along_w) + tree.dot(mixed, along_a)).item()
    except InvalidValueError:
        raise
    except (RuntimeError, TypeError, ValueError):
        return
    if abs(claimed - right) > TOLERANCE * max(abs(claimed), abs(right)) + 10 * doubt:
        raise InvalidValueError(
            f"estimator must not be {type(estimator).__name__} for this model, whose second derivatives are not those"
            f" of its training ({claimed:.4g} where differences of gradients give {right:.4g}), as with detach() or"
            " gradient reversal; use sge, evolution-strategies or first-order",
            field="estimator",
        )


def _drawn(like: TensorDict, draw: torch.Generator) -> Tree:
    """A random direction as long as its size allows: norm 1 if all weights are of order 1."""
    values = {name: torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t) for name, t in like.items()}
    return tree.scale(values, 1 / tree.norm(values))
