"""One run on several processes: torchrun starts them, torch.distributed carries what they exchange.

Each process holds the whole state and takes every step; they divide the directions of an estimate and the
shards of a batch. With D shards per batch, P = gcd(processes, D) processes form a group that shares the shards
of a batch, and the processes / P groups share the directions.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sgenas.bilevel import Shards, Share
from sgenas.device import find_device, ran_out
from sgenas.digests import digest
from sgenas.errors import InvalidValueError, ProcessError, SgenasError, require

Made = TypeVar("Made")

TIMEOUT = 1800.0
"""Seconds without an answer after which another process counts as lost."""
REPORT_TIMEOUT = 60.0
"""Seconds that the others wait for the first process to report an error."""


def launched() -> bool:
    """Whether torchrun, or another launcher with the same environment variables, has started several processes."""
    return _number("WORLD_SIZE", 1) > 1 and all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


@contextlib.contextmanager
def joined(timeout: float = TIMEOUT, *, given: "Processes | None" = None) -> Iterator["Processes"]:
    """Joins the processes that torchrun has started, and leaves at the end; without torchrun there is one.

    Args:
        timeout: Seconds to wait for the others, here and later.
        given: Processes that have joined already, for others to leave.

    Raises:
        ProcessError: If they do not join.
    """
    if given is not None or not launched():
        yield given or ALONE
        return
    wait = timedelta(seconds=timeout)
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, size = next(rendezvous("env://", timeout=wait))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=wait,
        )
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"the processes did not join within {timeout:g} s ({_words(error)})") from None
    try:
        yield Processes(rank, size, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1), timeout, store)
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """The processes of one run; by default this one alone.

    Every method that communicates must be called by all processes in the same order, and raises ProcessError
    if another one has ended or does not answer.

    Args:
        rank: Number of this process.
        size: Number of processes.
        local_rank: Number of this process on its machine.
        here: Number of processes on its machine.
        timeout: Seconds without an answer after which another process counts as lost.
        store: Key-value store of torch.distributed, through which the first process announces its end.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    here: int = 1
    timeout: float = TIMEOUT
    store: Any = field(default=None, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    # -- agreement -----------------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any of them."""
        if self.size == 1:
            return flag
        return bool(self._reduced(int(flag), dist.ReduceOp.MAX))

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """Raises on all processes at the end what one of them raised inside (an SgenasError), without communication.

        All begin together, so that each sees the files that the others have written before.
        """
        if self.size == 1:
            yield
            return
        self.any(False)
        failure: SgenasError | None = None
        try:
            yield
        except SgenasError as error:
            failure = error
        texts = self._texts("" if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure  # a process that failed raises its own
        failed = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
        if failed:
            raise InvalidValueError(failed[0])

    def build(self, make: Callable[[], Made]) -> Made:
        """``make()`` under `agreeing`, on each machine in one process before the others.

        The others then find what it has downloaded.
        """
        if self.size == 1:
            return make()
        made: list[Made] = []
        for turn in (self.local_rank == 0, self.local_rank != 0):
            with self.agreeing():
                if turn:
                    made.append(make())
        return made[0]

    def require_same(self, state: Mapping[str, Any], when: str) -> None:
        """Raises ProcessError on all processes unless their ``state`` (nested plain data and tensors) is equal."""
        if self.size == 1:
            return
        mine = [digest(value) for value in state.values()]
        for rank, text in enumerate(self._texts(" ".join(mine))):
            for name, ours, theirs in zip(state, mine, text.split(), strict=True):
                if ours != theirs:
                    raise ProcessError(
                        f"rank {self.rank}: all processes must have the same {name.replace('_', ' ')} {when},"
                        f" but rank {rank} has another"
                    )

    def part(self) -> None:
        """Waits, for a limited time, until the first process gets here.

        torchrun ends all processes as soon as one has failed: the first one reports the error before that.
        """
        if self.store is None:
            return
        with contextlib.suppress(RuntimeError):
            if self.first:
                self.store.set("sgenas/parted", "")
            else:
                self.store.wait(["sgenas/parted"], timedelta(seconds=REPORT_TIMEOUT))

    # -- dividing the work ---------------------------------------------------------------------------------

    def device(self, name: str) -> torch.device:
        """The device ``name`` for this process; each process takes a GPU of its own, and touches no other.

        Processes that see the same GPUs take them in turn. Those that see one each (as SLURM and Ray set
        CUDA_VISIBLE_DEVICES) take that one. All processes must call this.

        Raises:
            InvalidValueError: If there is no such device, or there are fewer GPUs than processes.
        """
        if self.size == 1 or name == "cpu":
            return find_device(name)
        limit = f"auto, cpu or cuda on {self.size} processes (each takes its own GPU)"
        require(name in ("auto", "cuda"), "device", limit, name)
        # unlike a tensor, a GPU's properties take no memory there
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        visible = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
        everyone = [text.split() for text in self._texts(" ".join(visible))]
        if not any(everyone):
            return find_device(name)
        taken: list[str] = []
        for rank, theirs in enumerate(everyone):
            free = [gpu for gpu in theirs if gpu not in taken]
            if not free:
                raise InvalidValueError(
                    f"the number of processes must be at most the number of GPUs, but rank {rank} of {self.size} has"
                    f" none left of the {len(theirs)} that it sees; start fewer, or run on cpu",
                    field="nproc_per_node",
                )
            taken.append(free[0])
        device = torch.device("cuda", visible.index(taken[self.rank]))
        torch.cuda.set_device(device)
        return device

    def layout(self, data_parallel: int) -> "WorkLayout":
        """Which directions and shards each process has, for D = ``data_parallel`` shards per batch."""
        shards = None if data_parallel == 1 else Shards(data_parallel)
        if self.size == 1:
            return WorkLayout(shards=shards)
        width = math.gcd(self.size, data_parallel)
        groups = self.size // width
        row, column = divmod(self.rank, width)
        share = Share(row, groups, lambda mine: [mine], self.here)
        if width > 1:
            beside = self._group([list(range(first, first + width)) for first in range(0, self.size, width)])
            shards = Shards(
                data_parallel,
                column,
                width,
                lambda tensors: self._total(tensors, beside),
                lambda number: self._reduced(number, dist.ReduceOp.MIN, beside),
            )
        if groups > 1:
            across = self._group([list(range(first, self.size, width)) for first in range(width)])
            # a few numbers by gloo, which tells at once if a process is lost
            share = replace(share, gather=lambda mine: [each.to(mine) for each in self._gather(mine.cpu(), across)])
        return WorkLayout(share, shards, groups, width)

    def total(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sum over all processes of each tensor."""
        return tensors if self.size == 1 else self._total(tensors, None)

    def means(self, batches: Iterable[Any], measure: Callable[[Any], dict[str, Tensor]], name: str) -> dict[str, float]:
        """Means over all batches of what ``measure`` sums over one, with the number of summands as ``count``.

        The processes share the batches. Added in the order of a single process and in float64.

        Raises:
            InvalidValueError: If there is no batch, or ``count`` is 0; it calls the batches ``name``.
        """
        found: list[dict[str, Tensor] | None] = []
        batch: Any = None
        for index, batch in enumerate(batches):
            found.append(measure(batch) if index % self.size == self.rank else None)
        require(bool(found), name, "at least one batch", 0)
        # with more processes than batches, some measure for the names alone
        known = next(filter(None, found), None) or measure(batch)
        zeros = {key: torch.zeros_like(value) for key, value in known.items()}
        stacked = [torch.stack([(each or zeros)[key].double() for each in found]) for key in sorted(known)]
        sums = {key: sum(each.tolist()) for key, each in zip(sorted(known), self.total(stacked), strict=True)}
        count = sums.pop("count", 0)
        require(count > 0, name, "at least one label that counts", 0)
        return {key: total / count for key, total in sums.items()}

    # -- communication -------------------------------------------------------------------------------------

    def _group(self, members: list[list[int]]) -> dist.ProcessGroup | None:
        """The group of this process among lists of ranks; None, the default group, if there is one list."""
        if len(members) == 1:
            return None
        wait, found = timedelta(seconds=self.timeout), list[Any]()
        self._exchange(lambda: found.extend(dist.new_subgroups_by_enumeration(members, wait)))
        mine: dist.ProcessGroup = found[0]
        return mine

    def _gather(self, tensor: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        self._exchange(lambda: dist.all_gather(found, tensor.contiguous(), group=group))
        return found

    def _total(self, tensors: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
        # one message: a supernet has over a thousand tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._exchange(lambda: dist.all_reduce(flat, group=group))
        pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
        # in the memory format of each tensor, as on a single process
        found = [torch.empty_like(tensor) for tensor in tensors]
        torch._foreach_copy_(found, [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)])
        return found

    def _reduced(self, number: int, by: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None = None) -> int:
        value = torch.tensor([number])
        self._exchange(lambda: dist.all_reduce(value, by, group=group))
        return int(value.item())

    def _texts(self, mine: str) -> list[str]:
        """The strings of all processes, by rank."""
        found = [""] * self.size
        self._exchange(lambda: dist.all_gather_object(found, mine))
        return found

    def _exchange(self, call: Callable[[], Any]) -> None:
        """Turns what torch.distributed raises for a lost process into a ProcessError."""
        try:
            call()
        except RuntimeError as error:
            if ran_out(error):
                # of this process alone
                raise
            raise ProcessError(
                f"rank {self.rank}: another process of the run has ended or does not answer ({_words(error)})"
            ) from None


ALONE = Processes()


@dataclass(frozen=True)
class WorkLayout:
    """How the work of a step is divided: ``groups`` groups of processes share the directions, the ``width``
    processes of a group share the shards of each batch."""

    share: Share | None = None
    shards: Shards | None = None
    groups: int = 1
    width: int = 1


def _words(error: Exception) -> str:
    """The first line of an error of torch.distributed, without its source location."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    return line.rpartition("] ")[2][:200] if line.startswith("[") else line[:200]
