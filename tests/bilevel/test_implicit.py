"""Linear solvers against dense ones, Hessian-vector products, and implicit differentiation at the minimum."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bilevel_cases import QuadraticCase, close, draw, generator
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import BilevelProblem, ConjugateGradient, Estimator, Implicit, Neumann, Unrolled
from sgenas.bilevel.hvp import HVP, Matvec, hessian_operator, largest_eigenvalue
from sgenas.bilevel.linear_solvers import conjugate_gradient, neumann
from sgenas.bilevel.test_problems import WeightDecay
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.optim import SGD
from sgenas.tree import Tree

OPTIMIZERS = [SGD(0.2), SGD(0.2, momentum=0.9, weight_decay=0.1)]
both = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["plain", "momentum"])
VALUES = [0.5, 0.8, 1.0, 1.7, 2.0, 3.0]


def dense(matvec: Matvec, b: Tensor) -> Tensor:
    """The solution by elimination; the matrix is taken column by column."""
    columns = [matvec(unit) for unit in torch.eye(len(b), dtype=b.dtype)]
    return torch.linalg.solve(torch.stack(columns, dim=1), b)


def matrix(values: list[float]) -> Tensor:
    basis = torch.linalg.qr(draw(len(values), len(values)))[0]
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


class Counted:
    """v -> A v, with the number of products."""

    def __init__(self, a: Tensor) -> None:
        self.a, self.products = a, 0

    def __call__(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.a @ v


def test_neumann_is_the_sum_with_the_known_residual() -> None:
    a, b = matrix(VALUES), draw(6, seed=1)
    step = torch.eye(6, dtype=torch.float64) - 0.3 * a
    for count in (0, 1, 5):
        x = neumann(lambda v: a @ v, b, max_hvps=count, scale=0.3)
        terms = [torch.linalg.matrix_power(step, power) @ b for power in range(count + 1)]
        torch.testing.assert_close(x, 0.3 * torch.stack(terms).sum(0))
        residual = torch.linalg.matrix_power(step, count + 1) @ b
        torch.testing.assert_close(b - a @ x, residual, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("values", "enough"), [(VALUES, 6), ([1.0, 1.0, 1.0, 4.0, 4.0, 9.0], 3)])
def test_conjugate_gradients_are_exact_after_as_many_products_as_eigenvalues(values: list[float], enough: int) -> None:
    a, b = matrix(values), draw(6, seed=1)
    exact = torch.linalg.solve(a, b)
    last, before = (conjugate_gradient(Counted(a), b, max_hvps=count, tolerance=0.0) for count in (enough, enough - 1))
    assert relative(last, exact) < 1e-10
    assert relative(before, exact) > 1e-4


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_conjugate_gradients_stop_at_the_tolerance_and_not_before(size: float) -> None:
    a, b = matrix([1 + 4 * i / 11 for i in range(12)]), size * draw(12, seed=1)
    taken = []
    for tolerance in (0.5, 0.01, 1e-4):
        counted = Counted(a)
        x = conjugate_gradient(counted, b, max_hvps=12, tolerance=tolerance)
        assert relative(a @ x, b) <= tolerance
        before = conjugate_gradient(counted, b, max_hvps=counted.products - 1, tolerance=tolerance)
        taken.append((counted.products + 1) // 2)
        assert relative(a @ before, b) > tolerance
    assert taken == sorted(set(taken))
    assert taken[-1] < 12


def test_conjugate_gradients_stop_where_there_is_no_minimum() -> None:
    b = draw(3, seed=1)
    eye = torch.eye(3, dtype=torch.float64)
    for a, right, products in ((-eye, b, 1), (0 * eye, b, 1), (eye, 0 * b, 1)):
        counted = Counted(a)
        assert (conjugate_gradient(counted, right, max_hvps=9, tolerance=0.0) == 0).all()
        assert counted.products == products
    x = conjugate_gradient(Counted(matrix([2.0, 1.0, -1.0])), b, max_hvps=3, tolerance=0.0)
    assert torch.isfinite(x).all()


@both
@pytest.mark.parametrize(
    "estimator",
    [ConjugateGradient(7, 0.0), Neumann(70, 0.6), Implicit(dense, 7)],
    ids=lambda e: type(e).__name__,
)
def test_at_the_minimum_it_is_the_implicit_gradient(estimator: Estimator, optimizer: SGD) -> None:
    case = QuadraticCase(optimizer, 1)
    inner = [draw(7, seed=7)] * 600
    direct, indirect = case.toy.converged(optimizer, inner[0], case.outer)
    result = case.estimate(estimator, inner=inner)
    close(result.direct, direct, 1e-9)
    close(result.indirect, indirect, 1e-9)
    assert result.diagnostics["residual"] < 1e-9


@both
@pytest.mark.parametrize("steps", [1, 5])
def test_anywhere_it_is_the_formula(optimizer: SGD, steps: int) -> None:
    """B^T (A + (wd + damping) I)^-1 v at Y^N of the quadratic."""
    case = QuadraticCase(optimizer, steps)
    result = case.estimate(ConjugateGradient(7, 0.0, damping=0.3))
    v = tree.flatten(result.state.weights) - case.outer + case.toy.cross.T @ tree.flatten(case.alphas)
    shift = (optimizer.weight_decay + 0.3) * torch.eye(7, dtype=torch.float64)
    expected = case.toy.coupling.T @ torch.linalg.solve(case.toy.curvature + shift, v)
    torch.testing.assert_close(tree.flatten(result.indirect), expected, rtol=1e-9, atol=1e-9)


def test_a_nonlinear_problem_reaches_its_converged_form() -> None:
    toy, inner, outer = WeightDecay.random(generator()), draw(4, seed=1), draw(4, seed=2)
    problem = toy.problem(SGD(0.3))
    _, exact = toy.converged(inner, outer)
    result = ConjugateGradient(4, 0.0)(problem, problem.init(toy.weights), toy.alphas, [inner] * 400, outer)
    close(result.indirect, exact, 1e-9)


@both
def test_neumann_converges_at_the_rate_of_the_spectral_radius(optimizer: SGD) -> None:
    """r = max |1 - lr (lambda + wd)| = 1 - 0.2 (0.5 + wd): the eigenvalues lie in [0.5, 2.5]."""
    case = QuadraticCase(optimizer, 1)
    inner = [draw(7, seed=7)] * 600
    exact = tree.flatten(case.toy.converged(optimizer, inner[0], case.outer)[1])
    end, radius = case.problem.run(case.state, case.alphas, inner).end, 0.9 - 0.2 * optimizer.weight_decay
    errors = [
        relative(tree.flatten(case.estimate(Neumann(k), state=end, inner=inner[:1]).indirect), exact)
        for k in (20, 30, 40)
    ]
    assert errors[1] / errors[0] == pytest.approx(radius**10, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(radius**10, rel=0.05)
    bound = (5**0.5 - 1) / (5**0.5 + 1)
    for k in (2, 4, 6):
        series, gradients = (
            relative(tree.flatten(case.estimate(each, state=end, inner=inner[:1]).indirect), exact)
            for each in (Neumann(k), ConjugateGradient(k, 0.0))
        )
        # 2 r^k bounds the error of x in the norm of A, whose condition is 5; the rest is the change of norms
        assert gradients < min(series, 30 * bound**k)


def test_neumann_is_unrolled_with_constant_second_derivatives() -> None:
    """On a quadratic with plain steps they never change."""
    case = QuadraticCase(SGD(0.2), 6)
    close(case.estimate(Neumann(5)).grad, case.estimate(Unrolled()).grad)


def test_the_residual_is_that_of_the_solution() -> None:
    case, seen = QuadraticCase(SGD(0.2, weight_decay=0.1), 3), []

    def solver(matvec: Matvec, b: Tensor) -> Tensor:
        x = neumann(matvec, b, max_hvps=3, scale=0.1)
        seen.append((matvec(x) - b).norm() / b.norm())
        return x

    result = case.estimate(Implicit(solver, 4, damping=0.2))
    torch.testing.assert_close(result.diagnostics["residual"], seen[0])
    assert 0.01 < seen[0] < 1
    # a product more than neumann's own, and the graph
    assert result.cost.forward == 3 + 1 + 2 * 5 + 1


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Neumann(-1), "Neumann.max_hvps"),
        (lambda: Neumann(scale=0.0), "Neumann.scale"),
        (lambda: Neumann(damping=-1.0), "Neumann.damping"),
        (lambda: ConjugateGradient(0), "ConjugateGradient.max_hvps"),
        (lambda: ConjugateGradient(tolerance=1.0), "ConjugateGradient.tolerance"),
        (lambda: ConjugateGradient(damping=float("nan")), "ConjugateGradient.damping"),
        (lambda: Implicit(dense, -1), "Implicit.max_hvps"),
        (lambda: Implicit(dense, 1, float("inf")), "Implicit.damping"),
        (lambda: QuadraticCase(SGD(0.2), 1).estimate(Implicit(lambda matvec, b: b[:3], 0)), "Implicit.solver"),
    ],
)
def test_bad_settings_name_the_field(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make()
    assert caught.value.field == field


def test_a_solution_that_diverges_is_an_error() -> None:
    with pytest.raises(DivergenceError, match="damping"):
        QuadraticCase(SGD(0.2), 2).estimate(Neumann(100, scale=1e4))


# -- Hessian-vector products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [F.silu, F.relu])
def test_hvps_through_batch_normalization_are_differences_of_the_gradient(
    activation: Callable[[Tensor], Tensor],
) -> None:
    """The other order of differentiation is silently wrong here."""
    weights = {"conv": draw(4, 3, 3, 3), "scale": draw(4, seed=1), "linear": draw(2, 4, seed=2)}
    alphas, x, y = draw(2, seed=3), draw(6, 3, 8, 8, seed=4), torch.tensor([0, 1] * 3)

    def loss(w: Tree, a: Tree, batch: None) -> Tensor:
        h = F.batch_norm(F.conv2d(x, w["conv"], padding=1), None, None, w["scale"], training=True)
        mix = a.softmax(0)
        h = mix[0] * activation(h) + mix[1] * F.max_pool2d(h, 3, 1, 1)
        return F.cross_entropy(h.mean((2, 3)) @ w["linear"].T, y)

    problem = BilevelProblem(loss, loss, SGD(0.1))
    v = tree.unflatten(1e-2 * draw(tree.size(weights), seed=5), weights)
    h = 1e-5
    plus, minus = (problem.outer_gradients(tree.add(weights, v, sign * h), alphas, None)[1:] for sign in (1, -1))
    product = HVP(problem, weights, alphas, None)
    both, alone = product.both(v), (product.weights(v), product.alphas(v))
    for found, separate, p, m in zip(both, alone, plus, minus, strict=True):
        truth = tree.scale(tree.subtract(p, m), 1 / (2 * h))
        assert tree.norm(tree.subtract(found, truth)) < 1e-6 * tree.norm(truth)
        assert tree.norm(tree.subtract(found, separate)) < 1e-12 * tree.norm(truth)


def test_hessian_operator_equals_the_whole_hessian() -> None:
    point = {"a": draw(2, 3), "b": draw(4, seed=1)}

    def function(values: Tree) -> Tensor:
        flat = tree.flatten(values)
        return flat.sin().outer(flat).exp().sum() + flat.pow(4).sum()

    whole = torch.autograd.functional.hessian(lambda flat: function(tree.unflatten(flat, point)), tree.flatten(point))
    product = hessian_operator(function, point)
    for seed in (2, 3):
        vector = draw(10, seed=seed)
        torch.testing.assert_close(product(vector), whole @ vector, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", [lambda w: w["a"].sum(), lambda w: torch.tensor(3.0)])
def test_linear_and_constant_functions_have_no_curvature(function: Any) -> None:
    product = hessian_operator(function, {"a": draw(3)})
    assert (product(draw(3, seed=1)) == 0).all()
    assert largest_eigenvalue(product, draw(3, seed=1)) == 0


def test_linear_and_unused_tensors_have_zeros_in_the_product() -> None:
    point = {"bent": draw(2), "straight": draw(2, seed=1), "absent": draw(1, seed=2)}
    product = hessian_operator(lambda w: w["bent"].square().sum() + 3 * w["straight"].sum(), point)
    vector = draw(5, seed=3)
    assert product(vector).tolist() == [*(2 * vector[:2]).tolist(), 0, 0, 0]


@pytest.mark.parametrize(
    "values", [[3.0, 1.0, -2.0], [0.3, 0.1, -0.2], [1.0, 0.5, -4.0], [-1.0, -2.0, -5.0], [2.0, 2.0, 0.0], [3.0], [-3.0]]
)
def test_largest_eigenvalue(values: list[float]) -> None:
    """Also if the one of largest magnitude is negative."""
    found = largest_eigenvalue(Counted(matrix(values)), draw(len(values), seed=5), tolerance=1e-12)
    assert found == pytest.approx(max(values), rel=1e-6)


@pytest.mark.parametrize("size", [40, 224])
def test_close_eigenvalues_need_few_products(size: int) -> None:
    """Of a random symmetric matrix, whose largest eigenvalues are close: a power iteration stops too early."""
    random = draw(size, size, seed=size)
    whole = random + random.mT
    product = Counted(whole)
    found = largest_eigenvalue(product, draw(size, seed=1))
    assert found == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-3)
    assert product.products <= 60


def test_eigenvalue_of_what_is_not_finite_is_nan() -> None:
    assert math.isnan(largest_eigenvalue(lambda v: v / 0, draw(3)))
