"""Algorithms that step w, v and alpha at once: SOBA, and SABA and SRBA with less variance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sgenas import tree
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.solvers.base import DIRECTIONS, Minibatches, OracleCalls, Solver, SolverState
from sgenas.tree import Tree

Vector = dict[int, Tree]
"""Several trees in one flat one, whose arithmetic needs no walk through containers."""


def joined(*trees: Tree) -> Vector:
    """The tensors of all trees."""
    return dict(enumerate(leaf for one in trees for leaf in tree.tensors(one)))


def split(vector: Vector, *like: Tree) -> list[Tree]:
    """Inverse of ``joined`` for trees like these."""
    leaves = iter(vector.values())
    return [tree.rebuild(one, [next(leaves) for _ in tree.tensors(one)]) for one in like]


@dataclass(frozen=True)
class SOBA(Solver):
    """Stochastic bilevel algorithm (Dagreou et al. 2022, arXiv:2201.13409, Algorithm 1).

    One step of SGD of w, v and alpha at once, along the directions of one pair of minibatches. The theory asks for
    steps that fall as t^-1/2.
    """

    decay: float = 0.5

    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        return self.moved(state, *self.directions(problem, state, inner.next(), outer.next()), DIRECTIONS)


@dataclass(frozen=True)
class Table:
    """Memory of SAGA: the last value of each minibatch, zero before the first, and their mean by shares."""

    entries: tuple[Vector | None, ...]
    mean: Vector

    def updated(self, index: int, share: float, value: Vector) -> tuple[Vector, "Table"]:
        """(estimate of the mean, memory after it).

        With n minibatches the estimate is n share (value - old) + mean. Its expectation over the index is the mean
        of the present values, and its variance goes to zero with value - old.
        """
        old = self.entries[index]
        difference = value if old is None else tree.subtract(value, old)
        estimate = tree.add(self.mean, difference, share * len(self.entries))
        entries = (*self.entries[:index], value, *self.entries[index + 1 :])
        return estimate, Table(entries, tree.add(self.mean, difference, share))


@dataclass(frozen=True)
class SABA(Solver):
    """Stochastic average bilevel algorithm (Dagreou et al. 2022, arXiv:2201.13409, Algorithm 2).

    The step of SOBA with all five terms of the directions variance-reduced as in SAGA, so that constant step sizes
    converge. It keeps the last terms of every minibatch: twice the weights and once the alphas per inner one, both
    once per outer one.
    """

    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        w, alphas, i, j = state.weights, state.alphas, inner.draw(), outer.draw()
        value = joined(*self.products(problem, state, inner.batches[i]))
        outer_value = joined(*problem.outer_gradients(w, alphas, outer.batches[j])[1:])
        ours, theirs = state.memory or (
            Table((None,) * len(inner.batches), tree.zeros_like(value)),
            Table((None,) * len(outer.batches), tree.zeros_like(outer_value)),
        )
        value, ours = ours.updated(i, inner.shares[i], value)
        outer_value, theirs = theirs.updated(j, outer.shares[j], outer_value)
        grad, curved, mixed = split(value, w, w, alphas)
        by_w, by_alphas = split(outer_value, w, alphas)
        directions = grad, tree.add(curved, by_w), tree.add(mixed, by_alphas)
        return self.moved(state, *directions, DIRECTIONS, (ours, theirs))


@dataclass(frozen=True)
class SRBA(Solver):
    """Stochastic recursive bilevel algorithm (Dagreou et al. 2023, arXiv:2302.08766).

    Directions of all data every ``period`` steps; between them d_t = d_{t-1} + D(t; i, j) - D(t - 1; i, j), D at
    the present and the last point on the same pair of minibatches (SARAH). Keeps no memory of minibatches.

    Args:
        period: Steps between two passes over all data, >= 1.
    """

    period: int = 256
    counts = ("period",)

    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        if state.step % self.period == 0:
            direction, calls = self._of_all_data(problem, state, inner, outer)
        else:
            before, direction = state.memory
            pair = inner.next(), outer.next()
            direction = tree.add(direction, joined(*self.directions(problem, state, *pair)))
            direction = tree.subtract(direction, joined(*self.directions(problem, before, *pair)))
            calls = DIRECTIONS.times(2)
        to_w, to_v, to_alphas = split(direction, state.weights, state.v, state.alphas)
        return self.moved(state, to_w, to_v, to_alphas, calls, (replace(state, memory=None), direction))

    def _of_all_data(
        self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches
    ) -> tuple[Vector, OracleCalls]:
        w, alphas, passes = state.weights, state.alphas, len(inner.batches)
        ours = _mean((joined(*self.products(problem, state, batch)) for batch in inner.batches), inner.shares)
        outer_values = (joined(*problem.outer_gradients(w, alphas, batch)[1:]) for batch in outer.batches)
        grad, curved, mixed = split(ours, w, w, alphas)
        by_w, by_alphas = split(_mean(outer_values, outer.shares), w, alphas)
        direction = joined(grad, tree.add(curved, by_w), tree.add(mixed, by_alphas))
        return direction, OracleCalls(passes, len(outer.batches), passes, passes)


def _mean(values: Iterable[Vector], shares: Sequence[float]) -> Vector:
    total: Vector | None = None
    for value, share in zip(values, shares, strict=True):
        total = tree.scale(value, share) if total is None else tree.add(total, value, share)
    assert total is not None, "minibatches are at least one"
    return total
