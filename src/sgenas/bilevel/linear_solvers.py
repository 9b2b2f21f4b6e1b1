"""Linear solvers from products alone: (matvec, b) -> x with A x = b approximately, A symmetric, (n, n)."""

from collections.abc import Callable

import torch
from torch import Tensor

from sgenas.bilevel.hvp import Matvec

Solver = Callable[[Matvec, Tensor], Tensor]
"""(v -> A v, b) -> x, vectors of n entries."""


def neumann(matvec: Matvec, b: Tensor, *, max_hvps: int, scale: float) -> Tensor:
    r"""x = scale sum_{i=0}^{k} (I - scale A)^i b, k = ``max_hvps``: the first terms of the series of A^-1 b.

    The residual is b - A x = (I - scale A)^(k+1) b. Each product multiplies it by at most
    r = max |1 - scale lambda|, lambda the eigenvalues of A, so it grows if r > 1: A must be positive
    definite and scale < 2 / max lambda.
    """
    term = total = b
    for _ in range(max_hvps):
        term = term - scale * matvec(term)
        total = total + term
    return scale * total


def conjugate_gradient(matvec: Matvec, b: Tensor, *, max_hvps: int, tolerance: float) -> Tensor:
    r"""Conjugate gradients from x = 0: after k products the nearest x, in the norm of A, of span{b, A b, ..}.

    Exact after n products. Ends after ``max_hvps`` of them, when ||b - A x|| <= tolerance ||b||, or at a
    direction p without positive curvature (p^T A p <= 0), since there is then no minimum: for b = 0 after one
    product. Waits for the device once per product.
    """
    x, residual = torch.zeros_like(b), b
    direction, squared = residual, torch.dot(residual, residual)
    enough = tolerance**2 * squared
    for _ in range(max_hvps):
        image = matvec(direction)
        curvature = torch.dot(direction, image)
        step = squared / curvature
        after = residual - step * image
        before, squared = squared, torch.dot(after, after)
        bends, done = torch.stack([curvature > 0, squared <= enough]).tolist()
        if not bends:
            break
        x, residual = x + step * direction, after
        if done:
            break
        direction = residual + (squared / before) * direction
    return x
