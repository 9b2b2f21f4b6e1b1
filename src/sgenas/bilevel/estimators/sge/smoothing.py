"""Chooses SGE's perturbation scale mu from how far differences at several scales agree.

A one-sided difference along u has an error of about a mu (curvature of the trajectory) and of about b / mu
(rounding and kinks of the losses divided by the step): its noise floor. Central differences have a mu^2
instead of a mu. Both are unknown, but two steps h and h / 10 disagree by about 0.9 a h + 10 b / h, or
0.99 a h^2 + 10 b / h, least where

    mu = h / 10^(1 / (p + 1)),     p = 1 for one-sided differences, 2 for central ones,

is the best step. So differences are taken along one direction at the steps of LADDER, and mu follows from the
two neighbors that disagree least. A disagreement may be small by chance, so each counts at least as much as
its neighbors predict: a tenth of the noise at a tenth of the step, 10^-p of the curvature at ten times it.

One direction stands for all: with a few alphas of very different curvature mu may suit that one alone.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.estimators.sge.projections import Perturbation
from sgenas.errors import DivergenceError
from sgenas.tree import Tree

LADDER = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Steps in units of alpha, each a tenth of the one before."""


@dataclass(frozen=True)
class Smoothing:
    """mu, and by how much neighboring steps disagree there: an estimate of a projection's error."""

    smoothing: float
    noise_floor: float


def num_probes(central: bool) -> int:
    """How many perturbed trajectories ``choose_smoothing`` follows."""
    return len(LADDER) * (2 if central else 1)


def probes(alphas: Tree, direction: Tree, central: bool) -> list[Tree]:
    """The points along ``direction`` at which ``choose_smoothing`` measures."""
    signs = (1, -1) if central else (1,)
    return [tree.add(alphas, tree.scale(direction, sign * step)) for sign in signs for step in LADDER]


def choose_smoothing(
    task: Perturbation, compute: Callable[[Perturbation], Tensor], direction: Tree, *, central: bool
) -> Smoothing:
    """mu for the projections that ``compute`` finds for ``task``, whose own points and mu are ignored.

    ``direction`` is drawn like those that mu is for. Raises DivergenceError if no two neighbors of the ladder
    are both finite.
    """
    points = probes(task.context.alphas, direction, central)
    found = compute(replace(task, points=points, smoothing=1.0))
    # on the CPU, in one wait
    moved = task.context.checks.settle(found)[0].double().reshape(-1, len(LADDER))
    odd = (moved[0] - moved[1]) / 2 if central else moved[0]
    derivatives = odd / torch.tensor(LADDER, dtype=odd.dtype)
    return best_step(derivatives.tolist(), 2 if central else 1)


def best_step(derivatives: list[float], order: int) -> Smoothing:
    """mu from the difference quotients at the steps of LADDER; ``order``: p, the power of their error."""
    apart = [abs(first - second) for first, second in itertools.pairwise(derivatives)]
    finite = {index: value for index, value in enumerate(apart) if value < float("inf")}
    if not finite:
        steps = ", ".join(map(str, LADDER))
        raise DivergenceError(f"SGE.smoothing 'auto' found no two neighboring steps of {steps} with finite losses")

    def predicted(index: int) -> float:
        before, after = finite.get(index - 1, 0.0), finite.get(index + 1, 0.0)
        return max(finite[index], before / 10**order, after / 10)

    errors = {index: predicted(index) for index in finite}
    best = min(errors, key=lambda index: errors[index])
    return Smoothing(LADDER[best] / 10 ** (1 / (order + 1)), errors[best])
