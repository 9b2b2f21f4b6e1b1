"""Linear solvers against dense ones, and implicit differentiation against the closed form at the minimum."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import (
    SGD,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    Implicit,
    InnerState,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.curvature import Matvec
from sgenas.bilevel.solvers import conjugate_gradient, neumann
from sgenas.bilevel.toy import Quadratic, WeightDecay
from sgenas.errors import DivergenceError, InvalidValueError

OPTIMIZERS = [SGD(0.2), SGD(0.2, momentum=0.9, weight_decay=0.1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def dense(matvec: Matvec, b: Tensor) -> Tensor:
    """The solution by elimination: the matrix is taken column by column."""
    columns = [matvec(unit) for unit in torch.eye(len(b), dtype=b.dtype)]
    return torch.linalg.solve(torch.stack(columns, dim=1), b)


def matrix(values: list[float]) -> Tensor:
    basis = torch.linalg.qr(draw(len(values), len(values)))[0]
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


class TestSolvers:
    values = (0.5, 0.8, 1.0, 1.7, 2.0, 3.0)

    def test_neumann_is_the_sum_and_leaves_the_residual_that_it_says(self) -> None:
        a, b = matrix(list(self.values)), draw(6, seed=1)
        step = torch.eye(6, dtype=torch.float64) - 0.3 * a
        for products in (0, 1, 5):
            x = neumann(lambda v: a @ v, b, products=products, scale=0.3)
            terms = [torch.linalg.matrix_power(step, power) @ b for power in range(products + 1)]
            torch.testing.assert_close(x, 0.3 * torch.stack(terms).sum(0))
            residual = torch.linalg.matrix_power(step, products + 1) @ b
            torch.testing.assert_close(b - a @ x, residual, rtol=1e-10, atol=1e-12)

    def test_conjugate_gradients_are_exact_after_as_many_products_as_eigenvalues(self) -> None:
        for values, enough in ((list(self.values), 6), ([1.0, 1.0, 1.0, 4.0, 4.0, 9.0], 3)):
            a, b = matrix(values), draw(6, seed=1)
            exact = torch.linalg.solve(a, b)
            last = conjugate_gradient(lambda v, a=a: a @ v, b, products=enough, tolerance=0.0)
            before = conjugate_gradient(lambda v, a=a: a @ v, b, products=enough - 1, tolerance=0.0)
            assert relative(last, exact) < 1e-10
            assert relative(before, exact) > 1e-4

    def test_conjugate_gradients_stop_at_the_tolerance(self) -> None:
        a, b = matrix(list(self.values)), draw(6, seed=1)
        residuals, taken = [], []
        for tolerance in (0.5, 0.1, 1e-3):
            count = 0

            def matvec(v: Tensor) -> Tensor:
                nonlocal count
                count += 1
                return a @ v

            x = conjugate_gradient(matvec, b, products=6, tolerance=tolerance)
            residuals.append(relative(a @ x, b))
            assert residuals[-1] <= tolerance
            taken.append(count)
        assert taken == sorted(set(taken))
        assert taken[-1] < 6 or residuals[-1] < 1e-10

    def test_conjugate_gradients_stop_where_there_is_no_minimum(self) -> None:
        b = draw(3, seed=1)
        assert (conjugate_gradient(lambda v: -v, b, products=3, tolerance=0.0) == 0).all()
        assert (conjugate_gradient(lambda v: 0 * v, b, products=3, tolerance=0.0) == 0).all()
        assert (conjugate_gradient(lambda v: v, 0 * b, products=3, tolerance=0.0) == 0).all()
        a = matrix([2.0, 1.0, -1.0])
        x = conjugate_gradient(lambda v: a @ v, b, products=3, tolerance=0.0)
        assert torch.isfinite(x).all()


def quadratic(
    optimizer: SGD, steps: int
) -> tuple[Quadratic, BilevelProblem, InnerState, list[Tensor], Tensor]:
    toy = Quadratic.random(generator())
    problem = toy.problem(optimizer)
    return toy, problem, problem.init(toy.weights), [draw(7, seed=7)] * steps, draw(7, seed=8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "estimator",
    [ConjugateGradient(7, 0.0), Neumann(70, 0.6), Implicit(dense, 7)],
    ids=lambda e: type(e).__name__,
)
def test_at_the_minimum_it_is_the_implicit_gradient(estimator: Estimator, optimizer: SGD) -> None:
    toy, problem, state, inner, outer = quadratic(optimizer, 600)
    direct, indirect = toy.converged(optimizer, inner[0], outer)
    result = estimator(problem, state, toy.alphas, inner, outer)
    for name in toy.alphas:
        torch.testing.assert_close(result.direct[name], direct[name], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.indirect[name], indirect[name], rtol=1e-9, atol=1e-9)
    assert result.diagnostics["residual"] < 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_anywhere_it_is_the_formula(optimizer: SGD, steps: int) -> None:
    """B^T (A + (wd + damping) I)^-1 v at Y^N of the quadratic."""
    toy, problem, state, inner, outer = quadratic(optimizer, steps)
    result = ConjugateGradient(7, 0.0, damping=0.3)(problem, state, toy.alphas, inner, outer)
    end, a = trees.flatten(result.state.weights), trees.flatten(toy.alphas)
    v = end - outer + toy.cross.T @ a
    shift = (optimizer.weight_decay + 0.3) * torch.eye(7, dtype=torch.float64)
    expected = toy.coupling.T @ torch.linalg.solve(toy.curvature + shift, v)
    torch.testing.assert_close(trees.flatten(result.indirect), expected, rtol=1e-9, atol=1e-9)


def test_a_nonlinear_problem_with_a_scalar_and_an_alpha_that_no_loss_uses() -> None:
    toy = WeightDecay.random(generator())
    inner, outer = draw(4, seed=1), draw(4, seed=2)
    problem = toy.problem(SGD(0.3))
    alphas = {**toy.alphas, "unused": torch.tensor(1.0, dtype=torch.float64)}
    _, exact = toy.converged(inner, outer)
    result = ConjugateGradient(4, 0.0)(problem, problem.init(toy.weights), alphas, [inner] * 400, outer)
    torch.testing.assert_close(result.indirect["log_decay"], exact["log_decay"], rtol=1e-9, atol=1e-9)
    assert result.grad["unused"] == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_neumann_converges_at_the_rate_of_the_spectral_radius(optimizer: SGD) -> None:
    """r = max |1 - lr (lambda + wd)| = 1 - 0.2 (0.5 + wd): the eigenvalues lie in [0.5, 2.5]."""
    toy, problem, state, inner, outer = quadratic(optimizer, 600)
    exact = trees.flatten(toy.converged(optimizer, inner[0], outer)[1])
    state, radius = problem.run(state, toy.alphas, inner).end, 0.9 - 0.2 * optimizer.weight_decay
    errors = [
        relative(trees.flatten(Neumann(k)(problem, state, toy.alphas, inner[:1], outer).indirect), exact)
        for k in (20, 30, 40)
    ]
    assert errors[1] / errors[0] == pytest.approx(radius**10, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(radius**10, rel=0.05)


def test_conjugate_gradients_need_fewer_products() -> None:
    toy, problem, state, inner, outer = quadratic(SGD(0.2), 600)
    exact = trees.flatten(toy.converged(SGD(0.2), inner[0], outer)[1])
    state = problem.run(state, toy.alphas, inner).end
    bound = (5**0.5 - 1) / (5**0.5 + 1)
    for k in (2, 4, 6):
        series, gradients = (
            relative(trees.flatten(each(problem, state, toy.alphas, inner[:1], outer).indirect), exact)
            for each in (Neumann(k), ConjugateGradient(k, 0.0))
        )
        assert gradients < series
        # 2 r^k bounds the error of x in the norm of A, whose condition is 5; the rest is the change of norms
        assert gradients < 30 * bound**k


def test_neumann_is_unrolled_at_a_standstill() -> None:
    """On a quadratic with plain steps the second derivatives never change: the two are the same."""
    toy, problem, state, inner, outer = quadratic(SGD(0.2), 6)
    series = Neumann(5)(problem, state, toy.alphas, inner, outer)
    steps = Unrolled()(problem, state, toy.alphas, inner, outer)
    for name in toy.alphas:
        torch.testing.assert_close(series.grad[name], steps.grad[name], rtol=1e-10, atol=1e-10)


def test_the_residual_is_that_of_the_solution() -> None:
    toy, problem, state, inner, outer = quadratic(SGD(0.2, weight_decay=0.1), 3)
    seen: list[Tensor] = []

    def solver(matvec: Matvec, b: Tensor) -> Tensor:
        x = neumann(matvec, b, products=3, scale=0.1)
        seen.append((matvec(x) - b).norm() / b.norm())
        return x

    result = Implicit(solver, 4, damping=0.2)(problem, state, toy.alphas, inner, outer)
    torch.testing.assert_close(result.diagnostics["residual"], seen[0])
    assert 0.01 < seen[0] < 1
    # a product more than neumann's own
    assert result.cost.forward == 3 + 1 + 2 * 5


def test_what_an_early_stop_saves_is_not_counted() -> None:
    toy, problem, state, inner, outer = quadratic(SGD(0.2), 3)
    estimator = ConjugateGradient(7, 0.3)
    assert estimator(problem, state, toy.alphas, inner, outer).cost.forward < estimator.cost(3).forward


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neumann(-1), "Neumann.products must be >= 0, got -1"),
        (lambda: Neumann(scale=0.0), "Neumann.scale must be > 0 and finite or None, got 0.0"),
        (lambda: Neumann(damping=-1.0), "Neumann.damping must be >= 0 and finite, got -1.0"),
        (lambda: ConjugateGradient(0), "ConjugateGradient.products must be >= 1, got 0"),
        (
            lambda: ConjugateGradient(tolerance=1.0),
            r"ConjugateGradient.tolerance must be in \[0, 1\), got 1.0",
        ),
        (lambda: ConjugateGradient(damping=float("nan")), "ConjugateGradient.damping must be >= 0"),
        (lambda: Implicit(dense, -1), "Implicit.products must be >= 0, got -1"),
        (lambda: Implicit(dense, 1, float("inf")), "Implicit.damping must be >= 0 and finite, got inf"),
    ],
)
def test_bad_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make()


def test_bad_solutions() -> None:
    toy, problem, state, inner, outer = quadratic(SGD(0.2), 2)
    with pytest.raises(InvalidValueError, match=r"Implicit.solver must return shape \(7,\), got \(3,\)"):
        Implicit(lambda matvec, b: b[:3], 0)(problem, state, toy.alphas, inner, outer)
    with pytest.raises(
        DivergenceError, match="left a residual of (inf|nan) after 100 products: take a smaller"
    ):
        Neumann(100, scale=1e4)(problem, state, toy.alphas, inner, outer)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_conjugate_gradients_end_where_the_residual_is_small_beside_the_right_hand_side(size: float) -> None:
    matrix = torch.linspace(1, 5, 12, dtype=torch.float64).diag()
    b = size * torch.randn(12, generator=generator(), dtype=torch.float64)
    images = []

    def matvec(vector: Tensor) -> Tensor:
        images.append(vector)
        return matrix @ vector

    x = conjugate_gradient(matvec, b, products=12, tolerance=0.01)
    taken = len(images)
    assert 2 < taken < 12
    assert (b - matrix @ x).norm() <= 0.01 * b.norm()
    before = conjugate_gradient(matvec, b, products=taken - 1, tolerance=0.01)
    assert (b - matrix @ before).norm() > 0.01 * b.norm()


def test_conjugate_gradients_need_no_product_for_nothing() -> None:
    x = conjugate_gradient(lambda vector: pytest.fail("a product"), torch.zeros(3), products=3, tolerance=0.0)
    assert torch.equal(x, torch.zeros(3))


def test_conjugate_gradients_end_at_a_direction_without_curvature() -> None:
    images = []

    def matvec(vector: Tensor) -> Tensor:
        images.append(vector)
        return -vector

    x = conjugate_gradient(matvec, torch.ones(3), products=9, tolerance=0.0)
    assert torch.equal(x, torch.zeros(3))
    assert len(images) == 1


def test_no_product_is_the_first_term_of_the_series() -> None:
    assert Neumann(0).products == 0
    b = torch.tensor([1.0, 2.0])
    assert torch.equal(neumann(lambda vector: vector, b, products=0, scale=0.5), 0.5 * b)


def test_closed_forms_refuse_steps_that_they_do_not_hold_for() -> None:
    batch = torch.zeros(4, dtype=torch.float64)
    clipped = SGD(0.1, grad_clip=1.0)
    quadratic, decay = Quadratic.random(generator()), WeightDecay.random(generator())
    state = InnerState({"w": batch}, {})
    for closed in (
        lambda: quadratic.converged(clipped, batch, batch),
        lambda: quadratic.exact(clipped, state, [batch], batch),
        lambda: decay.exact(clipped, state, 1, batch, batch),
    ):
        with pytest.raises(InvalidValueError, match="closed forms need SGD.grad_clip None, got 1.0"):
            closed()
    for optimizer in (SGD(0.1, momentum=0.9), SGD(0.1, weight_decay=0.1)):
        with pytest.raises(InvalidValueError, match=r"WeightDecay.exact needs plain SGD\(lr\), got SGD"):
            decay.exact(optimizer, state, 1, batch, batch)
