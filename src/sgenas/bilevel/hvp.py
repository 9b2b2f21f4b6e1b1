"""Hessian-vector products (HVPs) and the largest eigenvalue of a Hessian.

Estimators take HVPs by forward-mode AD over the gradient: nothing is stored between two of them, and there is
no graph of a gradient. The other order, the gradient of a forward-mode derivative, is used nowhere: it is
silently wrong through the built-in batch normalization.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.problem import BilevelProblem
from sgenas.tree import Tree

Matvec = Callable[[Tensor], Tensor]
"""v -> H v, both (p,)."""


def hvps(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any, v: Tree) -> tuple[Tree, Tree]:
    r"""(H v, M v), H = d^2 L / d w^2, M = d^2 L / (d alpha d w), L the inner loss; like weights and alphas.

    The derivative of (d L / d w, d L / d alpha) as w moves along v, from one forward and one backward pass
    in forward mode, which count twice; detached. Kinks (ReLU, maximum) have no curvature here.
    """
    curved, mixed = _jvps(problem, (0, 1), weights, alphas, batch, v)
    return curved, mixed


def weight_hvp(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any, v: Tree) -> Tree:
    """H v of ``hvps`` alone."""
    return _jvps(problem, (0,), weights, alphas, batch, v)[0]


def mixed_hvp(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any, v: Tree) -> Tree:
    """M v of ``hvps`` alone."""
    return _jvps(problem, (1,), weights, alphas, batch, v)[0]


def _jvps(problem: BilevelProblem, of: tuple[int, ...], weights: Tree, alphas: Tree, batch: Any, v: Tree) -> list[Tree]:
    """The derivatives along v of the gradients with respect to the weights (0) and the alphas (1)."""

    def jvps(part: Any) -> list[Tensor]:
        def gradients(w: Tree) -> tuple[Tree, ...]:
            return torch.func.grad(problem.inner_loss, argnums=of)(w, alphas, part)

        found = torch.func.jvp(gradients, (tree.detach(weights),), (tree.detach(v),))[1]
        return [leaf for values in found for leaf in tree.tensors(values)]

    with torch.no_grad(), warnings.catch_warnings():
        # torch scripts some of its forward-mode rules at first use, and warns that it should not
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
        left = iter(problem.over_shards(jvps, batch))
    problem.counter.add(2, 2)
    return [tree.map(lambda _: next(left), (weights, alphas)[number]) for number in of]


def hessian_operator(function: Callable[[Tree], Tensor], point: Tree) -> Matvec:
    """v -> H v, H (p, p) the Hessian of a scalar function at ``point``, which has p entries.

    The graph of the gradient is made once and kept as long as the operator lives: the first call costs a
    forward and a backward pass, each product a backward pass through both. Kinks (ReLU, maximum) have no
    curvature for automatic differentiation.
    """
    leaves = tree.leaves(point)
    inputs = tree.tensors(leaves)
    value = function(leaves)
    gradient: tuple[Tensor, ...] = ()
    if value.requires_grad:
        gradient = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
    flat = torch.cat([part.flatten() for part in gradient]) if gradient else None

    def product(vector: Tensor) -> Tensor:
        if flat is None or not flat.requires_grad:
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(flat, inputs, vector, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    return product


def largest_eigenvalue(matvec: Matvec, start: Tensor, *, iterations: int = 50, tolerance: float = 1e-3) -> float:
    """The largest eigenvalue (not the largest in magnitude) of a symmetric matrix, by power iteration.

    Args:
        matvec: v -> A v.
        start: (p,), not 0 and not orthogonal to the eigenvector, so best drawn at random.
        iterations: Products at most. A matrix whose eigenvalue of largest magnitude is negative is shifted
            by it and iterated again, with as many products.
        tolerance: Ends when two estimates v'Hv / v'v differ by less than this part of their magnitude.
    """
    value = _dominant(matvec, start, iterations, tolerance)
    if value >= 0:
        return value
    return value + _dominant(lambda v: matvec(v) - value * v, start, iterations, tolerance)


def _dominant(matvec: Matvec, vector: Tensor, iterations: int, tolerance: float) -> float:
    vector = vector / vector.norm()
    value = 0.0
    for _ in range(iterations):
        image = matvec(vector)
        before, value = value, torch.dot(vector, image).item()
        length = image.norm()
        if not 0 < length.item() < float("inf"):
            break
        vector = image / length
        if abs(value - before) <= tolerance * abs(value):
            break
    return value
