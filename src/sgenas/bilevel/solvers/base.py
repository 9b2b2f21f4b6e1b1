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
from typing import Any, ClassVar

import torch

from sgenas import tree
from sgenas.bilevel import complex_weights
from sgenas.bilevel.gradients import GradientGraph
from sgenas.bilevel.hvp import HVP, ROUTES, SMALL_GRAPH, measured_bytes
from sgenas.bilevel.problem import BilevelProblem
from sgenas.errors import DivergenceError, require, require_choice
from sgenas.tree import Tree


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

    def times(self, count: int) -> "OracleCalls":
        """``count`` times as many calls."""
        return OracleCalls(*(count * getattr(self, one.name) for one in fields(self)))


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

    def next(self) -> Any:
        """The next minibatch."""
        return self.batches[self.draw()]


@dataclass(frozen=True)
class SolverState:
    """Where a solver is; a step returns a new one.

    Attributes:
        weights: Inner variables w.
        alphas: Outer variables.
        v: Estimate of -H^-1 d L_val / d w; zero in algorithms that do not carry one.
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
    counts: ClassVar[tuple[str, ...]] = ()
    """Fields that are numbers of steps."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for rate in ("lr", "outer_lr"):
            require(0 < getattr(self, rate) < float("inf"), f"{name}.{rate}", "positive", getattr(self, rate))
        require(0 <= self.decay <= 1, f"{name}.decay", "in [0, 1]", self.decay)
        require_choice(f"{name}.hvp", self.hvp, ROUTES)
        for count in self.counts:
            require(getattr(self, count) >= 1, f"{name}.{count}", "at least 1", getattr(self, count))

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
    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        """One step of alpha, with all that belongs to it. Changes nothing but the orders of the minibatches."""

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

    def rate(self, state: SolverState, base: float, decay: float | None = None) -> float:
        """The step size of this step."""
        return base / float(state.step + 1) ** (self.decay if decay is None else decay)

    def moved(
        self, state: SolverState, to_w: Tree, to_v: Tree, to_alphas: Tree, calls: OracleCalls, memory: Any = None
    ) -> SolverState:
        """The state after a step against (D_w, D_v, D_alpha)."""
        lr, outer_lr = self.rate(state, self.lr), self.rate(state, self.outer_lr)
        w, v = tree.add(state.weights, to_w, -lr), tree.add(state.v, to_v, -lr)
        alphas = tree.add(state.alphas, to_alphas, -outer_lr)
        return SolverState(w, alphas, v, state.step + 1, state.calls + calls, memory)

    def products(self, problem: BilevelProblem, state: SolverState, batch: Any) -> tuple[Tree, Tree, Tree]:
        """(d L_train / d w, H v, M v) on one minibatch, from one graph if it is small."""
        point = (state.weights, state.alphas, batch)
        small = self.hvp == "reverse" or (self.hvp == "auto" and measured_bytes(problem, *point) <= SMALL_GRAPH)
        if small and problem.shards is None:
            graph = GradientGraph(problem.inner_loss, *point)
            problem.counter.add(1, 1, 1)
            return graph.grad, *HVP(problem, *point, self.hvp, graph).both(state.v)
        return problem.inner_gradient(*point)[1], *HVP(problem, *point, self.hvp).both(state.v)

    def directions(
        self, problem: BilevelProblem, state: SolverState, inner: Any, outer: Any
    ) -> tuple[Tree, Tree, Tree]:
        """(D_w, D_v, D_alpha) on one pair of minibatches."""
        grad, curved, mixed = self.products(problem, state, inner)
        _, by_w, by_alphas = problem.outer_gradients(state.weights, state.alphas, outer)
        return grad, tree.add(curved, by_w), tree.add(mixed, by_alphas)
