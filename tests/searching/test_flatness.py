"""Architecture-aware minimization: against autograd, for every estimator, in a search."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bilevel_cases import Case, QuadraticCase, by_autograd, close, generator, nonlinear, written_sgd
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import cells, module_search, unstarted, unstarted_cells
from torch import Tensor

from sgenas import SGE, Unrolled, tree
from sgenas.bilevel import (
    ConjugateGradient,
    Cost,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    HypergradientResult,
    Neumann,
)
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD
from sgenas.searching import flatness
from sgenas.searching.flatness import Flatness

ESTIMATORS: list[Estimator] = [
    FirstOrder(),
    FiniteDifference(),
    Unrolled(),
    Neumann(max_hvps=4, scale=0.1),
    ConjugateGradient(max_hvps=30, damping=0.5),
    SGE(num_directions=3, smoothing=0.1),
    EvolutionStrategies(num_directions=3, smoothing=0.1),
]


def flat(case: Case, estimator: Estimator, rho: float) -> HypergradientResult:
    rest = (case.problem, case.state, case.alphas, case.inner, case.outer)
    return Flatness(rho)(estimator, *rest, generator=generator())


def ascended_gradient(case: Case, rho: float, *, fixed_weights: bool) -> Tensor:
    """d f(alpha + rho g(alpha)) / d alpha, by central differences of the objective itself (step 1e-5)."""
    optimizer = case.problem.inner_optimizer
    assert isinstance(optimizer, SGD)
    end = case.problem.run(case.state, case.alphas, case.inner).end.weights
    start = tree.flatten(case.alphas).double()

    def at(vector: Tensor) -> Case:
        alphas = tree.unflatten(vector, case.alphas)
        return Case(case.problem, alphas, case.state, case.inner, case.outer)

    def value(vector: Tensor) -> Tensor:
        alphas = tree.unflatten(vector, case.alphas)
        weights = end if fixed_weights else case.problem.run(case.state, alphas, case.inner).end.weights
        return case.problem.outer_loss(weights, alphas, case.outer)

    def slope(vector: Tensor) -> Tensor:
        if not fixed_weights:
            return by_autograd(at(vector), written_sgd(optimizer))[0]
        return tree.flatten(case.problem.outer_alpha_gradient(end, at(vector).alphas, case.outer)[1])

    def objective(vector: Tensor) -> Tensor:
        return value(vector + rho * slope(vector))

    step = 1e-5 * torch.eye(len(start), dtype=torch.float64)
    return torch.stack([(objective(start + row) - objective(start - row)) / 2e-5 for row in step])


@pytest.mark.parametrize(("estimator", "fixed"), [(Unrolled(), False), (FirstOrder(), True)])
def test_gradient_is_that_of_the_outer_objective_after_the_ascent(
    estimator: Estimator, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, rho = nonlinear(SGD(0.3, momentum=0.9), 3), 0.7
    exact = ascended_gradient(case, rho, fixed_weights=fixed)
    plain = tree.flatten(case.estimate(estimator).grad)
    assert (exact - plain).norm() > 0.05 * plain.norm(), "the term matters here"
    errors = []
    for difference in (0.02, 0.01):
        monkeypatch.setattr(flatness, "DIFFERENCE", difference)
        errors.append(float((tree.flatten(flat(case, estimator, rho).grad) - exact).norm()))
    # of second order in the distance of the difference
    assert errors[1] < 1e-3 * float(exact.norm())
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_every_estimator_gives_its_own_hypergradient_at_the_four_points(estimator: Estimator) -> None:
    """In the quadratic the hypergradient is k + A alpha, with the same directions at all points."""
    case, rho = QuadraticCase(SGD(0.2, momentum=0.9), 2), 0.3
    at = tree.flatten(case.alphas)
    end = case.problem.run(case.state, case.alphas, case.inner).end.weights

    def hypergradient(vector: Tensor) -> Tensor:
        alphas = tree.unflatten(vector, case.alphas)
        if isinstance(estimator, FirstOrder):
            return tree.flatten(case.problem.outer_alpha_gradient(end, alphas, case.outer)[1])
        return tree.flatten(case.estimate(estimator, alphas=alphas).grad)

    constant = hypergradient(torch.zeros_like(at))
    rows = torch.eye(len(at), dtype=at.dtype)
    matrix = torch.stack([hypergradient(row) - constant for row in rows], dim=1)
    ascended = constant + matrix @ (at + rho * (constant + matrix @ at))
    found = flat(case, estimator, rho)
    close(tree.flatten(found.grad), ascended + rho * matrix @ ascended, 1e-8)
    plain = case.estimate(estimator)
    assert torch.equal(tree.flatten(found.direct), tree.flatten(plain.direct))
    assert torch.equal(tree.flatten(found.state.weights), tree.flatten(plain.state.weights))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_cost_is_that_of_four_evaluations(estimator: Estimator) -> None:
    case, steps = QuadraticCase(SGD(0.2), 2), 2
    cost, one = flat(case, estimator, 0.1).cost, case.estimate(estimator).cost
    four = sum((one for _ in range(3)), one)
    # at fixed weights a pass each
    assert cost == (Cost(steps + 4, steps + 4, steps) if isinstance(estimator, FirstOrder) else four)
    most = Flatness(0.1).cost(estimator, steps)
    assert (cost.forward <= most.forward, cost.inner_steps <= most.inner_steps) == (True, True)
    assert Flatness().cost(estimator, steps) == estimator.cost(steps)


def test_random_numbers_after_a_call_are_those_after_a_plain_one() -> None:
    case, states = QuadraticCase(SGD(0.2), 2), []
    for rho in (0.0, 0.1):
        draw = generator()
        rest = (case.problem, case.state, case.alphas, case.inner, case.outer)
        Flatness(rho)(SGE(num_directions=2), *rest, generator=draw)
        states.append(draw.get_state())
    assert torch.equal(*states)


def test_vanishing_gradient_stays_zero() -> None:
    zero = {"a": torch.zeros(2, dtype=torch.float64)}
    found = flatness.flat_gradient(lambda alphas: tree.zeros_like(alphas), zero, zero, 1.0)
    assert torch.equal(found["a"], zero["a"])


def test_search_moves_the_alphas_along_this_gradient() -> None:
    optimizer = SGD(0.5)
    runs = [
        unstarted(lambda: module_search(flatness=0.4, arch_optimizer=optimizer, estimator=Unrolled())) for _ in range(2)
    ]
    before = runs[0].alphas["whose"].clone()
    runs[0].take_step()
    run = runs[1]
    inner, outer = [run._seeded(next(run._train), 0)], run._seeded(next(run._val), -1)
    problem = run.objectives().problem(run.weight_optimizer(), run.penalties(), None)
    result = Flatness(0.4)(Unrolled(), problem, run.state, run.alphas, inner, outer, generator=generator())
    torch.testing.assert_close(runs[0].alphas["whose"], before - 0.5 * result.grad["whose"])
    assert runs[0].cost == result.cost


def test_predicted_passes_are_those_of_the_search() -> None:
    for estimator in (FirstOrder(), SGE(num_directions=2)):
        config = cells(flatness=0.1, estimator=estimator, epochs=1)
        assert (
            config.run(progress=False).cost
            == unstarted_cells(flatness=0.1, estimator=estimator, epochs=1).predicted_cost()
        )


@pytest.mark.slow
def test_stopped_search_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    config = cells(flatness=0.2, alpha_noise=0.3, estimator=SGE(num_directions=2, smoothing=0.1), inner_steps=2)
    config.run(tmp_path / "whole", progress=False)
    for count in (1, 2):
        assert not config.run(tmp_path / "run", stop=stop_after(count), progress=False).finished
    config.run(tmp_path / "run", progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "word"), [({"flatness": -1.0}, ">= 0"), ({"flatness": 0.1, "precision": "bf16"}, "bf16")]
)
def test_unusable_flatness_is_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidValueError, match=word) as caught:
        module_search(**settings)
    assert caught.value.field == "flatness"
