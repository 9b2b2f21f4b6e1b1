"""Curvature of a loss: products of its second derivatives with vectors, and the largest eigenvalue.

Products for estimators are forward-mode derivatives of the gradient: nothing is kept between two of them, and
no graph of a gradient is ever made. The other order, the gradient of a forward-mode derivative, is not used
anywhere: through the built-in batch normalisation it is wrong without a word.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.trees import Tree

Matvec = Callable[[Tensor], Tensor]
"""v -> H v, both (p,)."""


def weight_slope(
    loss: Callable[[Tree, Tree, Any], Tensor], weights: Tree, alphas: Tree, batch: Any, v: Tree
) -> tuple[Tree, Tree]:
    r"""(H v, M v), H = d^2 L / d w^2, M = d^2 L / (d alpha d w), shaped as weights and as alphas, detached.

    The derivative of (d L / d w, d L / d alpha) as w moves along v, both parts from one forward and one
    backward pass that carry the derivative with them. Kinks have no curvature here.
    """
    return _slope(lambda w: torch.func.grad(loss, argnums=(0, 1))(w, alphas, batch), weights, v)


def hessian_slope(
    loss: Callable[[Tree, Tree, Any], Tensor], weights: Tree, alphas: Tree, batch: Any, v: Tree
) -> Tree:
    """H v of `weight_slope` alone."""
    return _slope(lambda w: torch.func.grad(loss, argnums=0)(w, alphas, batch), weights, v)


def mixed_slope(
    loss: Callable[[Tree, Tree, Any], Tensor], weights: Tree, alphas: Tree, batch: Any, v: Tree
) -> Tree:
    """M v of `weight_slope` alone."""
    return _slope(lambda w: torch.func.grad(loss, argnums=1)(w, alphas, batch), weights, v)


def _slope(gradient: Callable[[Tree], Any], weights: Tree, v: Tree) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        # torch scripts some of its forward-mode rules when they are first used, and warns that it should not
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
        return torch.func.jvp(gradient, (trees.detach(weights),), (trees.detach(v),))[1]


def hessian_operator(function: Callable[[Tree], Tensor], point: Tree) -> Matvec:
    """v -> H v, H (p, p) the Hessian of a scalar function at `point`, p the number of entries of `point`.

    The graph of the gradient is made once and kept as long as the operator lives: the first call costs a
    pass forward and one back, each product a pass back through both. Kinks (ReLU, maximum) have no
    curvature for automatic differentiation.
    """
    leaves = trees.leaves(point)
    inputs = list(leaves.values())
    value = function(leaves)
    gradient: tuple[Tensor, ...] = ()
    if value.requires_grad:
        gradient = torch.autograd.grad(
            value, inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
    flat = torch.cat([part.flatten() for part in gradient]) if gradient else None

    def product(vector: Tensor) -> Tensor:
        if flat is None or not flat.requires_grad:
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(
            flat, inputs, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in parts])

    return product


def largest_eigenvalue(
    matvec: Matvec, start: Tensor, *, iterations: int = 50, tolerance: float = 1e-3
) -> float:
    """The largest (not the largest in size) eigenvalue of a symmetric matrix, by power iteration.

    start: (p,), not 0 and not orthogonal to the eigenvector, so best drawn at random. A matrix whose
    eigenvalue of largest size is negative is shifted by it and iterated again. Ends when two estimates
    v'Hv / v'v differ by less than `tolerance` of their size, or after `iterations` products (twice that with
    the shift).
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
