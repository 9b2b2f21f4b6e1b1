"""SGE's perturbed trajectories batched: one pass through the loss for many directions.

What a pass costs beyond its arithmetic (launching kernels on a GPU, choosing them on a CPU) is then paid once
for all of them. Memory grows with their number, so it is kept within a budget.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.estimators.sge.projections import Perturbation, sequential
from sgenas.bilevel.gradients import lacks_rule
from sgenas.bilevel.hvp import measured_bytes
from sgenas.device import ran_out
from sgenas.errors import InvalidValueError, MemoryWarning, one_line
from sgenas.optim import InnerState, can_join, joined, joined_state, projection
from sgenas.tree import Tree

SMALL_PASS = 512 * 2**20
"""Bytes that a pass may save for its backward pass on a CPU if its many calls, not its arithmetic, are to be
what makes it slow. Ten batched passes were 1.5 to 2 times as fast as ten sequential ones at 60 to 340 MB, and
equal at 1.1 GB."""

TINY_PASS = 2**20
"""The same for a loss without a stacked form, by torch.func.vmap. Ten directions were 1.4 to 3 times as fast at up to
0.7 MB (perceptrons, a convolutional network, a transformer); 0.8 to 1 times as fast at 1.3 MB and more, and half as
fast for convolutions at 14 MB."""

GPU_SHARE, CPU_SHARE = 0.8, 0.25
"""What batched passes may take: of a GPU's free memory; of all the machine's, so that a run
does not depend on what else runs."""


def automatic(task: Perturbation) -> Tensor:
    """``batched`` if that is faster, else ``sequential``.

    It is faster for a problem with a stacked loss if two trajectories fit into the memory: always on a GPU,
    on a CPU if the passes are small. torch.func.vmap of other losses is faster for
    very small passes only, and has no rules for some operations, which the problem remembers.
    """
    problem = task.context.problem
    generic = problem.stacked_inner_loss is None
    if generic and not (problem.findings.batches and _saved_bytes(task) <= TINY_PASS):
        return sequential(task)
    size = _chunk(task)
    if size < 2:
        return sequential(task)
    before = problem.counter.total
    try:
        return _in_chunks(task, size)
    except Exception as error:
        if not (generic and lacks_rule(error)):
            raise
        problem.findings.batches, problem.counter.total = False, before
        return sequential(task)


def batched(task: Perturbation) -> Tensor:
    """As many trajectories at a time as the chunk says, or without one as fit into the memory.

    Raises:
        InvalidValueError: If torch.func.vmap cannot run the inner loss.
    """
    try:
        return _in_chunks(task, task.chunk or max(1, _chunk(task, always=True)))
    except Exception as error:
        if task.context.problem.stacked_inner_loss is not None or not lacks_rule(error):
            raise
        raise InvalidValueError(
            f"SGE.computation must be 'sequential' or 'auto' for this inner loss, got 'batched' ({one_line(error)})",
            field="SGE.computation",
        ) from error


def _saved_bytes(task: Perturbation) -> float:
    context = task.context
    return measured_bytes(context.problem, context.state.weights, context.alphas, context.inner_batches[0])


def _chunk(task: Perturbation, *, always: bool = False) -> int:
    """How many go together, as `members_that_fit` says; with shards, what fits in all processes of the group."""
    share = task.context.problem.share
    neighbors = 1 if share is None else share.neighbors
    room = members_that_fit(task.context.state, _saved_bytes(task), neighbors, always=always)
    limits = (room, len(task.points), math.inf if task.chunk is None else task.chunk)
    number, shards = int(min(limits)), task.context.problem.shards
    if number >= 1 and task.context.problem.replays is not None:
        # equal chunks, since each size is recorded by itself, and with a share of free memory it would drift
        number = math.ceil(len(task.points) / math.ceil(len(task.points) / number))
    return number if shards is None else shards.least(number)


def _in_chunks(task: Perturbation, size: int) -> Tensor:
    """``size`` at a time; half as many, with a MemoryWarning, whenever memory runs out.

    At one at a time, or with shards, the out-of-memory error is raised.
    """
    done: list[Tensor] = []
    first, count = 0, len(task.points)
    while first < count:
        try:
            done.append(_together(task, task.points[first : first + size]))
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            before = min(size, count - first)
            # (processes with other shards of the batch would wait for this chunk in vain)
            if before == 1 or task.context.problem.shards is not None:
                less = "smaller batches" if before == 1 else "smaller batches or a smaller SGE.chunk"
                error.add_note(f"{before} perturbed trajectories of SGE at a time: {less} take less memory")
                raise
            size = (before + 1) // 2
            if task.context.problem.replays is not None:
                task.context.problem.replays.forget()
            task.smaller_chunks.append(size)
            warnings.warn(
                f"out of memory with {before} batched directions of SGE; continues with {size} at a time",
                MemoryWarning,
                stacklevel=2,
            )
        else:
            first += size
    return torch.cat(done)


def _together(task: Perturbation, points: Sequence[Tree]) -> Tensor:
    """The projections at M of the points, (M,), as ``sequential`` computes them.

    If the optimizer treats all entries alike, weights are one matrix (M, all weights): a step is then a few
    large operations. Other optimizers take their steps member by member.
    """
    context, last = task.context, task.context.trajectory.steps[-1]
    problem, optimizer, batches = context.problem, context.problem.inner_optimizer, context.inner_batches
    joins = can_join(optimizer, context.state.weights)
    each = torch.func.vmap if joins else _one_by_one

    def form(values: Tree) -> Tree:
        return joined(values) if joins else values

    def formed(state: InnerState) -> InnerState:
        return joined_state(state) if joins else state

    alphas = tree.stack(points)
    start, origin = formed(context.state), formed(last.before)
    weights, slots = tree.map(lambda value: value.expand(len(points), *value.shape), (start.weights, start.slots))

    def gradient(weights: Tree, batch: Any) -> Tree:
        if not joins:
            return problem.stacked_inner_gradient(weights, alphas, batch)
        return {"all": problem.stacked_inner_gradient(weights["all"], alphas, batch, like=context.state.weights)}

    for index, batch in enumerate(batches[:-1]):

        def step(w: Tree, s: Tree, g: Tree, index: int = index) -> tuple[Tree, Tree]:
            after = optimizer.step(InnerState(w, s, start.step + index), g)
            return after.weights, after.slots

        weights, slots = each(step)(weights, slots, gradient(weights, batch))

    compare = projection(optimizer, origin, form(last.grad), formed(last.after), form(context.v))

    def end(w: Tree, s: Tree, g: Tree) -> Tensor:
        # with one step all members start where the unperturbed trajectory does
        return compare(origin if len(batches) == 1 else InnerState(w, s, origin.step), g)

    ends: Tensor = each(end)(weights, slots, gradient(weights, batches[-1]))
    return ends / task.smoothing


def _one_by_one(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """As torch.func.vmap, by a loop over the first dimension: for functions that vmap cannot run."""

    def mapped(*stacked: Tree) -> Tree:
        count = tree.tensors(stacked)[0].shape[0]
        members = [tree.map(lambda value, index=index: value[index], stacked) for index in range(count)]
        return tree.stack([function(*member) for member in members])

    return mapped


def trajectory_bytes(state: InnerState, saved_bytes: float) -> float:
    """Memory of one trajectory: what its forward pass saves, and its weights, slots and gradient with the copies that
    calls make of them. On a CPU a quarter of what is saved more, for the libraries' own memory and the gaps between
    tensors, which belong to the process and to no tensor."""
    weights, slots = (sum(t.nbytes for t in tree.tensors(values)) for values in (state.weights, state.slots))
    share = 1.0 if tree.tensors(state.weights)[0].device.type == "cuda" else 1.25
    return share * saved_bytes + 4 * weights + max(weights, slots)


def members_that_fit(
    state: InnerState,
    saved_bytes: float,
    neighbors: int = 1,
    *,
    always: bool = False,
) -> float:
    """How many trajectories ``automatic`` would batch if there were directions enough; below 2: none.

    Args:
        state: The inner state.
        saved_bytes: Bytes that one forward pass saves for its backward pass.
        neighbors: Number of processes that share the memory of this machine.
        always: As ``batched``, which batches large passes too.
    """
    device = tree.tensors(state.weights)[0].device
    if device.type == "cpu" and saved_bytes > SMALL_PASS and not always:
        return 1
    return _budget(device, neighbors) / trajectory_bytes(state, saved_bytes)


def _budget(device: torch.device, neighbors: int) -> float:
    """Bytes that all trajectories of a chunk may take together."""
    if device.type != "cuda":
        return CPU_SHARE * psutil.virtual_memory().total / neighbors
    free, _ = torch.cuda.mem_get_info(device)
    # what the caching allocator holds but does not use counts as free
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return GPU_SHARE * (free + unused)
