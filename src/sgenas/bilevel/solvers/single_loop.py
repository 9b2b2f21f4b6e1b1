"""Algorithms that step w, v and alpha at once: SOBA, and SABA with less variance."""

from dataclasses import dataclass

from sgenas import tree
from sgenas.bilevel.solvers.base import Minibatches, Solver, Vector


@dataclass(frozen=True)
class SOBA(Solver):
    """Stochastic bilevel algorithm (Dagreou et al. 2022, arXiv:2201.13409, Algorithm 1).

    Steps along the directions of one pair of minibatches. The theory asks for steps that fall as t^-1/2.
    """

    decay: float = 0.5

    def mean(self, value: Vector, index: int, minibatches: Minibatches, memory: None) -> tuple[Vector, None]:
        # minibatches are drawn equally often, whatever their size
        return tree.scale(value, len(minibatches.batches) * minibatches.shares[index]), None


@dataclass(frozen=True)
class Table:
    """Memory of SAGA: the last value of each minibatch, zero before the first, and their mean by shares."""

    entries: tuple[Vector | None, ...]
    mean: Vector


@dataclass(frozen=True)
class SABA(Solver):
    """Stochastic average bilevel algorithm (Dagreou et al. 2022, arXiv:2201.13409, Algorithm 2).

    The step of SOBA with all five terms of the directions variance-reduced as in SAGA, so that constant step sizes
    converge: with n minibatches the estimate is n share (value - old) + mean, whose variance goes to zero with
    value - old. It keeps the last terms of every minibatch: twice the weights and once the alphas per inner one,
    both once per outer one.
    """

    def mean(self, value: Vector, index: int, minibatches: Minibatches, memory: Table | None) -> tuple[Vector, Table]:
        count, share = len(minibatches.batches), minibatches.shares[index]
        table = memory or Table((None,) * count, tree.zeros_like(value))
        old = table.entries[index]
        difference = value if old is None else tree.subtract(value, old)
        entries = (*table.entries[:index], value, *table.entries[index + 1 :])
        return tree.add(table.mean, difference, count * share), Table(entries, tree.add(table.mean, difference, share))
