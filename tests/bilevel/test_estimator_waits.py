"""On a GPU an estimator waits once per call, and raises what it raises on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from bilevel_cases import Case, draw, nonlinear
from pretended_gpu import gpu_machine
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import (
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.estimators.base import Checks
from sgenas.bilevel.hvp import hessian_operator, largest_eigenvalue
from sgenas.bilevel.linear_solvers import conjugate_gradient
from sgenas.errors import DivergenceError
from sgenas.optim import SGD, InnerState, l2_coefficient

GPU = torch.device("cuda")
OPTIMIZER = SGD(0.3, 0.9, weight_decay=0.05, grad_clip=0.05)


def on_gpu(case: Case) -> Case:
    state = replace(case.state, **{name: tree.to(getattr(case.state, name), GPU) for name in ("weights", "slots")})
    moved = {name: tree.to(getattr(case, name), GPU) for name in ("alphas", "inner", "outer")}
    return replace(case, state=state, **moved)


@pytest.mark.parametrize(
    ("estimator", "waits"),
    [
        (FirstOrder(), 1),
        (FiniteDifference(), 1),
        (Unrolled(), 1),
        (Neumann(2), 1),
        (EvolutionStrategies(2), 1),
        (SGE(3, computation="sequential"), 1),
        (SGE(3, computation="batched"), 1),
        # what is fitted is copied with all that is checked, and fitted on the CPU
        (SGE(4, control_variate="finite-difference"), 1),
        (SGE(4, directions="orthogonal", aggregate="least-squares", control_variate="neumann"), 1),
        # the differences that choose mu are read before the directions are followed
        (SGE(2, "auto"), 2),
        # once per product
        (ConjugateGradient(2, damping=2.0), 3),
    ],
    ids=repr,
)
def test_an_estimator_waits_once_per_call(estimator: Estimator, waits: int) -> None:
    with gpu_machine() as machine:
        case = on_gpu(nonlinear(OPTIMIZER, 2, stacked=True))
        machine.reset()
        result = case.estimate(estimator)
        assert sum(machine.waits.values()) == waits, machine.waits
        assert all(value.device.type == "cuda" for value in tree.tensors((result.grad, result.indirect)))
        result.require_finite()
        assert sum(machine.waits.values()) == waits, "the estimator has looked"


def test_a_changed_hypergradient_is_looked_at() -> None:
    result = nonlinear(OPTIMIZER, 1).estimate(FirstOrder())
    result.require_finite()
    with pytest.raises(DivergenceError, match="hypergradient"):
        replace(result, grad=tree.scale(result.grad, float("nan"))).require_finite()


@pytest.mark.parametrize("estimator", [FirstOrder(), SGE(4, control_variate="first-order")], ids=repr)
def test_what_is_not_finite_is_named_on_a_gpu_too(estimator: Estimator) -> None:
    case = nonlinear(OPTIMIZER, 2)
    nan = torch.full_like(case.outer, float("nan"))
    with gpu_machine():
        case, nan = on_gpu(case), tree.to(nan, GPU)
        with pytest.raises(DivergenceError, match="^inner_loss is nan in inner step 2 of 2$"):
            case.estimate(estimator, inner=[case.inner[0], nan])
        with pytest.raises(DivergenceError, match="^outer_loss is nan after inner step 2$"):
            case.estimate(estimator, outer=nan)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_hypergradient_that_is_not_finite_is_refused(device: str) -> None:
    with gpu_machine():
        problem = BilevelProblem(lambda w, a, _: (w * a).sum(), lambda w, a, _: (w + (a - a).sqrt()).sum(), SGD(0.1))
        weights, alphas = (tree.to(draw(3, seed=seed), torch.device(device)) for seed in (0, 1))
        with pytest.raises(DivergenceError, match="hypergradient has 3 of 3"):
            FirstOrder()(problem, problem.init(weights), alphas, [None], None)


def test_checks_of_a_gpu_are_made_together_and_in_their_order() -> None:
    said = []

    def check(name: str) -> Callable[[], None]:
        return lambda: said.append(name)

    with gpu_machine() as machine:
        checks, good = Checks(), tree.to(torch.ones(2), GPU)
        checks.add(good, check("first"))
        checks.add(good / 0, check("second"))
        assert not said
        assert not machine.waits
        one, two = checks.settle(good, 3 * good.double()[None])
        assert said == ["first", "second"]
        assert sum(machine.waits.values()) == 1
        assert torch.equal(one, torch.ones(2))
        assert torch.equal(two, torch.full((1, 2), 3.0, dtype=torch.float64))
        checks.settle()
        assert sum(machine.waits.values()) == 1
    checks.add(torch.ones(2) / 0, check("at once"))
    assert said[-1] == "at once"


def test_solvers_and_eigenvalues_wait_for_their_products_alone() -> None:
    with gpu_machine() as machine:
        a = tree.to(torch.diag(torch.tensor([1.0, 2.0, 4.0])), GPU)
        b = tree.to(torch.ones(3), GPU)
        machine.reset()
        conjugate_gradient(lambda v: a @ v, b, max_hvps=3, tolerance=0.0)
        assert sum(machine.waits.values()) == 3
        machine.reset()
        products = Counted(hessian_operator(lambda v: v @ (a @ v), b))
        largest_eigenvalue(products, b)
        # ARPACK has vectors on the CPU: one to the GPU and one back, and the start
        assert sum(machine.waits.values()) == 2 * products.calls + 1
        machine.reset()
        l2_coefficient(Plain(), {"w": b})
        assert sum(machine.waits.values()) == 1


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Any) -> None:
        self._function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self._function(*arguments)


class Plain:
    """An optimizer without shortcuts."""

    def __init__(self) -> None:
        self._sgd = SGD(0.1, weight_decay=0.3)

    def init(self, weights: tree.Tree) -> InnerState:
        return self._sgd.init(weights)

    def step(self, state: InnerState, grad: tree.Tree) -> InnerState:
        return self._sgd.step(state, grad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_found_in_one_wait(bad: float) -> None:
    with gpu_machine() as machine:
        values: list[Tensor] = [torch.zeros(2, 3), torch.zeros(0), torch.tensor([1.0, bad]).double()]
        trees = {"weight": tree.to({"a": values[0], "empty": values[1]}, GPU), "alpha": tree.to(values[2], GPU)}
        machine.reset()
        tree.require_finite({"weight": trees["weight"]})
        assert sum(machine.waits.values()) == 1
        assert machine.launches < 6
        with pytest.raises(DivergenceError, match="^alpha has 1 of 2 entries"):
            tree.require_finite(trees)
    tree.require_finite({})
