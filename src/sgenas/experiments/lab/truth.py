r"""The two truths that estimates are compared with.

Both are about the same function of the alphas, on the very batches that the estimator is given,

    F(a) = L_val(w^N(a), a; outer batch),   w^N(a) after N inner steps at a from fixed w^0 on fixed batches,

so that what is measured is the error of estimation. (That batches are samples is another noise, and one that
every estimator has; `spread` in the truths' rows says how large it is.)

`automatic` is the derivative of F by automatic differentiation of the N steps (`Unrolled`): exact where F is
smooth. Networks with ReLU and max pooling have a gradient that jumps, and w^N, made of such gradients, jumps
with it: F is then not even continuous, and automatic differentiation sees none of that. `real` asks F itself:
central differences over steps h along random directions, everything else held fixed (common random numbers),

    D(u; h) = [F(a + h sqrt(p) u) - F(a - h sqrt(p) u)] / (2 h sqrt(p)),    |u| = 1,

which is the slope of F as a step of that size finds it. h is in SGE's unit mu: both move an alpha by about h.
The same with w^N(a) held fixed gives the direct part, and the difference of the two the indirect part, in
which jumps of the direct part have cancelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import BilevelProblem, Unrolled
from sgenas.experiments.lab.problems import Moment
from sgenas.experiments.lab.statistics import frame, inner_product
from sgenas.trees import Tree

EXACT = Unrolled()
FIXED = 2
"""Rows of a frame that are not random: the directions of the automatic truth and of its indirect part."""


@dataclass(frozen=True)
class Automatic:
    """The derivative of F, all of it and its direct part: vectors (p,), float64, on the CPU."""

    grad: Tensor
    direct: Tensor

    @property
    def indirect(self) -> Tensor:
        """grad - direct."""
        return self.grad - self.direct


def automatic(problem: BilevelProblem, moment: Moment, inner: Sequence[Any], outer: Any) -> Automatic:
    """The derivative of F at the moment's alphas by `Unrolled`, in the precision of what is given."""
    result = EXACT(problem, moment.state, moment.alphas, inner, outer)
    return Automatic(flat(result.grad), flat(result.direct))


def flat(tree: Tree) -> Tensor:
    """A tree as one vector in float64 on the CPU: differences of estimates are taken there."""
    return trees.flatten(tree).double().cpu()


@dataclass(frozen=True)
class Real:
    """Slopes of F along the rows of a frame (2 + K, p), for S step sizes h: (S, 2 + K) each, float64.

    whole: of F. direct: with the weights held fixed at w^N(a).
    """

    rows: Tensor
    steps: tuple[float, ...]
    whole: Tensor
    direct: Tensor

    @property
    def indirect(self) -> Tensor:
        """What goes through the weights: whole - direct."""
        return self.whole - self.direct


def real(
    problem: BilevelProblem,
    moment: Moment,
    inner: Sequence[Any],
    outer: Any,
    rows: Tensor,
    steps: Sequence[float],
) -> Real:
    """D(u; h) for every row u and step h: 2 S (2 + K) trajectories, two forward passes at the end of each."""
    end = problem.run(moment.state, moment.alphas, inner).end.weights
    length = rows.shape[1] ** 0.5
    whole, direct = [], []
    for step in steps:
        for row in rows:
            direction = trees.unflatten(row, moment.alphas)
            values = []
            for side in (1, -1):
                alphas = trees.add(moment.alphas, direction, side * step * length)
                with torch.no_grad():
                    fixed = problem.outer_loss(end, alphas, outer)
                moved = problem.run(moment.state, alphas, inner).end.weights
                with torch.no_grad():
                    values.append(torch.stack([problem.outer_loss(moved, alphas, outer), fixed]).double())
            slopes = (values[0] - values[1]) / (2 * step * length)
            whole.append(slopes[0])
            direct.append(slopes[1])
    shape = (len(steps), len(rows))
    slopes_of = (torch.stack(values).reshape(shape).cpu() for values in (whole, direct))
    return Real(rows, tuple(steps), *slopes_of)


def real_passes(inner_steps: int, size: int, directions: int, steps: int) -> float:
    """Forward and backward passes, in pairs, that `real` takes; 0 where no directions are asked for."""
    if directions == 0:
        return 0
    return inner_steps + 2 * steps * count_rows(size, directions) * (inner_steps + 1)


def count_rows(size: int, directions: int) -> int:
    """Rows of `rows_for`."""
    return min(FIXED + directions, size)


def rows_for(truth: Automatic, directions: int, generator: torch.Generator) -> Tensor:
    """The frame to look along: the truth's two directions, then random ones, (at most p)."""
    fixed = torch.stack([truth.grad, truth.indirect])
    return frame(fixed[: truth.grad.numel()], directions, generator)


def squared_distance(vector: Tensor, seen: Real, step: int, part: str) -> float:
    """An unbiased estimate of ||g - (gradient of F)||^2 for the `part` whole or indirect, at one step size.

    step: its number. vector: g, (p,). What lies along the truth's directions is exact, the rest is a sample,
    see `statistics.inner_product`.
    """
    distance = seen.rows @ vector - getattr(seen, part)[step]
    return inner_product(distance, distance, FIXED, len(vector))


def squared_length(seen: Real, step: int, part: str) -> float:
    """An unbiased estimate of the squared length of the gradient of F, or of its indirect part."""
    slopes = getattr(seen, part)[step]
    return inner_product(slopes, slopes, FIXED, seen.rows.shape[1])


def compare(truth: Automatic, seen: Real, step: int, part: str) -> dict[str, float | None]:
    """How the automatic derivative A and the real slopes B differ at one step size.

    along: B along the direction of A, in units of |A|: 1 where they agree. distance: |A - B|^2 / |A|^2.
    cosine: of A and B. ratio: |B| / |A|. All None where A is 0.
    """
    vector: Tensor = truth.grad if part == "whole" else truth.indirect
    square = float(vector.square().sum())
    if square == 0:
        return dict.fromkeys(("along", "distance", "cosine", "ratio"))
    slopes = getattr(seen, part)[step]
    # the frame holds the direction of A whole, so this product is exact
    product = inner_product(seen.rows @ vector, slopes, FIXED, len(vector))
    length = max(squared_length(seen, step, part), 0.0)
    return {
        "along": product / square,
        "distance": squared_distance(vector, seen, step, part) / square,
        "cosine": product / (square * length) ** 0.5 if length else None,
        "ratio": (length / square) ** 0.5,
    }
