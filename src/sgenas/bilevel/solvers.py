"""Linear solvers from products alone: (matvec, b) -> x with A x = b approximately, A symmetric, (n, n)."""

from collections.abc import Callable

import torch
from torch import Tensor

from sgenas.bilevel.curvature import Matvec

Solver = Callable[[Matvec, Tensor], Tensor]
"""(v -> A v, b) -> x, vectors of n entries."""


def neumann(matvec: Matvec, b: Tensor, *, products: int, scale: float) -> Tensor:
    r"""x = scale sum_{i=0}^{k} (I - scale A)^i b, k = `products`: the first terms of the series of A^-1 b.

    The residual is b - A x = (I - scale A)^(k+1) b. It falls by r = max |1 - scale lambda| a product,
    lambda the eigenvalues of A, and grows where r > 1: A must be positive definite, scale < 2 / max lambda.
    """
    term = total = b
    for _ in range(products):
        term = term - scale * matvec(term)
        total = total + term
    return scale * total


def conjugate_gradient(matvec: Matvec, b: Tensor, *, products: int, tolerance: float) -> Tensor:
    r"""Conjugate gradients from x = 0: after k products the nearest x, in the norm of A, of span{b, A b, ..}.

    Exact after n of them.

    Ends after `products` of them, where ||b - A x|| <= tolerance ||b||, or at a direction p without
    positive curvature (p^T A p <= 0): there is then no minimum to look for. Waits for the device each time.
    """
    x, residual = torch.zeros_like(b), b
    direction, squared = residual, torch.dot(residual, residual)
    enough = tolerance**2 * squared
    for _ in range(products):
        if bool(squared <= enough):
            break
        image = matvec(direction)
        curvature = torch.dot(direction, image)
        if not bool(curvature > 0):
            break
        step = squared / curvature
        x, residual = x + step * direction, residual - step * image
        before, squared = squared, torch.dot(residual, residual)
        direction = residual + (squared / before) * direction
    return x
