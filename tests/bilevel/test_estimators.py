"""Every estimator against closed forms in float64 (style: numbers are proven, not pinned)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sgenas import trees
from sgenas.bilevel import (
    SGD,
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Cost,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.directions import gaussian
from sgenas.bilevel.toy import Quadratic, WeightDecay
from sgenas.errors import InvalidValueError

ESTIMATORS: list[Estimator] = [
    FirstOrder(),
    FiniteDifference(),
    FiniteDifference(one_sided=True),
    SGE(num_directions=3),
    SGE(num_directions=3, control_variate=("one-sided",)),
    Unrolled(),
    Neumann(products=2),
    ConjugateGradient(products=2),
    EvolutionStrategies(num_directions=3),
]
RANDOM = (SGE, EvolutionStrategies)
OPTIMIZERS = [SGD(0.2), SGD(0.2, momentum=0.9, weight_decay=0.1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(count: int, size: int, seed: int = 7) -> list[torch.Tensor]:
    return list(torch.randn(count, size, generator=generator(seed), dtype=torch.float64))


def close(first: trees.Tree, second: trees.Tree, tolerance: float = 1e-10) -> None:
    assert list(first) == list(second)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance)


class Case:
    """A quadratic problem in the middle of its optimisation: momentum buffers are not zero."""

    def __init__(self, optimizer: SGD, steps: int) -> None:
        self.toy = Quadratic.random(generator())
        self.optimizer = optimizer
        self.problem = self.toy.problem(optimizer)
        *warm, self.outer = batches(4, 7, seed=3)
        start = self.problem.init(self.toy.weights)
        self.state = self.problem.run(start, self.toy.alphas, warm).end
        self.inner = batches(steps, 7)
        self.direct, self.indirect = self.toy.exact(optimizer, self.state, self.inner, self.outer)

    def estimate(self, estimator: Estimator, seed: int = 0) -> Any:
        return estimator(
            self.problem, self.state, self.toy.alphas, self.inner, self.outer, generator=generator(seed)
        )


def unrolled(case: Case) -> trees.Tree:
    """The whole hypergradient by automatic differentiation through the steps: a check of the closed form."""
    alphas = trees.leaves(case.toy.alphas)
    weights, buffers = case.state.weights, case.state.buffers
    for batch in case.inner:
        live = {
            name: tensor if tensor.requires_grad else tensor.clone().requires_grad_()
            for name, tensor in weights.items()
        }
        loss = case.problem.inner_loss(live, alphas, batch)
        grads = torch.autograd.grad(loss, list(live.values()), create_graph=True)
        update = {
            name: grad + case.optimizer.weight_decay * live[name]
            for (name, grad) in zip(live, grads, strict=True)
        }
        if buffers:
            buffers = {
                name: case.optimizer.momentum * buffers[name] + tensor for name, tensor in update.items()
            }
            update = buffers
        weights = {name: live[name] - case.optimizer.lr * update[name] for name in live}
    loss = case.problem.outer_loss(weights, alphas, case.outer)
    return dict(zip(alphas, torch.autograd.grad(loss, list(alphas.values())), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_closed_form_is_the_derivative_of_the_steps(optimizer: SGD, steps: int) -> None:
    case = Case(optimizer, steps)
    close(trees.add(case.direct, case.indirect), unrolled(case))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_first_order_is_the_direct_part(optimizer: SGD, steps: int) -> None:
    case = Case(optimizer, steps)
    result = case.estimate(FirstOrder())
    close(result.grad, case.direct)
    close(result.direct, case.direct)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_finite_difference_is_exact_for_one_step(optimizer: SGD) -> None:
    case = Case(optimizer, 1)
    result = case.estimate(FiniteDifference())
    close(result.direct, case.direct)
    close(result.indirect, case.indirect, 1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [5, 50])
def test_finite_difference_differentiates_only_the_last_of_many_steps(optimizer: SGD, steps: int) -> None:
    case = Case(optimizer, steps)
    before = case.problem.run(case.state, case.toy.alphas, case.inner[:-1]).end
    direct, indirect = case.toy.exact(optimizer, before, case.inner[-1:], case.outer)
    result = case.estimate(FiniteDifference())
    close(result.direct, direct)
    close(result.indirect, indirect, 1e-9)


def test_finite_difference_sees_through_gradient_clipping() -> None:
    toy = Quadratic.random(generator())
    problem = toy.problem(SGD(0.2, momentum=0.9, weight_decay=0.1, grad_clip=0.5))
    state = problem.init(toy.weights)
    (inner, outer) = batches(2, 7)

    def objective(vector: torch.Tensor) -> torch.Tensor:
        alphas = trees.unflatten(vector, toy.alphas)
        return problem.outer_loss(problem.run(state, alphas, [inner]).end.weights, alphas, outer)

    start, h = trees.flatten(toy.alphas), 1e-5
    central = [
        (objective(start + h * unit) - objective(start - h * unit)) / (2 * h)
        for unit in torch.eye(len(start), dtype=torch.float64)
    ]
    result = FiniteDifference()(problem, state, toy.alphas, [inner], outer)
    torch.testing.assert_close(trees.flatten(result.grad), torch.stack(central), rtol=1e-6, atol=1e-6)


def test_finite_difference_error_falls_with_the_square_of_the_radius() -> None:
    generator_ = generator()
    w, a = (torch.randn(3, generator=generator_, dtype=torch.float64) for _ in range(2))

    def inner_loss(weights: trees.Tree, alphas: trees.Tree, batch: None) -> torch.Tensor:
        return ((weights["w"] * 2).sin() * alphas["a"].exp()).sum()

    def outer_loss(weights: trees.Tree, alphas: trees.Tree, batch: None) -> torch.Tensor:
        return weights["w"].square().sum() / 2

    problem = BilevelProblem(inner_loss, outer_loss, SGD(0.1))
    end = w - 0.1 * 2 * (2 * w).cos() * a.exp()
    exact = -0.1 * 2 * (2 * w).cos() * a.exp() * end
    errors = []
    for radius in (0.4, 0.2, 0.1):
        result = FiniteDifference(radius)(problem, problem.init({"w": w}), {"a": a}, [None], None)
        errors.append((result.grad["a"] - exact).norm().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_one_sided_difference_is_its_formula_and_as_far_off_as_the_radius() -> None:
    """Two values of the same gradient, one of them from the last inner step."""
    case = Case(OPTIMIZERS[1], 3)
    before = case.problem.run(case.state, case.toy.alphas, case.inner[:-1]).end
    end = case.problem.run(before, case.toy.alphas, case.inner[-1:]).end
    v = case.problem.outer_gradients(end.weights, case.toy.alphas, case.outer)[1]
    epsilon = 0.3 / trees.norm(v)
    sides = [
        case.problem.inner_alpha_gradient(weights, case.toy.alphas, case.inner[-1])[1]
        for weights in (trees.add(before.weights, v, epsilon), before.weights)
    ]
    wanted = trees.scale(trees.subtract(*sides), -case.optimizer.lr / epsilon)
    close(case.estimate(FiniteDifference(0.3, one_sided=True)).indirect, wanted, 1e-9)

    w, a = (torch.randn(3, generator=generator(), dtype=torch.float64) for _ in range(2))

    def inner_loss(weights: trees.Tree, alphas: trees.Tree, batch: None) -> torch.Tensor:
        return ((weights["w"] * 2).sin() * alphas["a"].exp()).sum()

    def outer_loss(weights: trees.Tree, alphas: trees.Tree, batch: None) -> torch.Tensor:
        return weights["w"].square().sum() / 2

    problem = BilevelProblem(inner_loss, outer_loss, SGD(0.1))
    exact = Unrolled()(problem, problem.init({"w": w}), {"a": a}, [None], None).grad["a"]
    errors = []
    for radius in (0.02, 0.01, 0.005):
        estimator = FiniteDifference(radius, one_sided=True)
        result = estimator(problem, problem.init({"w": w}), {"a": a}, [None], None)
        errors.append((result.grad["a"] - exact).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_finite_difference_with_nothing_to_pull_back_is_the_direct_part() -> None:
    toy = Quadratic.random(generator())
    flat = Quadratic(toy.curvature, toy.coupling, toy.cross * 0, toy.offset, toy.rho, toy.weights, toy.alphas)
    problem = flat.problem(SGD(0.1))
    state = problem.init(flat.weights)
    (inner,) = batches(1, 7)
    at_minimum = trees.flatten(problem.run(state, flat.alphas, [inner]).end.weights)
    result = FiniteDifference()(problem, state, flat.alphas, [inner], at_minimum)
    close(result.grad, result.direct)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_sge_is_algorithm_1_written_out(optimizer: SGD, steps: int) -> None:
    """Eq. 5 and 6 on the quadratic, from the closed form's Jacobian and the same draws."""
    case = Case(optimizer, steps)
    result = case.estimate(SGE(num_directions=4, smoothing=0.3))
    size = trees.size(case.toy.alphas)
    u = torch.randn(4, size, generator=generator(), dtype=torch.float64)
    indirect = trees.flatten(case.indirect)
    close(result.direct, case.direct)
    torch.testing.assert_close(trees.flatten(result.indirect), u.T @ (u @ indirect) / 4, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.diagnostics["projections"], u @ indirect, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sge_is_unbiased_with_the_known_variance(optimizer: SGD) -> None:
    case = Case(optimizer, 2)
    sge = SGE(num_directions=10)
    draws = torch.stack([trees.flatten(case.estimate(sge, seed).indirect) for seed in range(500)])
    exact = trees.flatten(case.indirect)
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 4 * standard_error).all()
    assert (standard_error < 0.06 * exact.norm()).all(), "else noise alone would pass"
    # E ||estimate - exact||^2 = (p + 1) / Q ||exact||^2 for Gaussian directions
    squared = (draws - exact).square().sum(1)
    expected = (len(exact) + 1) / 10 * exact.square().sum()
    assert abs(squared.mean() - expected) < 4 * squared.std() / len(draws) ** 0.5
    assert squared.std() / len(draws) ** 0.5 < 0.08 * expected


def test_sge_noise_falls_as_one_over_the_square_root_of_q() -> None:
    case = Case(SGD(0.2), 2)
    exact = trees.flatten(case.indirect)

    def error(directions: int) -> torch.Tensor:
        sge = SGE(num_directions=directions)
        draws = torch.stack([trees.flatten(case.estimate(sge, seed).indirect) for seed in range(100)])
        return (draws - exact).square().sum(1).mean().sqrt()

    assert error(4) / error(64) == pytest.approx(4, rel=0.2)


def test_error_of_a_projection_falls_with_the_smoothing_on_a_nonlinear_problem() -> None:
    """<delta_j, v> against the exact directional derivative, direction by direction: no sampling noise."""
    toy = WeightDecay.random(generator())
    optimizer = SGD(0.3)
    problem = toy.problem(optimizer)
    state = problem.init(toy.weights)
    inner, outer = batches(2, 4)
    _, exact = toy.exact(optimizer, state, 6, inner, outer)
    u = torch.randn(8, 4, generator=generator(1), dtype=torch.float64)
    errors = []
    for smoothing in (0.04, 0.02, 0.01):
        sge = SGE(8, smoothing)
        result = sge(problem, state, toy.alphas, [inner] * 6, outer, generator=generator(1))
        errors.append((result.diagnostics["projections"] - u @ exact["log_decay"]).norm().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_after_many_steps_the_quadratic_reaches_its_converged_form(optimizer: SGD) -> None:
    toy = Quadratic.random(generator())
    inner, outer = batches(2, 7)
    state = optimizer.init(toy.weights)
    parts = toy.exact(optimizer, state, [inner] * 600, outer)
    for after_steps, converged in zip(parts, toy.converged(optimizer, inner, outer), strict=True):
        close(after_steps, converged, 1e-9)


def test_the_decay_problem_agrees_with_autograd_and_reaches_its_converged_form() -> None:
    toy = WeightDecay.random(generator())
    optimizer = SGD(0.3)
    inner, outer = batches(2, 4)
    state = optimizer.init(toy.weights)
    log_decay = toy.alphas["log_decay"].clone().requires_grad_()
    w = toy.weights["w"]
    for _ in range(6):
        w = w - 0.3 * ((toy.curvature + log_decay.exp()) * w - toy.offset - inner)
    (expected,) = torch.autograd.grad((w - outer).square().sum() / 2, log_decay)
    close(toy.exact(optimizer, state, 6, inner, outer)[1], {"log_decay": expected})
    close(toy.exact(optimizer, state, 400, inner, outer)[1], toy.converged(inner, outer)[1])


# The contract, the same for all: a new estimator adds a row to ESTIMATORS and one to COSTS.
COSTS: list[Callable[[int], Cost]] = [
    lambda steps: Cost(steps + 1, steps + 1, steps),
    lambda steps: Cost(steps + 3, steps + 3, steps),
    lambda steps: Cost(steps + 2, steps + 2, steps),
    lambda steps: Cost(4 * steps + 1, 4 * steps + 1, 4 * steps),
    lambda steps: Cost(4 * steps + 2, 4 * steps + 2, 4 * steps),
    lambda steps: Cost(3 * steps + 1, 3 * steps + 1, steps),
    lambda steps: Cost(steps + 7, steps + 7, steps),
    lambda steps: Cost(steps + 7, steps + 7, steps),
    lambda steps: Cost(4 * steps + 4, 4 * steps + 1, 4 * steps),
]
"""In the order of ESTIMATORS."""


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
class TestContract:
    @pytest.mark.parametrize("steps", [1, 3])
    def test_cost_is_what_was_really_run(self, estimator: Estimator, steps: int, counter: Any) -> None:
        case = Case(OPTIMIZERS[1], steps)
        counted = counter.problem(case.problem)
        result = estimator(
            counted, case.state, case.toy.alphas, case.inner, case.outer, generator=generator()
        )
        assert result.cost == COSTS[ESTIMATORS.index(estimator)](steps)
        assert (result.cost.forward, result.cost.backward) == (counter.forward, counter.backward)
        assert estimator.cost(steps) == result.cost

    def test_state_is_the_unperturbed_trajectory(self, estimator: Estimator) -> None:
        case = Case(OPTIMIZERS[1], 3)
        end = case.problem.run(case.state, case.toy.alphas, case.inner)
        result = case.estimate(estimator)
        assert result.state.step == case.state.step + 3
        for name in end.end.weights:
            assert torch.equal(result.state.weights[name], end.end.weights[name])
            assert torch.equal(result.state.buffers[name], end.end.buffers[name])
        assert [float(loss) for loss in result.inner_losses] == [float(loss) for loss in end.losses]
        expected = case.problem.outer_loss(result.state.weights, case.toy.alphas, case.outer)
        torch.testing.assert_close(result.outer_loss, expected)

    def test_nothing_given_is_changed(self, estimator: Estimator) -> None:
        case = Case(OPTIMIZERS[1], 3)
        given = {
            **case.state.weights,
            **{f"buffer {name}": tensor for name, tensor in case.state.buffers.items()},
            **case.toy.alphas,
            **{f"batch {index}": tensor for index, tensor in enumerate([*case.inner, case.outer])},
        }
        case.toy.alphas["normal"].requires_grad_()
        before = trees.clone(given)
        rng = torch.get_rng_state()
        case.estimate(estimator)
        for name, tensor in given.items():
            assert torch.equal(tensor, before[name]), name
            assert tensor.grad is None, name
        assert case.toy.alphas["normal"].requires_grad
        assert torch.equal(torch.get_rng_state(), rng)

    def test_result_is_detached_and_repeats_with_the_seed(self, estimator: Estimator) -> None:
        case = Case(OPTIMIZERS[1], 2)
        first, second, other = (case.estimate(estimator, seed) for seed in (0, 0, 1))
        for tree in (first.grad, first.direct, first.state.weights, first.state.buffers):
            assert not any(tensor.requires_grad for tensor in tree.values())
        assert not first.outer_loss.requires_grad
        assert all(torch.equal(first.grad[name], second.grad[name]) for name in first.grad)
        differs = any(not torch.equal(first.grad[name], other.grad[name]) for name in first.grad)
        assert differs == isinstance(estimator, RANDOM)

    def test_alphas_that_a_loss_does_not_use_get_zero(self, estimator: Estimator) -> None:
        toy = WeightDecay.random(generator())
        problem = toy.problem(SGD(0.1))
        inner, outer = batches(2, 4)
        alphas = {**toy.alphas, "unused": torch.ones(2, dtype=torch.float64)}
        result = estimator(problem, problem.init(toy.weights), alphas, [inner], outer, generator=generator())
        assert torch.equal(result.direct["unused"], torch.zeros(2, dtype=torch.float64))
        assert isinstance(estimator, RANDOM) or (result.grad["unused"] == 0).all()

    def test_the_parts_make_the_whole(self, estimator: Estimator) -> None:
        case = Case(OPTIMIZERS[1], 2)
        result = case.estimate(estimator)
        close(result.direct, case.direct)
        close(trees.add(result.direct, result.indirect), result.grad)
        direct, indirect = trees.norm(result.direct).square(), trees.norm(result.indirect).square()
        torch.testing.assert_close(result.direct_share, direct / (direct + indirect))
        assert isinstance(estimator, FirstOrder) == (result.direct_share == 1)

    def test_no_inner_batch_is_refused(self, estimator: Estimator) -> None:
        case = Case(OPTIMIZERS[0], 1)
        with pytest.raises(InvalidValueError, match="at least 1 batch"):
            estimator(case.problem, case.state, case.toy.alphas, [], case.outer, generator=generator())

    def test_a_loss_that_is_no_scalar_is_refused(self, estimator: Estimator) -> None:
        case = Case(OPTIMIZERS[0], 1)
        problem = BilevelProblem(
            lambda weights, alphas, batch: weights["vector"], case.problem.outer_loss, SGD(0.1)
        )
        with pytest.raises(InvalidValueError, match=r"inner_loss must return a 0-d tensor, got \(3,\)"):
            estimator(problem, case.state, case.toy.alphas, case.inner, case.outer, generator=generator())


def test_bad_estimator_settings() -> None:
    with pytest.raises(InvalidValueError, match="SGE.num_directions must be >= 1, got 0"):
        SGE(num_directions=0)
    with pytest.raises(InvalidValueError, match="SGE.smoothing must be > 0 and finite, got -0.1"):
        SGE(smoothing=-0.1)
    with pytest.raises(InvalidValueError, match="FiniteDifference.radius must be > 0 and finite, got 0"):
        FiniteDifference(radius=0)
    with pytest.raises(InvalidValueError, match="FiniteDifference.radius must be > 0 and finite, got inf"):
        FiniteDifference(radius=float("inf"))
    case = Case(OPTIMIZERS[0], 1)
    with pytest.raises(InvalidValueError, match="alphas must hold at least one tensor, got none"):
        gaussian(3, {}, generator())
    with pytest.raises(InvalidValueError, match="needs generator="):
        SGE()(case.problem, case.state, case.toy.alphas, case.inner, case.outer)


def test_passes_add_up() -> None:
    assert Cost(1, 2.5, 3) + Cost(10, 20, 30) == Cost(11, 22.5, 33)


def test_defaults_are_those_of_the_papers() -> None:
    """SGE's mu and DARTS' radius are 0.01, its Q is 10."""
    assert (SGE().num_directions, SGE().smoothing) == (10, 0.01)
    assert FiniteDifference().radius == 0.01
    assert Neumann().products == ConjugateGradient().products == 10
    assert Neumann(2, scale=0.5).scale == 0.5
    assert ConjugateGradient(1).products == 1


def test_passes_on_parts_of_batches_with_several_steps() -> None:
    """The unperturbed steps are taken once more, on the part that the perturbed ones see."""
    whole, half = SGE(4, computation="loop"), SGE(4, computation="loop", batch_fraction=0.5)
    for steps in (1, 3):
        assert half.cost(steps).inner_steps == whole.cost(steps).inner_steps + steps
        assert half.cost(steps).forward < whole.cost(steps).forward
