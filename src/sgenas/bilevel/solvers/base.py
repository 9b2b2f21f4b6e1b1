r"""Stochastic algorithms for bilevel problems whose inner loss is strongly convex in the weights.

Each takes steps of weights w, of v and of outer variables alpha from minibatches, where v follows the solution of
H v = -d L_val / d w. At H = d^2 L_train / d w^2 and M = d^2 L_train / (d alpha d w), the directions

    D_w = d L_train / d w,    D_v = H v + d L_val / d w,    D_alpha = M v + d L_val / d alpha

are all zero exactly at a stationary point: w = w*(alpha), and D_alpha is the hypergradient. All three are sums over
samples, so that minibatches estimate them without bias.

PZOBO (Sow et al. 2021, arXiv:2110.07004) is not here: its hypergradient is that of ``sgenas.bilevel.SGE``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from sgenas import tree
from sgenas.bilevel import complex_weights
from sgenas.bilevel.gradients import GradientGraph
from sgenas.bilevel.hvp import HVP, ROUTES, keeps_graph
from sgenas.bilevel.problem import BilevelProblem
from sgenas.errors import DivergenceError, require, require_choice
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
class OracleCalls:
    """Derivatives of one loss on one minibatch. A gradient counts once, whichever variables it is taken for.

    Attributes:
        inner_gradients: Gradients of L_train.
        outer_gradients: Gradients of L_val.
        hvps: Hessian-vector products H v.
        cross_products: Products M v.
    """

    inner_gradients: int = 0
    outer_gradients: int = 0
    hvps: int = 0
    cross_products: int = 0

    @property
    def total(self) -> int:
        """Calls of all kinds."""
        return self.inner_gradients + self.outer_gradients + self.hvps + self.cross_products

    def __add__(self, other: "OracleCalls") -> "OracleCalls":
        return OracleCalls(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


DIRECTIONS = OracleCalls(1, 1, 1, 1)
"""What D_w, D_v and D_alpha of one pair of minibatches cost."""


class Minibatches:
    """A dataset in fixed minibatches. Each epoch draws every one of them once, in a new order.

    Args:
        batches: The minibatches, at least one, in the form that the loss takes.
        sizes: Samples of each; None if they are equal.
        seed: Seed of the orders.

    Attributes:
        shares: The part of the samples that is in each minibatch.

    Example:
        >>> inner = Minibatches(list(zip(x.split(64), y.split(64), strict=True)), seed=0)
    """

    def __init__(self, batches: Sequence[Any], *, sizes: Sequence[int] | None = None, seed: int = 0) -> None:
        require(len(batches) >= 1, "batches", "at least one minibatch", len(batches))
        sizes = [1] * len(batches) if sizes is None else list(sizes)
        good = len(sizes) == len(batches) and all(size > 0 for size in sizes)
        require(good, "sizes", f"{len(batches)} positive numbers", sizes)
        self.batches, self.shares = list(batches), [size / sum(sizes) for size in sizes]
        self._generator, self._order = torch.Generator().manual_seed(seed), list[int]()

    def draw(self) -> int:
        """Index of the next minibatch."""
        if not self._order:
            self._order = torch.randperm(len(self.batches), generator=self._generator).tolist()
        return self._order.pop()


@dataclass(frozen=True)
class SolverState:
    """Where a solver is; a step returns a new one.

    Attributes:
        weights: Inner variables w.
        alphas: Outer variables.
        v: Estimate of -H^-1 d L_val / d w.
        step: Steps taken.
        calls: Oracle calls of all of them.
        memory: What else the algorithm carries.
    """

    weights: Tree
    alphas: Tree
    v: Tree
    step: int = 0
    calls: OracleCalls = OracleCalls()
    memory: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Solver(ABC):
    """Base of the algorithms: step sizes lr / (t + 1)^decay and outer_lr / (t + 1)^decay in step t = 0, 1, ...

    The inner optimizer of the problem is not used.

    Args:
        lr: Step size of w and v, > 0.
        outer_lr: Step size of alpha, > 0.
        decay: Exponent, in [0, 1].
        hvp: Route of second derivatives, see ``sgenas.bilevel.hvp``.
    """

    lr: float = 0.1
    outer_lr: float = 0.1
    decay: float = 0.0
    hvp: str = "auto"

    def __post_init__(self) -> None:
        name = type(self).__name__
        for rate in ("lr", "outer_lr"):
            require(0 < getattr(self, rate) < float("inf"), f"{name}.{rate}", "positive", getattr(self, rate))
        require(0 <= self.decay <= 1, f"{name}.decay", "in [0, 1]", self.decay)
        require_choice(f"{name}.hvp", self.hvp, ROUTES)

    def init(self, problem: BilevelProblem, weights: Tree, alphas: Tree) -> SolverState:
        """The first state, with v = 0.

        Raises:
            InvalidValueError: If weights or alphas are not trees of real floating-point tensors.
        """
        state = problem.init(weights)
        problem.check(state, alphas, [None])
        require(not complex_weights.occur(state), "weights", "real", "complex ones")
        return SolverState(state.weights, tree.clone(alphas), tree.zeros_like(state.weights))

    @abstractmethod
    def mean(self, value: Vector, index: int, minibatches: Minibatches, memory: Any) -> tuple[Vector, Any]:
        """(estimate of the mean over all samples without bias, memory after it).

        Args:
            value: The terms of the drawn minibatch.
            index: Which one it is.
            minibatches: All of them.
            memory: What the last estimate left; None before the first.
        """

    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        """One step of SGD of w, v and alpha at once. Changes nothing but the orders of the minibatches."""
        w, alphas, i, j = state.weights, state.alphas, inner.draw(), outer.draw()
        value = joined(*self.products(problem, state, inner.batches[i]))
        outer_value = joined(*problem.outer_gradients(w, alphas, outer.batches[j])[1:])
        ours, theirs = state.memory or (None, None)
        value, ours = self.mean(value, i, inner, ours)
        outer_value, theirs = self.mean(outer_value, j, outer, theirs)
        grad, curved, mixed = split(value, w, w, alphas)
        by_w, by_alphas = split(outer_value, w, alphas)
        falls = float(state.step + 1) ** self.decay
        lr, outer_lr = self.lr / falls, self.outer_lr / falls
        return SolverState(
            tree.add(w, grad, -lr),
            tree.add(alphas, tree.add(mixed, by_alphas), -outer_lr),
            tree.add(state.v, tree.add(curved, by_w), -lr),
            state.step + 1,
            state.calls + DIRECTIONS,
            (ours, theirs),
        )

    def run(
        self,
        problem: BilevelProblem,
        weights: Tree,
        alphas: Tree,
        inner: Minibatches,
        outer: Minibatches,
        *,
        steps: int,
        callback: Callable[[SolverState], bool | None] | None = None,
    ) -> SolverState:
        """Takes ``steps`` steps, or fewer if ``callback``, called after each, returns True.

        Raises:
            DivergenceError: If alpha is NaN or infinite, looked for every 100 steps and at the end.
        """
        state = self.init(problem, weights, alphas)
        for _ in range(steps):
            state = self.step(problem, state, inner, outer)
            stop = callback is not None and bool(callback(state))
            if (stop or state.step % 100 == 0 or state.step == steps) and not bool(tree.norm(state.alphas).isfinite()):
                raise DivergenceError(
                    f"alphas are NaN or infinite after step {state.step}; try a smaller lr or outer_lr"
                )
            if stop:
                break
        return state

    def products(self, problem: BilevelProblem, state: SolverState, batch: Any) -> tuple[Tree, Tree, Tree]:
        """(d L_train / d w, H v, M v) on one minibatch, from one graph if it is small."""
        point = (state.weights, state.alphas, batch)
        if keeps_graph(problem, self.hvp, *point):
            graph = GradientGraph(problem.inner_loss, *point)
            problem.counter.add(1, 1, 1)
            return graph.grad, *HVP(problem, *point, self.hvp, graph).both(state.v)
        return problem.inner_gradient(*point)[1], *HVP(problem, *point, self.hvp).both(state.v)
