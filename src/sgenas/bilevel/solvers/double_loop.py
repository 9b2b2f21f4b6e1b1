"""Algorithms with several steps of the weights per step of alpha: AmIGO, StocBiO, and F2SA without a Hessian."""

from collections.abc import Callable
from dataclasses import dataclass

from sgenas import tree
from sgenas.bilevel.hvp import HVP
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.solvers.base import Minibatches, OracleCalls, Solver, SolverState
from sgenas.errors import require
from sgenas.tree import Tree


@dataclass(frozen=True)
class AmIGO(Solver):
    """Amortized implicit gradient optimization (Arbel and Mairal 2022, arXiv:2111.14580).

    ``inner_steps`` steps of SGD of w, then ``linear_steps`` of v from where the last step left it,
    v <- v - lr (H v + d L_val / d w), then one of alpha along M v + d L_val / d alpha. Every product is taken on
    a minibatch of its own.

    Args:
        inner_steps: Steps of w, >= 1.
        linear_steps: Steps of v, >= 1.
    """

    inner_steps: int = 10
    linear_steps: int = 10
    counts = ("inner_steps", "linear_steps")

    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        lr, weights, alphas = self.rate(state, self.lr), state.weights, state.alphas
        for _ in range(self.inner_steps):
            weights = tree.add(weights, problem.inner_gradient(weights, alphas, inner.next())[1], -lr)
        _, by_w, direct = problem.outer_gradients(weights, alphas, outer.next())

        def product(v: Tree) -> Tree:
            return HVP(problem, weights, alphas, inner.next(), self.hvp).weights(v)

        v = self._solve(product, by_w, state.v, lr)
        mixed = HVP(problem, weights, alphas, inner.next(), self.hvp).alphas(v)
        alphas = tree.add(alphas, tree.add(mixed, direct), -self.rate(state, self.outer_lr))
        calls = state.calls + OracleCalls(self.inner_steps, 1, self.linear_steps, 1)
        return SolverState(weights, alphas, v, state.step + 1, calls)

    def _solve(self, product: Callable[[Tree], Tree], by_w: Tree, v: Tree, lr: float) -> Tree:
        """An estimate of -H^-1 by_w."""
        for _ in range(self.linear_steps):
            v = tree.add(v, tree.add(product(v), by_w), -lr)
        return v


@dataclass(frozen=True)
class StocBiO(AmIGO):
    """Stochastic bilevel optimizer (Ji et al. 2021, arXiv:2010.07962).

    The step of AmIGO with v from a stochastic Neumann series of ``linear_steps`` products, from zero in each step:
    v = -lr sum_{k=0}^{K} prod_{i<=k} (I - lr H_i) d L_val / d w.
    """

    def _solve(self, product: Callable[[Tree], Tree], by_w: Tree, v: Tree, lr: float) -> Tree:
        term = total = tree.scale(by_w, -lr)
        for _ in range(self.linear_steps):
            term = tree.add(term, product(term), -lr)
            total = tree.add(total, term)
        return total


@dataclass(frozen=True)
class F2SA(Solver):
    r"""Fully first-order stochastic approximation (Kwon et al. 2023, arXiv:2301.10945): a penalty, no Hessian.

    With the penalty lambda_t = penalty (t + 1)^growth, y follows argmin L_train + L_val / lambda and w follows
    argmin L_train, ``inner_steps`` steps of SGD each; then alpha takes a step along

        d L_val(y) / d alpha + lambda (d L_train(y) / d alpha - d L_train(w) / d alpha),

    which differs from the hypergradient by O(1 / lambda). Its step falls as t^-(decay + growth). Both gradients of
    a difference are taken on one minibatch (the paper draws two), whose noise then does not grow with lambda.
    ``memory`` holds y.

    Args:
        penalty: lambda_0, > 0.
        growth: Exponent of lambda, >= 0.
        inner_steps: Steps of w and of y, >= 1.
    """

    decay: float = 4 / 7
    penalty: float = 1.0
    growth: float = 1 / 7
    inner_steps: int = 10
    counts = ("inner_steps",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.penalty < float("inf"), "F2SA.penalty", "positive", self.penalty)
        require(0 <= self.growth < float("inf"), "F2SA.growth", "at least 0", self.growth)

    def step(self, problem: BilevelProblem, state: SolverState, inner: Minibatches, outer: Minibatches) -> SolverState:
        lr, penalty = self.rate(state, self.lr), self.rate(state, self.penalty, -self.growth)
        w, alphas, y = state.weights, state.alphas, state.weights if state.memory is None else state.memory
        for _ in range(self.inner_steps):
            batch = inner.next()
            _, by_w, _ = problem.outer_gradients(y, alphas, outer.next())
            grad = tree.add(problem.inner_gradient(y, alphas, batch)[1], by_w, 1 / penalty)
            w = tree.add(w, problem.inner_gradient(w, alphas, batch)[1], -lr)
            y = tree.add(y, grad, -lr)
        batch = inner.next()
        high, low = (problem.inner_alpha_gradient(point, alphas, batch)[1] for point in (y, w))
        _, direct = problem.outer_alpha_gradient(y, alphas, outer.next())
        grad = tree.add(direct, tree.subtract(high, low), penalty)
        alphas = tree.add(alphas, grad, -self.rate(state, self.outer_lr, self.decay + self.growth))
        calls = state.calls + OracleCalls(2 * self.inner_steps + 2, self.inner_steps + 1)
        return SolverState(w, alphas, state.v, state.step + 1, calls, y)
