"""How one estimate is divided: directions over processes, batches into shards.

Nothing here knows how processes talk to each other. Whoever runs them hands in the functions that exchange
numbers; `sgenas.engine.parallel` makes them of torch.distributed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas.errors import InvalidValueError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """The part of the directions that is followed here, and how the projections of all come together.

    This is part `index` of `count`. Every part draws all directions from the same seed, stands at the same
    weights and alphas, and computes only what belongs to its own directions. gather: an all-gather of one
    vector, which is (m,) everywhere: the vectors of parts 0 .. count - 1, in that order. neighbours: the
    processes on this machine, this one included, that have its memory together. Raises InvalidValueError
    for an index outside 0 .. count - 1.
    """

    index: int
    count: int
    gather: Callable[[Tensor], Sequence[Tensor]]
    neighbours: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InvalidValueError(f"Share.index must be from 0 to {self.count - 1}, got {self.index}")

    def _first(self, part: int, total: int) -> int:
        """Where a part begins: the first `total` mod `count` parts have one item more than the others."""
        return part * (total // self.count) + min(part, total % self.count)

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this part, side by side; none where there are fewer items than parts."""
        total = len(items)
        return items[self._first(self.index, total) : self._first(self.index + 1, total)]

    def together(self, mine: Tensor, total: int) -> Tensor:
        """(total,), the same everywhere, from one number for each item of `self.mine`."""
        longest = -(-total // self.count)
        padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
        ends = [self._first(part + 1, total) - self._first(part, total) for part in range(self.count)]
        return torch.cat([part[:end] for part, end in zip(self.gather(padded), ends, strict=True)])


def _alone(values: list[Tensor]) -> list[Tensor]:
    return values


def _own(number: int) -> int:
    return number


@dataclass(frozen=True)
class Shards:
    """Every batch is cut into `count` equal shards; what is computed from a batch is the mean over them.

    With batch normalisation that is another loss than the batch's as a whole, since each shard has its own
    statistics, but the same one on any number of processes. Every process is given whole batches. Those
    processes that have the shards of a batch among them are a group of `parts`; this one is number `index`
    of it, computes count / parts shards, one after the other, and `total` adds up lists of tensors over the
    group. least: the smallest of the numbers that the group's processes give. By default there is one
    process, which computes all shards.

    Raises InvalidValueError for a count < 1, parts that do not divide it, an index outside 0 .. parts - 1.
    """

    count: int
    index: int = 0
    parts: int = 1
    total: Callable[[list[Tensor]], list[Tensor]] = _alone
    least: Callable[[int], int] = _own

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidValueError(f"Shards.count must be >= 1, got {self.count}")
        if self.parts < 1 or self.count % self.parts:
            raise InvalidValueError(f"Shards.parts must divide count {self.count}, got {self.parts}")
        if not 0 <= self.index < self.parts:
            raise InvalidValueError(f"Shards.index must be from 0 to {self.parts - 1}, got {self.index}")

    def mean(self, compute: Callable[[Any], list[Tensor]], batch: Any) -> list[Tensor]:
        """The mean over all shards of the tensors, detached, that `compute` makes of one.

        Raises InvalidValueError for a batch that cannot be cut into equal shards.
        """
        size = rows(batch, "Shards.count")
        if size % self.count:
            raise InvalidValueError(f"Shards.count must divide the {size} rows of a batch, got {self.count}")
        length, mine = size // self.count, self.count // self.parts
        first = self.index * mine
        total: list[Tensor] = []
        for shard in range(first, first + mine):
            found = compute(cut(batch, shard * length, (shard + 1) * length))
            total = list(torch._foreach_add(total, found)) if total else found
        return list(torch._foreach_div(self.total(total), self.count))


def rows(batch: Any, field: str) -> int:
    """The first dimension of the tensors in a batch; InvalidValueError with `field` unless they share one."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        raise InvalidValueError(
            f"{field} needs batches of tensors with one first dimension in common, got sizes {sorted(sizes)}"
        )
    return sizes.pop()


def cut(batch: Any, first: int, last: int) -> Any:
    """Rows first .. last - 1 of every tensor in a batch; what is no tensor stays as it is."""
    leaves, structure = pytree.tree_flatten(batch)
    return pytree.tree_unflatten(
        [leaf[first:last] if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
    )
