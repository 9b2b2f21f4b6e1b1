"""Implicit differentiation: Eq. 4 of the paper at the end of the trajectory, by a linear solver."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.estimators.base import Context, Estimator
from sgenas.bilevel.hvp import HVP, ROUTES
from sgenas.bilevel.linear_solvers import Solver, conjugate_gradient, neumann
from sgenas.bilevel.problem import BilevelProblem, Cost
from sgenas.errors import DivergenceError, require, require_choice
from sgenas.fields import option
from sgenas.optim import l2_coefficient
from sgenas.tree import Tree


class _Implicit(Estimator):
    """What the estimators below share; ``least`` is the smallest ``max_hvps``."""

    max_hvps: int
    damping: float
    hvp: str
    least = 0
    differentiates_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name, damping = type(self).__name__, self.damping
        require(self.max_hvps >= self.least, f"{name}.max_hvps", f">= {self.least}", self.max_hvps)
        require(0 <= damping < math.inf, f"{name}.damping", ">= 0 and finite", damping)
        require_choice(f"{name}.hvp", self.hvp, ROUTES)

    @abstractmethod
    def linear_solver(self, problem: BilevelProblem) -> Solver: ...

    def indirect_cost(self, inner_steps: int) -> Cost:
        passes = 2 * (self.max_hvps + 1) + (self.hvp in ("auto", "reverse"))
        return Cost(passes, passes)

    def indirect_gradient(self, context: Context) -> Tree:
        """-M x with A x = v; writes the residual into the diagnostics."""
        problem, alphas, v, batch = context.problem, context.alphas, context.v, context.inner_batches[-1]
        weights, solver = context.trajectory.end.weights, self.linear_solver(context.problem)
        shift = l2_coefficient(problem.inner_optimizer, weights) + self.damping
        hvp = HVP(problem, weights, alphas, batch, self.hvp)

        def matvec(vector: Tensor) -> Tensor:
            return tree.flatten(hvp.weights(tree.unflatten(vector, v))) + shift * vector

        right = tree.flatten(v)
        solved = solver(matvec, right)
        same = solved.shape == right.shape
        require(same, "Implicit.solver", f"a function that returns shape {tuple(right.shape)}", tuple(solved.shape))
        curved, mixed = hvp.both(tree.unflatten(solved, v))
        residual = (tree.flatten(curved) + shift * solved - right).norm()
        residual = residual / right.norm().clamp_min(torch.finfo(right.dtype).tiny)
        context.diagnostics["residual"] = residual
        context.checks.add(residual, lambda: _refuse_residual(residual.item()))
        return tree.scale(mixed, -1.0)


def _refuse_residual(residual: float) -> None:
    if not math.isfinite(residual):
        raise DivergenceError(
            f"the linear solver left a relative residual of {residual}: use a smaller scale or more damping"
        )


@dataclass(frozen=True)
class Implicit(_Implicit):
    r"""The derivative of L_val(w*(alpha), alpha), taken at Y^N, where d L_train / d w + c w = 0 defines w*.

        indirect = - M x,   A x = d L_val(Y^N) / d w,   A = H + (c + damping) I

    H = d^2 L_train / d w^2 and M = d^2 L_train / (d alpha d w) at Y^N on the batch of the last inner step, c
    the optimizer's coefficient of L2 regularization. (Eq. 4, with the inverse applied to the vector.)

    Correct only as far as Y^N is a minimum: learning rate, momentum, clipping and the start do not matter.
    If H is not positive definite there is no w* to differentiate, and the result is whatever the solver
    returns. ``diagnostics["residual"]`` is ||A x - b|| / ||b||, 0 for an exact solution. Cost: N + 1 passes,
    two for each of the products and one more, and one by double backward. Memory: a few sets of weights, and by
    double backward the graph of a gradient.

    Args:
        solver: (matvec, b) -> x, see ``linear_solvers``; vectors hold all weights, joined.
        max_hvps: Largest number of products with A that the solver takes, >= 0.
        damping: Added to the eigenvalues of A, >= 0, against small or negative ones; shortens x.
        hvp: How products with H and M are computed: ``reverse`` (double backward), ``forward`` (forward-mode AD
            over the gradient), ``auto`` (reverse if passes are small; where PyTorch has no rule, the other one)
            or ``finite-difference`` (of gradients, for smooth losses).

    Raises:
        InvalidValueError: If a setting is out of range, x has another shape than b, or the optimizer has no
            condition of this form, or the inner loss has no second derivative.
        DivergenceError: If a loss or the solution is NaN or infinite.
    """

    solver: Solver
    max_hvps: int
    damping: float = 0.0
    hvp: str = option("auto", choices=ROUTES)

    def linear_solver(self, problem: BilevelProblem) -> Solver:
        return self.solver


@dataclass(frozen=True)
class Neumann(_Implicit):
    r"""``Implicit`` by the Neumann series: x = scale sum_{i=0}^{k} (I - scale A)^i b.

    This equals ``Unrolled`` through k + 1 plain steps of size ``scale`` that all start at Y^N. Error: falls
    as r^(k+1), r = max |1 - scale lambda| over the eigenvalues of A. Cost: N + 2 k + 3 passes, one
    more by double backward.

    Args:
        max_hvps: Number of Hessian-vector products k, >= 0.
        scale: Step of the series, > 0 and below 2 / the largest eigenvalue of A. None: the optimizer's lr.
        damping: Added to the eigenvalues of A, >= 0, against small or negative ones.
        hvp: How products with H and M are computed, as in ``Implicit``.
    """

    max_hvps: int = 10
    scale: float | None = None
    damping: float = 0.0
    hvp: str = option("auto", choices=ROUTES)

    def __post_init__(self) -> None:
        super().__post_init__()
        good = self.scale is None or 0 < self.scale < math.inf
        require(good, "Neumann.scale", "> 0 and finite or None", self.scale)

    def linear_solver(self, problem: BilevelProblem) -> Solver:
        scale = self.scale or float(getattr(problem.inner_optimizer, "lr", 0.0))
        require(scale > 0, "Neumann.scale", "a number (the optimizer has no lr)", self.scale)
        return partial(neumann, max_hvps=self.max_hvps, scale=scale)


@dataclass(frozen=True)
class ConjugateGradient(_Implicit):
    r"""``Implicit`` by conjugate gradients, see ``linear_solvers.conjugate_gradient``.

    Error: none after as many products as A has different eigenvalues. Before that it falls at least as
    ((sqrt(c) - 1) / (sqrt(c) + 1))^k, c the largest eigenvalue of A divided by the smallest. Cost: at most
    N + 2 k + 3 passes, one more by double backward.

    Args:
        max_hvps: Largest number of Hessian-vector products k, >= 1.
        tolerance: Stops when the residual is this part of b, in [0, 1).
        damping: Added to the eigenvalues of A, >= 0. Without it, the solver stops at the first direction of
            negative curvature, possibly with x = 0.
        hvp: How products with H and M are computed, as in ``Implicit``.
    """

    max_hvps: int = 10
    tolerance: float = 1e-6
    damping: float = 0.0
    hvp: str = option("auto", choices=ROUTES)
    least = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.tolerance < 1, "ConjugateGradient.tolerance", "in [0, 1)", self.tolerance)

    def linear_solver(self, problem: BilevelProblem) -> Solver:
        return partial(conjugate_gradient, max_hvps=self.max_hvps, tolerance=self.tolerance)
