r"""The two reference hypergradients that estimates are compared with.

Both are about the same function of the alphas, on the batches that the estimator gets,

    F(a) = L_val(w^N(a), a; outer batch),   w^N(a) after N inner steps at a from fixed w^0 on fixed batches,

so that what is measured is the error of estimation. (Sampling of batches is another noise that every estimator
has; ``spread`` in the rows of the references is its size.)

`Automatic` is the derivative of F by automatic differentiation of the N steps (``Unrolled``): exact where F is
smooth. Networks with ReLU and max pooling have a gradient that jumps, and w^N, made of such gradients, jumps with
it: F is then not even continuous, and automatic differentiation sees none of that. `Real` evaluates F itself: central
finite differences of step h along random directions, everything else held fixed (common random numbers),

    D(u; h) = [F(a + h sqrt(p) u) - F(a - h sqrt(p) u)] / (2 h sqrt(p)),    |u| = 1.

h is in SGE's unit mu: both move an alpha by about h. The same with w^N(a) held fixed gives the direct gradient, and
the difference of the two the indirect gradient, in which jumps of the direct one cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypergradients.warmup import Checkpoint
from sgenas import tree
from sgenas.bilevel import BilevelProblem, Unrolled
from sgenas.tree import Tree

FIXED = 2
"""Rows of a frame that are not random: the directions of the automatic hypergradient and of its indirect part."""
PARTS = ("whole", "indirect")


@dataclass(frozen=True)
class Automatic:
    """The hypergradient and the direct gradient by automatic differentiation: (p,), float64, on the CPU."""

    grad: Tensor
    direct: Tensor

    @property
    def indirect(self) -> Tensor:
        """grad - direct."""
        return self.grad - self.direct


@dataclass(frozen=True)
class Real:
    """Directional derivatives of F along the rows of a frame (2 + K, p), for S step sizes: (S, 2 + K), float64.

    Args:
        rows: The frame.
        steps: The step sizes h.
        whole: Derivatives of F.
        direct: The same with the weights held fixed at w^N(a).
    """

    rows: Tensor
    steps: tuple[float, ...]
    whole: Tensor
    direct: Tensor

    @property
    def indirect(self) -> Tensor:
        """What goes through the weights: whole - direct."""
        return self.whole - self.direct

    def squared_distance(self, vector: Tensor, step: int, part: str) -> float:
        """Unbiased estimate of ||g - (gradient of F)||^2 of one part at step size number ``step``; g is (p,)."""
        distance = self.rows @ vector - getattr(self, part)[step]
        return inner_product(distance, distance, FIXED, len(vector))

    def squared_norm(self, step: int, part: str) -> float:
        """Unbiased estimate of the squared norm of the gradient of F, or of its indirect part."""
        values = getattr(self, part)[step]
        return inner_product(values, values, FIXED, self.rows.shape[1])


def flat(values: Tree) -> Tensor:
    """A tree as one vector in float64 on the CPU: differences of estimates are taken there."""
    return tree.flatten(values).double().cpu()


def automatic(problem: BilevelProblem, at: Checkpoint, inner: Sequence[Any], outer: Any) -> Automatic:
    """The hypergradient by `Unrolled`, in the precision of the arguments."""
    result = Unrolled()(problem, at.state, at.alphas, inner, outer)
    return Automatic(flat(result.grad), flat(result.direct))


def real(
    problem: BilevelProblem, at: Checkpoint, inner: Sequence[Any], outer: Any, rows: Tensor, steps: Sequence[float]
) -> Real:
    """D(u; h) for every row u and step size h: 2 S (2 + K) trajectories."""
    end, scale = problem.run(at.state, at.alphas, inner).end.weights, rows.shape[1] ** 0.5
    values = []
    for step in steps:
        for row in rows:
            direction = tree.unflatten(row, at.alphas)
            sides = []
            for side in (1, -1):
                alphas = tree.add(at.alphas, direction, side * step * scale)
                moved = problem.run(at.state, alphas, inner).end.weights
                with torch.no_grad():
                    losses = [problem.outer_loss(weights, alphas, outer) for weights in (moved, end)]
                sides.append(torch.stack(losses).double())
            values.append((sides[0] - sides[1]) / (2 * step * scale))
    found = torch.stack(values).reshape(len(steps), len(rows), 2).cpu()
    return Real(rows, tuple(steps), found[..., 0], found[..., 1])


def real_passes(inner_steps: int, size: int, directions: int, steps: int) -> float:
    """Passes that ``real`` takes; 0 without directions."""
    if directions == 0:
        return 0
    return inner_steps + 2 * steps * min(FIXED + directions, size) * (inner_steps + 1)


def frame_of(exact: Automatic, directions: int, generator: torch.Generator) -> Tensor:
    """The frame of `real`: the two directions of ``exact``, then random ones, at most p rows."""
    fixed = torch.stack([exact.grad, exact.indirect])
    return frame(fixed[: exact.grad.numel()], directions, generator)


def compare(exact: Automatic, seen: Real, step: int, part: str) -> dict[str, float | None]:
    """How the automatic A and the real B differ at one step size; all None if A is 0.

    along: B along the direction of A, in units of |A|, 1 if they agree. distance: |A - B|^2 / |A|^2. cosine: of A
    and B. ratio: |B| / |A|.
    """
    vector: Tensor = exact.grad if part == "whole" else exact.indirect
    square = float(vector.square().sum())
    if square == 0:
        return dict.fromkeys(("along", "distance", "cosine", "ratio"))
    # the frame holds the direction of A whole, so this product is exact
    product = inner_product(seen.rows @ vector, getattr(seen, part)[step], FIXED, len(vector))
    norm = max(seen.squared_norm(step, part), 0.0)
    return {
        "along": product / square,
        "distance": seen.squared_distance(vector, step, part) / square,
        "cosine": product / (square * norm) ** 0.5 if norm else None,
        "ratio": (norm / square) ** 0.5,
    }


def frame(fixed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows (F + K, p): a basis of the F rows of ``fixed`` (F, p), then K uniformly random ones.

    There are at most p rows; float64, on the CPU.
    """
    size = fixed.shape[1]
    drawn = torch.randn(max(count, 0), size, generator=generator, dtype=torch.float64)
    basis, upper = torch.linalg.qr(torch.cat([fixed.double(), drawn])[:size].T)
    # the signs that make the first row point along the first of `fixed`
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(basis.dtype)
    return (basis * signs).T


def inner_product(first: Tensor, second: Tensor, fixed: int, size: int) -> float:
    """Unbiased estimate of <a, b> from <a, e_k> and <b, e_k>, (F + K,) each, e_k the rows of a ``frame``.

    The sum over the F fixed rows, which is exact, plus (p - F) / K times the sum over the K random ones. Exact for
    F + K = p; without random rows the rest is left out.
    """
    products = first * second
    exact, sampled = products[:fixed].sum(), products[fixed:]
    if len(sampled) == 0:
        return float(exact)
    return float(exact + (size - fixed) / len(sampled) * sampled.sum())
