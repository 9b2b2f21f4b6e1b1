"""SGE's projections s_j = <delta_j, v>, delta_j = (Y_j^N - Y^N) / mu, one perturbed trajectory at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.estimators.base import Context
from sgenas.bilevel.trainings import Trainings
from sgenas.optim import projection
from sgenas.tree import Tree


@dataclass(frozen=True)
class Perturbation:
    """What the projections are computed from.

    Attributes:
        context: The call; its trajectory holds the last step.
        points: The alphas + mu u_j.
        smoothing: mu.
        chunk: Batched trajectories at a time, at most; None for as many as fit.
        smaller_chunks: Gets the new chunk after each out-of-memory error.
    """

    context: Context
    points: Sequence[Tree]
    smoothing: float
    chunk: int | None = None
    smaller_chunks: list[int] = field(default_factory=list)


def sequential(task: Perturbation) -> Tensor:
    """The projections (Q,), one trajectory after the other.

    The optimizer compares the last steps (``optim.projection``): for SGD, what the last step contributes to
    <Y_j^N, v> is an inner product of its gradient with v, so the last step is never taken. With N = 1 both
    sides start from the same state, and no set of weights is made at all.
    """
    context, last = task.context, task.context.trajectory.steps[-1]
    problem, batches = context.problem, context.inner_batches
    compare = projection(problem.inner_optimizer, last.before, last.grad, last.after, context.v)
    found = []
    for alphas in task.points:
        state = last.before
        if len(batches) > 1:
            state = problem.run(context.state, alphas, batches[:-1]).end
        _, grad = problem.inner_gradient(state.weights, alphas, batches[-1])
        found.append(compare(state, grad))
    return torch.stack(found) / task.smoothing


def from_ends(task: Perturbation) -> Tensor:
    """The projections (Q,) from the trained weights of a black box, NaN after a failed training."""
    problem, context = task.context.problem, task.context
    assert isinstance(problem, Trainings)
    weights, v = tree.flatten(context.trajectory.end.weights).double(), tree.flatten(context.v).double()
    found = []
    for end in problem.ends(task.points):
        # in double precision, since a difference of weights that nearly agree is exact there
        moved = math.nan if end is None else (tree.flatten(end).double() - weights) @ v
        found.append(torch.as_tensor(moved, dtype=torch.float64, device=v.device))
    return torch.stack(found) / task.smoothing
