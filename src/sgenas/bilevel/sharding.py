"""How one estimate is divided: directions over processes, batches into shards.

Nothing here communicates. The caller passes the functions that exchange numbers between processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas.errors import InvalidValueError, require
from sgenas.tree import Tree

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """The part of the directions that one process follows.

    Every process draws all directions from the same seed, at the same weights and alphas, and computes the
    projections of its own directions only.

    Args:
        index: This part, 0 .. count - 1.
        count: Number of parts.
        gather: All-gather of one vector, which is (m,) everywhere: the vectors of all parts in order.
        neighbors: Number of processes that share the memory of this machine, this one included.

    Raises:
        InvalidValueError: If the index is out of range.
    """

    index: int
    count: int
    gather: Callable[[Tensor], Sequence[Tensor]]
    neighbors: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.index < self.count, "Share.index", f"in 0 .. {self.count - 1}", self.index)

    def _parts(self, total: int) -> list[list[int]]:
        """The indices of each part: the first ``total`` mod ``count`` parts have one item more than the others."""
        return [part.tolist() for part in torch.arange(total).tensor_split(self.count)]

    def mine(self, items: Sequence[Item]) -> list[Item]:
        """The items of this part; none if there are fewer items than parts."""
        return [items[index] for index in self._parts(len(items))[self.index]]

    def together(self, mine: Tensor, total: int) -> Tensor:
        """(total,), the same on all processes, from one number per item of ``mine``."""
        parts = self._parts(total)
        padded = torch.cat([mine, mine.new_zeros(len(parts[0]) - len(mine))])
        return torch.cat([found[: len(part)] for found, part in zip(self.gather(padded), parts, strict=True)])


class Whole:
    """Tensors in a batch that are not cut: every shard has all of them. A subclass takes the same argument.

    Args:
        tables: A tree of tensors.
    """

    def __init__(self, tables: Tree) -> None:
        self.tables = tables


@dataclass(frozen=True)
class Shards:
    """Cuts every batch into equal shards; results are means over the shards.

    Batch normalization has its own statistics in each shard, so the loss is not that of the whole batch, but
    it is the same on any number of processes. Every process gets whole batches.

    Args:
        count: Number of shards of a batch.
        index: This process within its group, 0 .. parts - 1.
        parts: Number of processes that divide the shards of a batch; it computes count / parts of them.
        total: Adds up lists of tensors over the group.
        least: The smallest of the numbers of the group's processes.

    Raises:
        InvalidValueError: If ``count`` < 1, ``parts`` does not divide it, or ``index`` is out of range.
    """

    count: int
    index: int = 0
    parts: int = 1
    total: Callable[[list[Tensor]], list[Tensor]] = lambda values: values
    least: Callable[[int], int] = lambda number: number

    def __post_init__(self) -> None:
        require(self.count >= 1, "Shards.count", ">= 1", self.count)
        divides = self.parts >= 1 and self.count % self.parts == 0
        require(divides, "Shards.parts", f"a divisor of count {self.count}", self.parts)
        require(0 <= self.index < self.parts, "Shards.index", f"in 0 .. {self.parts - 1}", self.index)

    def mean(self, compute: Callable[[Any], list[Tensor]], batch: Any) -> list[Tensor]:
        """The mean over all shards of the detached tensors that ``compute`` makes of one; refuses a batch that
        cannot be cut into equal shards."""
        mine = self.count // self.parts
        first = self.index * mine
        total: list[Tensor] = []
        for shard in range(first, first + mine):
            found = compute(self.one(batch, shard))
            total = list(torch._foreach_add(total, found)) if total else found
        return list(torch._foreach_div(self.total(total), self.count))

    def one(self, batch: Any, number: int) -> Any:
        """A shard of a batch; refuses a batch that cannot be cut into equal shards."""
        sizes = {len(leaf) if leaf.ndim else 0 for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)}
        if len(sizes) != 1 or 0 in sizes:
            raise InvalidValueError(
                f"Shards.count needs batches of tensors with one first dimension in common, got sizes {sorted(sizes)}",
                field="Shards.count",
            )
        (size,) = sizes
        require(size % self.count == 0, "Shards.count", f"a divisor of the {size} rows of a batch", self.count)
        length = size // self.count
        rows = slice(number * length, (number + 1) * length)
        return pytree.tree_map_only(Tensor, lambda tensor: tensor[rows], batch)
