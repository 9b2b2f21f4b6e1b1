"""Ways to compute SGE's projections s_j = <delta_j, v>: the same numbers at different cost.

Each takes a `Perturbation` and returns s, shape (Q,). `loop` is the definition. `streamed`, `directional` and
`vectorised` (a file of its own) equal it up to rounding; `difference` is an approximation and says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel.inner import SGD, InnerState
from sgenas.bilevel.problem import BilevelProblem, Trajectory
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


def _tell_nobody(size: int) -> None: ...


@dataclass(frozen=True)
class Perturbation:
    """What every way needs: the problem, the start, alphas, directions u_j, mu, the N batches, the
    unperturbed trajectory Y^0 .. Y^N on them, v = d L_val / d w at its end. For `vectorised`: the chunk, the
    memory limit in GiB, the bytes that one inner forward pass saves for its backward pass, the number of
    processes that do the same on this machine, and what is told of a chunk that was cut down."""

    problem: BilevelProblem
    start: InnerState
    alphas: Tree
    directions: Sequence[Tree]
    smoothing: float
    batches: Sequence[Any]
    trajectory: Trajectory
    v: Tree
    chunk: int | None = None
    memory_limit: float | None = None
    saved_bytes: int = 0
    neighbours: int = 1
    on_smaller_chunk: Callable[[int], None] = _tell_nobody

    def perturbed(self, direction: Tree) -> Tree:
        """alpha + mu u."""
        return trees.add(self.alphas, direction, self.smoothing)


def loop(task: Perturbation) -> Tensor:
    """The definition: follow every perturbed trajectory to its end, subtract the weights, take <., v>."""
    end = task.trajectory.end.weights
    projections = []
    for direction in task.directions:
        other = task.problem.run(task.start, task.perturbed(direction), task.batches).end
        delta = trees.scale(trees.subtract(other.weights, end), 1 / task.smoothing)
        projections.append(trees.dot(delta, task.v))
    return torch.stack(projections)


def streamed(task: Perturbation) -> Tensor:
    """The last step is never taken: what it adds to <Y_j^N, v> is an inner product of its gradient with v.

    With N = 1 both sides start from the same weights and momentum, and
    s_j = -(lr / mu) (<g_j, v> - <g_0, v>), g clipped where the optimiser clips: no weights are made at all.
    """
    optimizer, before = task.problem.inner_optimizer, task.trajectory.before_last
    base = moved(optimizer, before, before, task.trajectory.last_grad, task.v)
    projections = []
    for direction in task.directions:
        alphas = task.perturbed(direction)
        state = _before_last(task, alphas)
        _, grad = task.problem.inner_gradient(state.weights, alphas, task.batches[-1])
        projections.append(moved(optimizer, state, before, grad, task.v) - base)
    return torch.stack(projections) / task.smoothing


def directional(task: Perturbation) -> Tensor:
    """As `streamed`, with <g_j, v> by forward mode: no backward pass in the last step.

    Raises InvalidValueError with gradient clipping, which needs the norm of the gradient itself.
    """
    # the unperturbed gradient is at hand already
    base = trees.dot(task.trajectory.last_grad, task.v)
    return _by_slope(task, _forward_slope, base, "directional")


def difference(task: Perturbation) -> Tensor:
    """As `directional`, with <g_j, v> by a central difference of the loss along v: two forward passes.

    An approximation: error O(r^2) for a smooth loss, r = 0.01 being the length of the step, and whatever the
    kinks of ReLU and max pooling add.
    """
    # taken in the same way on both sides, so that what they have in common of the error cancels
    weights, batch = task.trajectory.before_last.weights, task.batches[-1]
    base = _difference_slope(task.problem, weights, task.alphas, batch, task.v)
    return _by_slope(task, _difference_slope, base, "difference")


def _by_slope(task: Perturbation, slope: Callable[..., Tensor], base: Tensor, name: str) -> Tensor:
    """Projections from <g_j, v> = slope(...) and `base` = <g_0, v> of the unperturbed last step."""
    optimizer, before = task.problem.inner_optimizer, task.trajectory.before_last
    if optimizer.grad_clip is not None:
        raise InvalidValueError(
            f"SGE.computation {name!r} needs SGD.grad_clip None (it never has the gradient to clip), got"
            f" {optimizer.grad_clip}"
        )

    projections = []
    for direction in task.directions:
        alphas = task.perturbed(direction)
        state = _before_last(task, alphas)
        along = slope(task.problem, state.weights, alphas, task.batches[-1], task.v)
        moved = _carried(optimizer, state, before, task.v) - optimizer.lr * (along - base)
        projections.append(moved / task.smoothing)
    return torch.stack(projections)


def _forward_slope(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any, v: Tree) -> Tensor:
    """<d L_train / d w, v> as the forward-mode derivative of the loss along v."""

    def slope(part: Any) -> list[Tensor]:
        derivative = torch.func.jvp(lambda w: problem.inner_loss(w, alphas, part), (weights,), (v,))
        return [derivative[1]]

    with torch.no_grad():
        return problem.over_shards(slope, batch)[0]


def _difference_slope(problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any, v: Tree) -> Tensor:
    """[L_train(w + h v) - L_train(w - h v)] / 2h with h ||v|| = 0.01."""
    length = trees.norm(v)
    h = 0.01 / length.clamp_min(torch.finfo(length.dtype).tiny)

    def slope(part: Any) -> list[Tensor]:
        plus, minus = (problem.inner_loss(trees.add(weights, v, sign * h), alphas, part) for sign in (1, -1))
        return [(plus - minus) / (2 * h)]

    with torch.no_grad():
        return problem.over_shards(slope, batch)[0]


def _before_last(task: Perturbation, alphas: Tree) -> InnerState:
    """Y_j^{N-1}; with N = 1 the common start itself."""
    if len(task.batches) == 1:
        return task.start
    return task.problem.run(task.start, alphas, task.batches[:-1]).end


def moved(optimizer: SGD, state: InnerState, origin: InnerState, grad: Tree, v: Tree) -> Tensor:
    """<w' - w_origin, v> up to a constant that is the same for all, w' the end of a step from `state`."""
    return _carried(optimizer, state, origin, v) - optimizer.lr * trees.dot(optimizer.clipped(grad), v)


def _carried(optimizer: SGD, state: InnerState, origin: InnerState, v: Tree) -> Tensor:
    """What a step carries over from where it starts, relative to `origin`: 0 where the two are the same.

    (1 - lr wd) <w - w_origin, v> - lr m <b - b_origin, v>.
    """
    if state is origin:
        return torch.zeros((), dtype=next(iter(v.values())).dtype, device=next(iter(v.values())).device)
    weights = trees.dot(trees.subtract(state.weights, origin.weights), v)
    carried = (1 - optimizer.lr * optimizer.weight_decay) * weights
    if optimizer.momentum:
        buffers = trees.dot(trees.subtract(state.buffers, origin.buffers), v)
        carried = carried - optimizer.lr * optimizer.momentum * buffers
    return carried
