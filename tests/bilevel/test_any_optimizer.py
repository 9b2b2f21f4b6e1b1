"""Every estimator with every inner optimizer, in float64, against autograd through the written-out steps."""

import pytest
import torch
from bilevel_cases import Case, Written, by_autograd, draw, generator, nonlinear, optimizers
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import (
    SGE,
    ConjugateGradient,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Implicit,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.estimators.sge.directions import draw as draw_directions
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD, step_vjp

OPTIMIZERS = optimizers()
every = pytest.mark.parametrize("name", OPTIMIZERS)
steps = pytest.mark.parametrize("steps", [1, 3])


def make(name: str, steps: int, *, stacked: bool = False) -> tuple[Case, Written]:
    optimizer, written, _ = OPTIMIZERS[name]
    return nonlinear(optimizer, steps, stacked=stacked), written


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert wanted.norm() > 1e-5, "else it shows nothing"
    assert (found - wanted).norm() < tolerance * wanted.norm()


@every
@steps
def test_the_steps_are_the_written_out_ones(name: str, steps: int) -> None:
    case, written = make(name, steps)
    w = tree.flatten(case.state.weights)
    slots = {key: tree.flatten(slot) for key, slot in case.state.slots.items()}
    for index, batch in enumerate(case.inner):
        _, grad = case.problem.inner_gradient(tree.unflatten(w, case.state.weights), case.alphas, batch)
        w, slots = written(w, slots, tree.flatten(grad), case.state.step + index + 1)
    end = case.problem.run(case.state, case.alphas, case.inner).end
    torch.testing.assert_close(tree.flatten(end.weights), w, rtol=1e-12, atol=1e-12)
    for key, slot in slots.items():
        torch.testing.assert_close(tree.flatten(end.slots[key]), slot, rtol=1e-12, atol=1e-12)


@every
@steps
def test_unrolled_is_autograd_through_the_steps(name: str, steps: int) -> None:
    case, written = make(name, steps)
    whole, direct = by_autograd(case, written)
    result = case.estimate(Unrolled())
    torch.testing.assert_close(tree.flatten(result.direct), direct, rtol=1e-9, atol=1e-12)
    assert_near(tree.flatten(result.indirect), whole - direct, 1e-7)
    assert (result.grad["no"] == 0).all()


@every
@pytest.mark.parametrize("last", [1, 2, 3])
def test_truncated_unrolling_holds_the_state_before_fixed(name: str, last: int) -> None:
    case, written = make(name, 3)
    whole, direct = by_autograd(case, written, last)
    assert_near(tree.flatten(case.estimate(Unrolled(last)).indirect), whole - direct, 1e-7)


@every
@steps
def test_finite_difference_is_the_derivative_of_the_last_step(name: str, steps: int) -> None:
    case, written = make(name, steps)
    whole, direct = by_autograd(case, written, 1)
    assert_near(tree.flatten(case.estimate(FiniteDifference(1e-4)).indirect), whole - direct, 1e-5)


@every
@steps
@pytest.mark.parametrize("computation", ["sequential", "batched"])
@pytest.mark.parametrize("stacked", [False, True])
def test_sge_measures_the_steps(name: str, steps: int, computation: str, stacked: bool) -> None:
    case, written = make(name, steps, stacked=stacked)
    whole, direct = by_autograd(case, written)
    result = case.estimate(SGE(6, 1e-5, "antithetic", computation=computation))
    u = draw_directions("antithetic", 6, case.alphas, generator())
    pairs = result.diagnostics["projections"].reshape(3, 2)
    # the central difference of a pair
    assert_near((pairs[:, 0] - pairs[:, 1]) / 2, (u @ (whole - direct))[::2], 1e-4)
    assert_near(tree.flatten(result.indirect), u.T @ (u @ (whole - direct)) / 6, 1e-4)


@every
@steps
def test_evolution_strategies_measure_the_steps(name: str, steps: int) -> None:
    case, written = make(name, steps)
    whole, direct = by_autograd(case, written)
    result = case.estimate(EvolutionStrategies(6, 1e-5, "antithetic"))
    u = draw_directions("antithetic", 6, case.alphas, generator())
    assert_near(tree.flatten(result.grad), u.T @ (u @ whole) / 6, 1e-4)
    torch.testing.assert_close(tree.flatten(result.direct), direct, rtol=1e-9, atol=1e-12)


@every
@steps
def test_first_order_is_the_direct_gradient(name: str, steps: int) -> None:
    case, written = make(name, steps)
    _, direct = by_autograd(case, written)
    result = case.estimate(FirstOrder())
    torch.testing.assert_close(tree.flatten(result.grad), direct, rtol=1e-9, atol=1e-12)
    assert tree.norm(result.indirect) == 0


@every
@pytest.mark.parametrize(
    "estimator",
    [
        ConjugateGradient(40, 1e-14, damping=20.0),
        Neumann(300, 0.03, damping=20.0),
        Implicit(lambda matvec, b: dense(matvec, b), 20, damping=20.0),
    ],
    ids=lambda each: type(each).__name__,
)
def test_implicit_estimators_ask_for_the_l2_coefficient(name: str, estimator: Implicit) -> None:
    case, _ = make(name, 2)
    coefficient = OPTIMIZERS[name][2]
    if coefficient is None:
        with pytest.raises(InvalidValueError) as caught:
            case.estimate(estimator)
        assert caught.value.field == "AdamW.weight_decay"
        return
    result = case.estimate(estimator)
    end, alphas = tree.flatten(result.state.weights), tree.flatten(case.alphas)
    like = case.state.weights

    def gradient(w: Tensor, a: Tensor) -> Tensor:
        loss = case.problem.inner_loss(tree.unflatten(w, like), tree.unflatten(a, case.alphas), case.inner[-1])
        return torch.autograd.grad(loss, w, create_graph=True)[0]

    hessian, mixed = torch.autograd.functional.jacobian(gradient, (end.requires_grad_(), alphas))
    _, v, _ = case.problem.outer_gradients(result.state.weights, case.alphas, case.outer)
    shifted = hessian + (coefficient + 20.0) * torch.eye(len(end), dtype=end.dtype)
    assert_near(tree.flatten(result.indirect), -mixed.T @ torch.linalg.solve(shifted, tree.flatten(v)), 1e-7)


def dense(matvec, b):  # type: ignore[no-untyped-def]
    return torch.linalg.solve(torch.stack([matvec(unit) for unit in torch.eye(len(b), dtype=b.dtype)], 1), b)


@every
def test_step_vjp_is_the_transposed_jacobian(name: str) -> None:
    case, _ = make(name, 1)
    optimizer, state = case.problem.inner_optimizer, case.state
    _, grad = case.problem.inner_gradient(state.weights, case.alphas, case.inner[0])
    given = (state.weights, state.slots, grad)

    def after(vector: Tensor) -> Tensor:
        weights, slots, g = tree.unflatten(vector, given)
        end = optimizer.step(type(state)(weights, slots, state.step), g)
        return tree.flatten((end.weights, end.slots))

    jacobian = torch.autograd.functional.jacobian(after, tree.flatten(given))
    cotangent = draw(len(jacobian), seed=5)
    weights, slots = tree.unflatten(cotangent, given[:2])
    found = step_vjp(optimizer, state, grad, weights, slots)
    torch.testing.assert_close(tree.flatten(found), jacobian.T @ cotangent, rtol=1e-8, atol=1e-10)


def test_clipping_is_active_in_these_tests() -> None:
    case, _ = make("sgd", 1)
    _, gradient = case.problem.inner_gradient(case.state.weights, case.alphas, case.inner[0])
    assert 0.06 < tree.norm(gradient) < 1e6


def test_a_zero_gradient_has_finite_derivatives_in_adam() -> None:
    """sqrt has an infinite derivative at 0, where Adam's second moment of an unused weight is."""
    optimizer = OPTIMIZERS["adam"][0]
    weights = {"w": torch.zeros(3, dtype=torch.float64)}
    state = optimizer.init(weights)
    found = step_vjp(optimizer, state, weights, {"w": torch.ones(3, dtype=torch.float64)}, state.slots)
    assert all(torch.isfinite(part).all() for part in tree.tensors(found))


def test_a_weight_that_the_loss_ignores_changes_nothing() -> None:
    case, _ = make("momentum", 2)
    more = {**case.state.weights, "idle": torch.ones(2, dtype=torch.float64)}
    state = SGD(0.3, 0.9, weight_decay=0.05).init(more)
    fewer = SGD(0.3, 0.9, weight_decay=0.05).init(case.state.weights)
    for estimator in (Unrolled(), FiniteDifference(), SGE(4), ConjugateGradient(3, damping=20.0)):
        found, wanted = (case.estimate(estimator, state=each).indirect for each in (state, fewer))
        torch.testing.assert_close(tree.flatten(found), tree.flatten(wanted), rtol=1e-6, atol=1e-9)
