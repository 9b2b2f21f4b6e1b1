"""Implicit differentiation: Eq. 4 of the paper at the end of the trajectory, by a linear solver."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel.curvature import hessian_slope, weight_slope
from sgenas.bilevel.divergence import require_finite
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.bilevel.solvers import Solver, conjugate_gradient, neumann
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.trees import Tree


@dataclass(frozen=True)
class Implicit:
    r"""The derivative of L_val(w*(alpha), alpha) where d L_train / d w + wd w = 0 defines w*, taken at Y^N.

        grad = d L_val(Y^N) / d alpha - M x,   A x = d L_val(Y^N) / d w,   A = H + (wd + damping) I

    H = d^2 L_train / d w^2 and M = d^2 L_train / (d alpha d w) at Y^N on the batch of the last inner step, wd
    the optimiser's weight decay. (Eq. 4 with the inverse taken of the vector that it is applied to.)

    solver: (matvec, b) -> x, see `solvers`; vectors hold all weights, joined. products: how many products
    with A it takes at most. damping: added to the eigenvalues of A, against those that are small or negative;
    shortens x.

    Right only as far as Y^N is a minimum: learning rate, momentum, clipping and the start do not enter. Where
    H is not positive definite there is no w* to differentiate, and what comes out is the solver's.
    `diagnostics`: "residual" holds ||A x - b|| / ||b||, 0 for an exact solution.

    Cost: N + 1 passes, and one in forward mode, which counts twice, for each product and one more. The
    products taken count, which may be fewer than `products`. Memory: a few sets of weights. `generator` is
    not used. Raises InvalidValueError for products < 0, damping < 0 and an x of another shape than b,
    DivergenceError for a loss or a solution that is not finite.
    """

    solver: Solver
    products: int
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.products < 0:
            raise InvalidValueError(f"Implicit.products must be >= 0, got {self.products}")
        _check_damping(self.damping, "Implicit")

    def cost(self, inner_steps: int) -> Cost:
        """N + 1 + 2 (products + 1) passes, N steps: an upper bound where the solver may stop before that."""
        return _cost(inner_steps, self.products)

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,  # noqa: ARG002
        memory: Tree | None = None,  # noqa: ARG002
    ) -> HypergradientResult:
        trajectory = problem.run(state, alphas, inner_batches)
        end, batch = trajectory.end, inner_batches[-1]
        outer_loss, v, direct = problem.outer_gradients(end.weights, alphas, outer_batch)
        require_finite(trajectory.losses, outer_loss)
        shift = problem.inner_optimizer.weight_decay + self.damping
        taken = 0

        def matvec(vector: Tensor) -> Tensor:
            nonlocal taken
            taken += 1
            along = trees.unflatten(vector, v)
            curved = hessian_slope(problem, end.weights, alphas, batch, along)
            return trees.flatten(curved) + shift * vector

        right = trees.flatten(v)
        solved = self.solver(matvec, right)
        if solved.shape != right.shape:
            raise InvalidValueError(
                f"Implicit.solver must return shape {tuple(right.shape)}, got {tuple(solved.shape)}"
            )
        x = trees.unflatten(solved, v)
        curved, mixed = weight_slope(problem, end.weights, alphas, batch, x)
        residual = trees.flatten(curved) + shift * solved - right
        tiny = torch.finfo(right.dtype).tiny
        diagnostics = {"residual": residual.norm() / right.norm().clamp_min(tiny)}
        if not bool(torch.isfinite(diagnostics["residual"])):
            raise DivergenceError(
                f"Implicit.solver left a residual of {diagnostics['residual'].item()} after {taken} products:"
                " take a smaller scale or more damping"
            )
        cost = _cost(len(inner_batches), taken)
        grad = trees.subtract(direct, mixed)
        return HypergradientResult(grad, direct, end, trajectory.losses, outer_loss, cost, diagnostics)


class _BySolver(ABC):
    """What the estimators share that are `Implicit` with a solver of their own."""

    products: int

    @abstractmethod
    def _implicit(self, problem: BilevelProblem) -> Implicit:
        """`Implicit` as it stands for this problem."""

    def cost(self, inner_steps: int) -> Cost:
        """N + 2 k + 3 passes, N steps; an upper bound where the solver may stop before k products."""
        return _cost(inner_steps, self.products)

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,  # noqa: ARG002
        memory: Tree | None = None,  # noqa: ARG002
    ) -> HypergradientResult:
        return self._implicit(problem)(problem, state, alphas, inner_batches, outer_batch)


@dataclass(frozen=True)
class Neumann(_BySolver):
    r"""`Implicit` by the Neumann series: x = scale sum_{i=0}^{k} (I - scale A)^i b.

    This is `Unrolled` by k + 1 plain steps of size `scale` at a standstill: every step with the same weights,
    those of Y^N. products: k. scale: step of the series, below 2 / the largest eigenvalue of A (None: the
    inner optimiser's lr, with which a training that does not diverge keeps that). damping: see `Implicit`.

    Error: falls as r^(k+1), r = max |1 - scale lambda| over the eigenvalues of A. Cost: N + 2 k + 3 passes.
    Raises what `Implicit` does, and InvalidValueError for scale <= 0.
    """

    products: int = 10
    scale: float | None = None
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.products < 0:
            raise InvalidValueError(f"Neumann.products must be >= 0, got {self.products}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise InvalidValueError(f"Neumann.scale must be > 0 and finite or None, got {self.scale}")
        _check_damping(self.damping, "Neumann")

    def _implicit(self, problem: BilevelProblem) -> Implicit:
        scale = problem.inner_optimizer.lr if self.scale is None else self.scale
        return Implicit(partial(neumann, products=self.products, scale=scale), self.products, self.damping)


@dataclass(frozen=True)
class ConjugateGradient(_BySolver):
    r"""`Implicit` by conjugate gradients, see `solvers.conjugate_gradient`.

    products: k, at most. tolerance: it stops before where the residual is that part of b. damping: see
    `Implicit`; without it, it stops at the first direction of negative curvature, possibly with x = 0.

    Error: none after as many products as A has different eigenvalues; before that it falls at least as
    ((sqrt(c) - 1) / (sqrt(c) + 1))^k, c the largest eigenvalue of A by the smallest. Cost: at most
    N + 2 k + 3 passes. Raises what `Implicit` does, and InvalidValueError for k < 1 or a tolerance < 0.
    """

    products: int = 10
    tolerance: float = 1e-6
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.products < 1:
            raise InvalidValueError(f"ConjugateGradient.products must be >= 1, got {self.products}")
        if not 0 <= self.tolerance < 1:
            raise InvalidValueError(f"ConjugateGradient.tolerance must be in [0, 1), got {self.tolerance}")
        _check_damping(self.damping, "ConjugateGradient")

    def _implicit(self, problem: BilevelProblem) -> Implicit:  # noqa: ARG002
        solver = partial(conjugate_gradient, products=self.products, tolerance=self.tolerance)
        return Implicit(solver, self.products, self.damping)


def _cost(inner_steps: int, products: int) -> Cost:
    passes = inner_steps + 1 + 2 * (products + 1)
    return Cost(passes, passes, inner_steps)


def _check_damping(damping: float, name: str) -> None:
    if not 0 <= damping < float("inf"):
        raise InvalidValueError(f"{name}.damping must be >= 0 and finite, got {damping}")
