"""Chooses SGE's smoothing mu by what the differences themselves show.

A one-sided difference along u is off by about a mu, from the bend of the trajectory, and by about b / mu, the
rounding and the kinks of the losses divided by the step: its noise floor. Central differences are off by
about a mu^2 instead. Both are unknown, but two steps h and h / 10 apart disagree by about 0.9 a h + 10 b / h,
or 0.99 a h^2 + 10 b / h, least where

    mu = h / 10^(1 / (p + 1)),     p = 1 for one-sided differences, 2 for central ones,

is the best step. So differences are taken along one direction at the steps of LADDER, and mu follows from the
two neighbours that disagree least. A disagreement may be small by chance; so each counts at least as much as
those beside it foretell: a tenth of the noise at a tenth of the steps, 10^-p of the bend at ten times them.

One direction stands for all: with a few alphas of very different curvature mu may suit that one alone.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel.projections import Perturbation
from sgenas.errors import DivergenceError
from sgenas.trees import Tree

LADDER = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Steps in units of alpha, each a tenth of the one before."""


@dataclass(frozen=True)
class Choice:
    """mu, and by how much neighbouring steps disagree there: an estimate of a projection's error."""

    smoothing: float
    noise_floor: float


def probes(central: bool) -> int:
    """How many perturbed trajectories `choose` follows."""
    return len(LADDER) * (2 if central else 1)


def choose(
    task: Perturbation, compute: Callable[[Perturbation], Tensor], direction: Tree, *, central: bool
) -> Choice:
    """mu for the projections that `compute` finds for `task`, whose own directions and mu do not count.

    direction: drawn like those that mu is for. Raises DivergenceError where no two neighbours of the ladder
    are both finite.
    """
    signs = (1.0, -1.0) if central else (1.0,)
    scaled = [trees.scale(direction, sign * step) for sign in signs for step in LADDER]
    moved = compute(replace(task, directions=scaled, smoothing=1.0)).double().cpu().reshape(len(signs), -1)
    odd = (moved[0] - moved[1]) / 2 if central else moved[0]
    slopes = odd / torch.tensor(LADDER, dtype=odd.dtype)
    return best_step(slopes.tolist(), 2 if central else 1)


def best_step(slopes: list[float], order: int) -> Choice:
    """mu from the slopes at the steps of LADDER; order: p, by which power of the step their error falls."""
    apart = [abs(first - second) for first, second in itertools.pairwise(slopes)]
    finite = {index: value for index, value in enumerate(apart) if value < float("inf")}
    if not finite:
        raise DivergenceError(
            "SGE.smoothing 'auto' found no two neighbouring steps of"
            f" {', '.join(map(str, LADDER))} along which the losses stay finite"
        )

    def foretold(index: int) -> float:
        before, after = finite.get(index - 1, 0.0), finite.get(index + 1, 0.0)
        return max(finite[index], before / 10**order, after / 10)

    errors = {index: foretold(index) for index in finite}
    best = min(errors, key=lambda index: errors[index])
    return Choice(LADDER[best] / 10 ** (1 / (order + 1)), errors[best])
