"""Estimators against closed-form solutions in float64, and the closed forms against autograd."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from bilevel_cases import QuadraticCase, by_autograd, close, draw, generator, nonlinear, written_sgd
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import SGE, BilevelProblem, EvolutionStrategies, FiniteDifference, Unrolled
from sgenas.bilevel.estimators.sge.aggregation import aggregate
from sgenas.bilevel.estimators.sge.directions import draw as directions
from sgenas.bilevel.test_problems import Quadratic, WeightDecay
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD, InnerState
from sgenas.tree import Tree

OPTIMIZERS = [SGD(0.2), SGD(0.2, momentum=0.9, weight_decay=0.1)]
both = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["plain", "momentum"])
steps = pytest.mark.parametrize("steps", [1, 5, 50])


@both
@steps
def test_unrolled_is_the_closed_form_and_that_is_autograd(optimizer: SGD, steps: int) -> None:
    case = QuadraticCase(optimizer, steps)
    whole, direct = by_autograd(case, written_sgd(optimizer, decay=optimizer.weight_decay))
    torch.testing.assert_close(tree.flatten(case.direct), direct, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(case.exact, whole - direct, rtol=1e-9, atol=1e-10)
    result = case.estimate(Unrolled())
    close(result.direct, case.direct)
    close(result.indirect, case.indirect)


@both
def test_after_many_steps_the_closed_form_is_the_converged_one(optimizer: SGD) -> None:
    toy, inner, outer = Quadratic.random(generator()), draw(7, seed=7), draw(7, seed=8)
    parts = toy.exact(optimizer, optimizer.init(toy.weights), [inner] * 600, outer)
    for after_steps, converged in zip(parts, toy.converged(optimizer, inner, outer), strict=True):
        close(after_steps, converged, 1e-9)


def test_the_decay_problem_is_autograd_and_reaches_its_converged_form() -> None:
    toy, optimizer = WeightDecay.random(generator()), SGD(0.3)
    inner, outer = draw(4, seed=7), draw(4, seed=8)
    log_decay = toy.alphas["log_decay"].clone().requires_grad_()
    w = toy.weights["w"]
    for _ in range(6):
        w = w - 0.3 * ((toy.curvature + log_decay.exp()) * w - toy.offset - inner)
    (expected,) = torch.autograd.grad((w - outer).square().sum() / 2, log_decay)
    state = optimizer.init(toy.weights)
    close(toy.exact(optimizer, state, 6, inner, outer)[1], {"log_decay": expected})
    close(toy.exact(optimizer, state, 400, inner, outer)[1], toy.converged(inner, outer)[1])


def test_closed_forms_refuse_steps_that_they_do_not_hold_for() -> None:
    quadratic, decay = Quadratic.random(generator()), WeightDecay.random(generator())
    batch, state = draw(4), InnerState({"w": draw(4)})
    for optimizer in (SGD(0.1, grad_clip=1.0), SGD(0.1, 0.9, nesterov=True)):
        for closed in (
            lambda optimizer=optimizer: quadratic.converged(optimizer, batch, batch),
            lambda optimizer=optimizer: quadratic.exact(optimizer, state, [batch], batch),
            lambda optimizer=optimizer: decay.exact(optimizer, state, 1, batch, batch),
        ):
            with pytest.raises(InvalidValueError):
                closed()
    for optimizer in (SGD(0.1, momentum=0.9), SGD(0.1, weight_decay=0.1)):
        with pytest.raises(InvalidValueError, match="plain"):
            decay.exact(optimizer, state, 1, batch, batch)


@both
@steps
def test_sge_is_algorithm_1_written_out(optimizer: SGD, steps: int) -> None:
    """Eq. 5 and 6 on the quadratic, from the closed form's Jacobian and the same draws."""
    case = QuadraticCase(optimizer, steps)
    result = case.estimate(SGE(num_directions=4, smoothing=0.3))
    u = torch.randn(4, case.size, generator=generator(), dtype=torch.float64)
    close(result.direct, case.direct)
    found = tree.flatten(result.indirect)
    torch.testing.assert_close(found, u.T @ (u @ case.exact) / 4, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.diagnostics["projections"], u @ case.exact, rtol=1e-9, atol=1e-9)


@both
def test_sge_is_unbiased_with_the_known_variance(optimizer: SGD) -> None:
    """E ||estimate - exact||^2 = (p + 1) / Q ||exact||^2 for Gaussian directions."""
    case = QuadraticCase(optimizer, 1)
    draws = case.many(SGE(10), 300)
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - case.exact).abs() < 4 * standard_error).all()
    assert (standard_error < 0.08 * case.exact.norm()).all(), "else noise alone would pass"
    squared = (draws - case.exact).square().sum(1)
    expected = (case.size + 1) / 10 * case.exact.square().sum()
    assert abs(squared.mean() - expected) < 4 * squared.std() / len(draws) ** 0.5
    assert squared.std() / len(draws) ** 0.5 < 0.12 * expected


@pytest.mark.parametrize(("kind", "ratio"), [("gaussian", 2), ("antithetic", 4)])
@pytest.mark.parametrize("estimator", [SGE, EvolutionStrategies])
def test_the_smoothing_error_falls_as_mu_or_its_square(estimator: Any, kind: str, ratio: float) -> None:
    """Against the same average of exact derivatives: no sampling noise."""
    toy, inner, outer = WeightDecay.random(generator()), draw(4, seed=1), draw(4, seed=2)
    problem = toy.problem(SGD(0.3))
    state = problem.init(toy.weights)
    _, exact = toy.exact(SGD(0.3), state, 6, inner, outer)
    u = directions(kind, 8, toy.alphas, generator())
    expected = u.T @ (u @ exact["log_decay"]) / 8
    errors = []
    for smoothing in (0.008, 0.004, 0.002):
        each = estimator(8, smoothing, kind)
        result = each(problem, state, toy.alphas, [inner] * 6, outer, generator=generator())
        errors.append((result.grad["log_decay"] - expected).norm().item())
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.1)


def test_finite_difference_error_falls_with_the_square_of_the_radius() -> None:
    w, a = draw(3), draw(3, seed=1)

    def inner(weights: Tree, alphas: Tree, batch: None) -> Tensor:
        return ((weights * 2).sin() * alphas.exp()).sum()

    problem = BilevelProblem(inner, lambda w, a, b: w.square().sum() / 2, SGD(0.1))
    end = w - 0.1 * 2 * (2 * w).cos() * a.exp()
    exact = -0.1 * 2 * (2 * w).cos() * a.exp() * end
    errors = [
        (FiniteDifference(radius)(problem, problem.init(w), a, [None], None).grad - exact).norm().item()
        for radius in (0.4, 0.2, 0.1)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 1.0])
def test_finite_difference_of_a_tiny_outer_gradient_is_finite(size: float, dtype: torch.dtype) -> None:
    def inner(weights: Tree, alphas: Tree, batch: None) -> Tensor:
        return (weights.square() * alphas.exp()).sum()

    problem = BilevelProblem(inner, lambda w, a, b: size * w.sum(), SGD(0.1))
    w, a = draw(3).to(dtype), draw(3, seed=1).to(dtype)
    found = FiniteDifference()(problem, problem.init(w), a, [None], None).indirect
    wanted = -0.1 * size * 2 * w * a.exp()
    assert torch.isfinite(found).all()
    if size in (0.0, 1.0) or dtype == torch.float64:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0.0)


def test_what_truncation_leaves_out_falls_with_the_curvature() -> None:
    """As (1 - lr c)^k: c = 0.5 is the smallest eigenvalue of the toy's curvature."""
    case = QuadraticCase(SGD(0.2), 80)
    errors = [(tree.flatten(case.estimate(Unrolled(last)).indirect) - case.exact).norm() for last in (20, 30, 40)]
    for first, second in ((0, 1), (1, 2)):
        assert errors[second] / errors[first] == pytest.approx(0.9**10, rel=0.1)


def test_unrolling_keeps_the_weights_of_the_last_steps_only() -> None:
    case, alive, kept = nonlinear(SGD(0.1), 6), [], []

    class Watched(SGD):
        def step(self, state: InnerState, grad: Tree) -> InnerState:
            after = super().step(state, grad)
            alive.append(weakref.ref(after.weights["w"]))
            return after

    def outer(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        kept.append(sum(reference() is not None for reference in alive))
        return case.problem.outer_loss(weights, alphas, batch)

    problem = replace(case.problem, outer_loss=outer, inner_optimizer=Watched(0.1))
    case.estimate(Unrolled(2), problem=problem)
    # before the last two steps, and the end
    assert kept == [3]


@pytest.mark.parametrize("truncate", [0, -1])
def test_bad_truncation_is_refused(truncate: int) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Unrolled(truncate)
    assert caught.value.field == "Unrolled.truncate"


def test_truncation_beyond_the_batches_is_refused() -> None:
    for estimator in (Unrolled(3), SGE(2, control_variate=Unrolled(3))):
        with pytest.raises(InvalidValueError) as caught:
            nonlinear(SGD(0.1), 2).estimate(estimator)
        assert caught.value.field == "Unrolled.truncate"


# -- evolution strategies --------------------------------------------------------------------------------------


@both
@steps
def test_central_differences_of_a_quadratic_are_exact(optimizer: SGD, steps: int) -> None:
    """Pairs u, -u: (1/Q) sum <grad F, u> u for every mu."""
    case = QuadraticCase(optimizer, steps)
    result = case.estimate(EvolutionStrategies(6, 0.7, "antithetic"))
    u = directions("antithetic", 6, case.alphas, generator())
    whole = case.exact + tree.flatten(case.direct)
    torch.testing.assert_close(tree.flatten(result.grad), u.T @ (u @ whole) / 6, rtol=1e-9, atol=1e-9)
    close(result.direct, case.direct)


@both
def test_as_many_orthogonal_pairs_as_alphas_are_the_whole_gradient(optimizer: SGD) -> None:
    case = QuadraticCase(optimizer, 3)
    near, far = (
        case.estimate(EvolutionStrategies(6, mu, "orthogonal")).diagnostics["projections"] for mu in (0.5, 1.0)
    )
    # F(alpha + mu u) = F + mu <g, u> + mu^2 c: two values of mu separate the two terms
    u = directions("orthogonal", 6, case.alphas, generator())
    whole = case.exact + tree.flatten(case.direct)
    torch.testing.assert_close(u.T @ (2 * near - far) / 6, whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("kind", "independent"), [("gaussian", 8), ("antithetic", 4)])
def test_evolution_strategies_are_unbiased_with_the_known_variance(kind: str, independent: int) -> None:
    """E ||grad - exact||^2 = (p + 1) / Q ||exact||^2, of the whole gradient; pairs count once."""
    case = QuadraticCase(OPTIMIZERS[1], 1)
    exact = case.exact + tree.flatten(case.direct)
    draws = case.many(EvolutionStrategies(8, 1e-4, kind), 150) + tree.flatten(case.direct)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()
    assert (error < 0.15 * exact.norm()).all(), "else noise alone would pass"
    squared = (draws - exact).square().sum(1)
    expected = 7 / independent * exact.square().sum()
    assert abs(squared.mean() - expected) < 4 * squared.std() / len(draws) ** 0.5


@pytest.mark.parametrize("kind", ["gaussian", "antithetic", "orthogonal"])
def test_evolution_strategies_aggregate_their_differences(kind: str) -> None:
    case = QuadraticCase(SGD(0.2), 1)
    result = case.estimate(EvolutionStrategies(6, 0.1, kind))
    rows = directions(kind, 6, case.alphas, generator())
    found = aggregate(rows, result.diagnostics["projections"], kind)
    torch.testing.assert_close(tree.flatten(result.grad), found[0])
    assert ("standard_error" in result.diagnostics) == (kind != "orthogonal")


def test_the_outer_objective_of_evolution_strategies_needs_no_derivative() -> None:
    case = QuadraticCase(SGD(0.2), 2)

    def hidden(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return case.problem.outer_loss(tree.detach(weights), tree.detach(alphas), batch)

    problem = BilevelProblem(case.problem.inner_loss, hidden, SGD(0.2))
    result = case.estimate(EvolutionStrategies(4), problem=problem)
    close(result.grad, case.estimate(EvolutionStrategies(4)).grad)
    assert tree.norm(result.direct) == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"num_directions": 0}, "EvolutionStrategies.num_directions"),
        ({"num_directions": 3, "directions": "antithetic"}, "EvolutionStrategies.num_directions"),
        ({"directions": "cube"}, "EvolutionStrategies.directions"),
        *(({"smoothing": bad}, "EvolutionStrategies.smoothing") for bad in (0.0, -1.0, float("nan"))),
    ],
)
def test_bad_settings_of_evolution_strategies_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        EvolutionStrategies(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize("radius", [0.0, float("inf"), float("nan")])
def test_bad_radii_are_refused(radius: float) -> None:
    with pytest.raises(InvalidValueError) as caught:
        FiniteDifference(radius)
    assert caught.value.field == "FiniteDifference.radius"
