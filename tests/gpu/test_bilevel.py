"""Estimators, solvers, Hessian-vector products and black boxes on a pretended GPU: the CPU's numbers in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from bilevel_cases import Case, close, draw, generator, nonlinear
from black_box_trainings import ALPHAS, decays, ridge
from pretended_gpu import CUDA, gpu_machine
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import (
    ESTIMATORS,
    SGE,
    BlackBoxProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    HypergradientResult,
    Implicit,
    Neumann,
    Shards,
    Unrolled,
)
from sgenas.bilevel.estimators.sge.directions import DIRECTIONS
from sgenas.bilevel.estimators.sge.estimator import COMPUTATIONS
from sgenas.bilevel.hvp import HVP, ROUTES
from sgenas.bilevel.linear_solvers import neumann
from sgenas.bilevel.solvers import SABA, SOBA, Minibatches, Solver
from sgenas.bilevel.test_problems import Quadratic
from sgenas.optim import SGD, Adam, AdamW, InnerOptimizer
from sgenas.tree import Tree

WAYS: dict[str, Estimator] = {
    "first-order": FirstOrder(),
    "finite-difference": FiniteDifference(),
    "unrolled truncated": Unrolled(truncate=1),
    "implicit": Implicit(partial(neumann, max_hvps=2, scale=0.1), 2),
    **{f"unrolled {route}": Unrolled(hvp=route) for route in ROUTES},
    **{f"neumann {route}": Neumann(2, hvp=route) for route in ROUTES},
    **{f"conjugate-gradient {route}": ConjugateGradient(2, damping=2.0, hvp=route) for route in ROUTES},
    **{f"evolution-strategies {kind}": EvolutionStrategies(2, directions=kind) for kind in DIRECTIONS},
    **{f"sge {kind}": SGE(4, directions=kind) for kind in DIRECTIONS},
    **{f"sge {way}": SGE(3, computation=way) for way in COMPUTATIONS},
    **{f"sge minus {name}": SGE(4, control_variate=name) for name in ESTIMATORS if not ESTIMATORS.get(name).draws},
    "sge chunk": SGE(3, computation="batched", chunk=2),
    "sge least-squares": SGE(3, aggregate="least-squares"),
    "sge least-squares minus unrolled": SGE(3, aggregate="least-squares", control_variate="unrolled"),
    "sge smoothing": SGE(2, "auto"),
    "sge central smoothing": SGE(2, "auto", "antithetic"),
}
OPTIMIZERS: dict[str, InnerOptimizer] = {
    "sgd": SGD(0.3),
    "clipped": SGD(0.3, 0.9, weight_decay=0.05, grad_clip=0.05),
    "nesterov": SGD(0.3, 0.9, nesterov=True),
    "adam": Adam(0.05, weight_decay=0.03, grad_clip=0.05),
    "adamw": AdamW(0.05, weight_decay=0.03),
}


def on_gpu(case: Case) -> Case:
    state = replace(case.state, **{name: there(getattr(case.state, name)) for name in ("weights", "slots")})
    return replace(case, alphas=there(case.alphas), state=state, inner=there(case.inner), outer=there(case.outer))


def there(values: Tree) -> Tree:
    return tree.map(lambda tensor: tensor.to(CUDA), values)


def here(values: Tree) -> Tree:
    assert all(tensor.device == CUDA for tensor in tree.tensors(values))
    return tree.map(lambda tensor: tensor.cpu(), values)


def assert_same(found: HypergradientResult, expected: HypergradientResult, tolerance: float = 1e-9) -> None:
    assert found.cost == expected.cost
    for name in ("grad", "direct", "indirect", "inner_losses", "outer_loss"):
        close(here(getattr(found, name)), getattr(expected, name), tolerance)
    close(here(found.state.weights), expected.state.weights, tolerance)
    close(here(found.state.slots), expected.state.slots, tolerance)
    assert found.diagnostics.keys() == expected.diagnostics.keys()
    for name, value in expected.diagnostics.items():
        torch.testing.assert_close(found.diagnostics[name].cpu(), value, rtol=1e-6, atol=1e-9)


def test_every_registered_estimator_has_a_row() -> None:
    assert {ESTIMATORS.get(name) for name in ESTIMATORS} <= {type(estimator) for estimator in WAYS.values()}


@pytest.mark.parametrize("name", WAYS)
def test_estimator_on_a_gpu_is_that_of_the_cpu(name: str) -> None:
    case = nonlinear(OPTIMIZERS["clipped"], 2, stacked=True)
    expected = case.estimate(WAYS[name])
    with gpu_machine():
        assert_same(on_gpu(case).estimate(WAYS[name]), expected, 1e-6 if "finite-difference" in name else 1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("estimator", [SGE(2, computation="sequential"), SGE(2, computation="batched"), Unrolled()])
def test_every_inner_optimizer_differentiates_on_a_gpu(optimizer: str, estimator: Estimator) -> None:
    case = nonlinear(OPTIMIZERS[optimizer], 2, stacked=True)
    expected = case.estimate(estimator)
    with gpu_machine():
        assert_same(on_gpu(case).estimate(estimator), expected)


@pytest.mark.parametrize("estimator", [FiniteDifference(), SGE(2, computation="batched"), Unrolled()])
def test_shards_of_a_batch_are_joined_on_a_gpu(estimator: Estimator) -> None:
    case = nonlinear(OPTIMIZERS["sgd"], 2, stacked=True)
    case = replace(case, problem=replace(case.problem, shards=Shards(2)))
    expected = case.estimate(estimator)
    with gpu_machine():
        assert_same(on_gpu(case).estimate(estimator), expected, 1e-8)


def test_the_result_moves_alphas_on_a_gpu() -> None:
    with gpu_machine():
        case = on_gpu(nonlinear(OPTIMIZERS["sgd"], 1))
        alphas = tree.leaves(case.alphas)
        result = case.estimate(SGE(2), alphas=alphas)
        result.backward()
        before = alphas["scale"].item()
        torch.optim.SGD(tree.tensors(alphas), lr=0.5).step()
        assert alphas["scale"].item() == pytest.approx(before - 0.5 * result.grad["scale"].item(), rel=1e-12)


@pytest.mark.parametrize("solver", [SOBA(0.4, 0.05), SABA(0.4, 0.05)], ids=lambda solver: type(solver).__name__)
def test_solver_on_a_gpu_takes_the_steps_of_the_cpu(solver: Solver) -> None:
    def run(toy: Quadratic, rows: list[Tensor]) -> tuple[Tree, Tree, Tree]:
        inner, outer = Minibatches(rows[:3], sizes=[1, 2, 3]), Minibatches(rows[3:])
        found = solver.run(toy.problem(SGD(0.1)), toy.weights, toy.alphas, inner, outer, steps=4)
        return found.weights, found.alphas, found.v

    toy, rows = Quadratic.random(generator(), rho=12.0), list(draw(5, 7, seed=7))
    expected = run(toy, rows)
    with gpu_machine():
        fields = {name: value for name, value in vars(toy).items() if name != "rho"}
        close(here(run(replace(toy, **there(fields)), there(rows))), expected, 1e-11)


def test_forward_and_reverse_products_agree_on_a_gpu() -> None:
    with gpu_machine():
        case = on_gpu(nonlinear(OPTIMIZERS["sgd"], 1))
        v = tree.map(torch.ones_like, case.state.weights)
        point = (case.problem, case.state.weights, case.alphas, case.inner[0])
        first, *others = (HVP(*point, route).both(v) for route in ROUTES if route != "finite-difference")
        for other in others:
            close(here(other), here(first), 1e-12)


def black_box_loss(weights: Tree, alphas: Tree, target: Tensor) -> Tensor:
    return (weights["w"] - target).square().sum() / 2 + decays(alphas).sum() / 10


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", [SGE(4, aggregate="least-squares"), EvolutionStrategies(2)])
def test_a_black_box_trains_on_the_cpu_for_alphas_on_a_gpu(estimator: Estimator, workers: int) -> None:
    def found(alphas: Tree, target: Tensor) -> HypergradientResult:
        problem = BlackBoxProblem(ridge, black_box_loss, workers=workers)
        return problem.hypergradient(alphas, target, estimator=estimator)

    target = draw(4, seed=3)
    expected = found(ALPHAS, target)
    with gpu_machine():
        result = found(there(ALPHAS), target.to(CUDA))
        for name in ("grad", "direct", "indirect", "outer_loss"):
            close(here(getattr(result, name)), getattr(expected, name), 1e-7)
        assert result.state.weights["w"].device == CUDA
