"""SGE's perturbed trajectories side by side: one pass through the loss for many directions.

What a pass costs beyond its arithmetic (launching kernels on a GPU, choosing them on a CPU) is then paid once
for all of them. Memory grows with their number, so it is kept within a budget.
"""

import math
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import psutil
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.projections import Perturbation, moved, streamed
from sgenas.errors import InvalidValueError, MemoryWarning
from sgenas.memory import ran_out
from sgenas.trees import Tree

SMALL_PASS = 512 * 2**20
"""Bytes that a pass may save for its backward on a CPU to be slowed down by its many calls rather than by its
arithmetic. Ten side by side were 1.5 to 2 times as fast as one by one at 60 to 340 MB, level at 1.1 GB."""

GPU_SHARE, CPU_SHARE = 0.8, 0.25
"""What passes side by side may take where no limit is given: of a GPU's free memory; of all the machine's, so
that a run does not depend on what else runs."""


def automatic(task: Perturbation) -> Tensor:
    """`vectorised` where that pays, else `streamed`.

    It pays for a problem that has a stacked loss, if two trajectories fit into the memory: on a GPU always
    (as is expected; not measured), on a CPU where the passes are small or a memory limit asks for it. At
    most as many go together as the chunk says.
    """
    if task.problem.stacked_inner_loss is None:
        return streamed(task)
    size = _agreed(task, min(side_by_side(task), math.inf if task.chunk is None else task.chunk))
    return streamed(task) if size < 2 else _in_chunks(task, size)


def vectorised(task: Perturbation) -> Tensor:
    """As many trajectories at a time as the chunk says or the memory limit allows.

    With neither, all that fit into 80 % of a GPU's free memory, or a quarter of the machine's. Raises
    InvalidValueError where not even one fits the limit.
    """
    if task.chunk is not None and task.memory_limit is None:
        return _in_chunks(task, task.chunk)
    size = side_by_side(task, always=True)
    if task.chunk is not None:
        size = min(size, task.chunk)
    if task.memory_limit is not None and size < 1:
        # rounded up, so that what is advised is enough
        needed = math.ceil(trajectory_bytes(task) / 2**30 * 1e4) / 1e4
        raise InvalidValueError(
            f"SGE.memory_limit must be at least {needed:.4f} GiB, what one perturbed trajectory takes, got"
            f" {task.memory_limit}"
        )
    return _in_chunks(task, max(1, _agreed(task, size)))


def _agreed(task: Perturbation, size: float) -> int:
    """How many go side by side where `size` would fit: with shards, what fits on all who have a batch's."""
    number = int(min(size, len(task.directions)))
    return number if task.problem.shards is None else task.problem.shards.least(number)


def _in_chunks(task: Perturbation, size: int) -> Tensor:
    """`size` at a time; half as many, with a MemoryWarning, whenever memory runs out.

    At one at a time, or where batches are cut into shards, what the system says is raised.
    """
    done: list[Tensor] = []
    left = list(task.directions)
    while left:
        try:
            done.append(_together(task, left[:size]))
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            before = min(size, len(left))
            # (whoever has other shards of the batch would wait for this chunk in vain)
            if before == 1 or task.problem.shards is not None:
                error.add_note(
                    f"{before} perturbed trajectories of SGE at a time: smaller batches, SGE.batch_fraction"
                    " or SGE.memory_limit take less memory"
                )
                raise
            size = (before + 1) // 2
            task.on_smaller_chunk(size)
            warnings.warn(
                f"memory ran out with {before} directions of SGE side by side: goes on with {size} at a time",
                MemoryWarning,
                stacklevel=2,
            )
        else:
            left = left[size:]
    return torch.cat(done)


def _together(task: Perturbation, directions: Sequence[Tree]) -> Tensor:
    """The projections of these directions, (M,); like `streamed`, the last step is not taken.

    Weights travel as one matrix (M, all weights): a step of the optimiser is then a few large operations, and
    each member is clipped by its own norm.
    """
    problem, members = task.problem, len(directions)
    optimizer = problem.inner_optimizer
    alphas = trees.stack([task.perturbed(direction) for direction in directions])
    origin = _flat(task.trajectory.before_last)
    v = {"all": trees.flatten(task.v)}
    start = _flat(task.start)
    weights = start.weights["all"].expand(members, -1)
    buffers = {name: buffer.expand(members, -1) for name, buffer in start.buffers.items()}

    def gradient(batch: Any) -> Tensor:
        apart = trees.unflatten_rows(weights, task.start.weights)
        return trees.flatten_rows(problem.stacked_inner_gradient(apart, alphas, batch))

    def step(w: Tensor, b: Tree, g: Tensor) -> tuple[Tensor, Tree]:
        after = optimizer.step(InnerState({"all": w}, b), {"all": g})
        return after.weights["all"], after.buffers

    for batch in task.batches[:-1]:
        weights, buffers = torch.func.vmap(step)(weights, buffers, gradient(batch))

    def end(w: Tensor, b: Tree, g: Tensor) -> Tensor:
        # with one step all members stand where the unperturbed trajectory does
        state = origin if len(task.batches) == 1 else InnerState({"all": w}, b)
        return moved(optimizer, state, origin, {"all": g}, v)

    base = moved(optimizer, origin, origin, {"all": trees.flatten(task.trajectory.last_grad)}, v)
    ends = torch.func.vmap(end)(weights, buffers, gradient(task.batches[-1]))
    return (ends - base) / task.smoothing


def _flat(state: InnerState) -> InnerState:
    buffers = {"all": trees.flatten(state.buffers)} if state.buffers else {}
    return InnerState({"all": trees.flatten(state.weights)}, buffers, state.step)


def _device(task: Perturbation) -> torch.device:
    return next(iter(task.v.values())).device


def trajectory_bytes(task: Perturbation) -> float:
    """Memory of one trajectory: what its forward pass saves, a quarter of that for what the backward pass
    makes on its way, and its weights, momentum and gradient with the copies that calls make of them."""
    weights = sum(tensor.nbytes for tensor in task.start.weights.values())
    return 1.25 * task.saved_bytes + 5 * weights


def side_by_side(task: Perturbation, *, always: bool = False) -> float:
    """How many trajectories `automatic` would take at a time if there were directions enough; one if < 2.

    always: as `vectorised`, which takes large passes side by side too.
    """
    large = _device(task).type == "cpu" and task.memory_limit is None and task.saved_bytes > SMALL_PASS
    if large and not always:
        return 1
    return _budget(task) / trajectory_bytes(task)


def _budget(task: Perturbation) -> float:
    """Bytes that all trajectories of a chunk may take together."""
    if task.memory_limit is not None:
        return task.memory_limit * 2**30
    device = _device(task)
    if device.type != "cuda":
        return CPU_SHARE * psutil.virtual_memory().total / task.neighbours
    free, _ = torch.cuda.mem_get_info(device)
    # what the caching allocator holds but does not use counts as free
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return GPU_SHARE * (free + unused)


class SavedMemory:
    """Counts, inside `with`, the bytes that forward passes save for their backward passes.

    `peak`: the most at one time. A storage saved by several operations counts once.
    """

    def __init__(self) -> None:
        self.peak = self._now = 0
        self._users: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.give)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)

    def _pack(self, tensor: Tensor) -> "_Saved":
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        users = self._users.get(key, 0)
        if not users:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._users[key] = users + 1
        # Detached: the result of an operation that saves it would hold its own graph alive in a circle.
        return _Saved(self, tensor.detach(), key, size)

    def release(self, key: int, size: int) -> None:
        """One user of a storage less."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._now -= size


class _Saved:
    """A saved tensor, which reports when the graph lets go of it."""

    __slots__ = ("_key", "_memory", "_size", "_tensor")

    def __init__(self, memory: SavedMemory, tensor: Tensor, key: int, size: int) -> None:
        self._memory, self._tensor, self._key, self._size = memory, tensor, key, size

    def give(self) -> Tensor:
        """The tensor itself."""
        return self._tensor

    def __del__(self) -> None:
        self._memory.release(self._key, self._size)
