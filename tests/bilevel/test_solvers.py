"""Stochastic bilevel algorithms against closed-form solutions in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from bilevel_cases import close, draw, equal, generator
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import BilevelProblem
from sgenas.bilevel.sharding import Shards
from sgenas.bilevel.solvers import SABA, SOBA, Minibatches, OracleCalls, Solver, SolverState
from sgenas.bilevel.solvers.base import joined
from sgenas.bilevel.solvers.single_loop import Table
from sgenas.bilevel.test_problems import Quadratic
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.optim import SGD
from sgenas.tree import Tree

Rows = tuple[Tensor, Tensor, Tensor]
SIZES = [2, 5, 9]


class LeastSquares:
    """Ridge regression on targets y + Z a in minibatches of unequal size, whose Hessians differ."""

    def __init__(self) -> None:
        self.x, self.z, self.y = 0.5 * draw(16, 3, seed=1), draw(16, 2, seed=2), draw(16, seed=3)
        self.x_outer, self.y_outer = draw(8, 3, seed=4), draw(8, seed=5)
        self.weights, self.alphas = {"head": draw(1, seed=6), "tail": draw(2, seed=7)}, draw(2, seed=8)
        self.problem = BilevelProblem(self.inner_loss, self.outer_loss, SGD(0.1))

    @staticmethod
    def inner_loss(weights: Tree, alphas: Tensor, batch: Rows) -> Tensor:
        x, z, y = batch
        w = torch.cat([weights["head"], weights["tail"]])
        return (x @ w - y - z @ alphas).square().mean() / 2 + 0.15 * w.square().sum()

    @staticmethod
    def outer_loss(weights: Tree, alphas: Tensor, batch: Rows) -> Tensor:
        x, y = batch[:2]
        w = torch.cat([weights["head"], weights["tail"]])
        return (x @ w - y).square().mean() / 2 + 0.5 * alphas.square().sum()

    def inner(self, sizes: list[int] = SIZES) -> Minibatches:
        parts = [tensor.split(sizes) for tensor in (self.x, self.z, self.y)]
        return Minibatches(list(zip(*parts, strict=True)), sizes=sizes, seed=1)

    def outer(self, count: int = 4) -> Minibatches:
        return Minibatches(list(zip(self.x_outer.chunk(count), self.y_outer.chunk(count), strict=True)), seed=2)

    def at(self, alphas: Tensor) -> SolverState:
        """w*(alphas), v*(alphas), alphas."""
        hessian = self.x.T @ self.x / 16 + 0.3 * torch.eye(3, dtype=torch.float64)
        w = torch.linalg.solve(hessian, self.x.T @ (self.y + self.z @ alphas) / 16)
        v = -torch.linalg.solve(hessian, self.x_outer.T @ (self.x_outer @ w - self.y_outer) / 8)
        return SolverState({"head": w[:1], "tail": w[1:]}, alphas, {"head": v[:1], "tail": v[1:]})

    def hypergradient(self, alphas: Tensor) -> Tensor:
        v = torch.cat(list(self.at(alphas).v.values()))
        return -self.z.T @ (self.x @ v) / 16 + alphas

    def optimum(self) -> SolverState:
        return self.at(zero_of(self.hypergradient, 2))


def zero_of(gradient: Any, size: int) -> Tensor:
    """The root of an affine function."""
    offset = gradient(torch.zeros(size, dtype=torch.float64))
    rows = [gradient(row) - offset for row in torch.eye(size, dtype=torch.float64)]
    return -torch.linalg.solve(torch.stack(rows, dim=1), offset)


def distance(state: SolverState, other: SolverState) -> float:
    return tree.norm(tree.subtract((state.weights, state.alphas), (other.weights, other.alphas))).item()


SOLVERS = [SOBA(0.4, 0.05, decay=0.0), SABA(0.4, 0.05)]
by_name = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)


@by_name
def test_full_batches_reach_the_optimum_of_nested_trees(solver: Solver) -> None:
    toy, inner, outer = Quadratic.random(generator(), rho=12.0), draw(7, seed=7), draw(7, seed=8)

    def gradient(vector: Tensor) -> Tensor:
        at = replace(toy, alphas=tree.unflatten(vector, toy.alphas))
        return tree.flatten(tree.add(*at.converged(SGD(0.1), inner, outer)))

    batches = Minibatches([inner]), Minibatches([outer])
    found = solver.run(toy.problem(SGD(0.1)), toy.weights, toy.alphas, *batches, steps=250)
    best = zero_of(gradient, 6)
    torch.testing.assert_close(tree.flatten(found.alphas), best, rtol=1e-8, atol=1e-8)
    w = torch.linalg.solve(toy.curvature, toy.coupling @ best + toy.offset + inner)
    torch.testing.assert_close(tree.flatten(found.weights), w, rtol=1e-8, atol=1e-8)


@by_name
def test_the_solution_is_a_fixed_point_on_full_batches(solver: Solver) -> None:
    case = LeastSquares()
    start = case.optimum()
    after = solver.step(case.problem, start, case.inner([16]), case.outer(1))
    close((after.weights, after.alphas), (start.weights, start.alphas), 1e-12)


def test_variance_reduction_converges_with_constant_steps_on_unequal_minibatches() -> None:
    case = LeastSquares()
    problem = (case.problem, case.weights, case.alphas)
    found = SABA(0.3, 0.4).run(*problem, case.inner(), case.outer(), steps=300)
    assert distance(found, case.optimum()) < 1e-9
    noisy = SOBA(0.3, 0.4, decay=0.0).run(*problem, case.inner(), case.outer(), steps=300)
    assert distance(noisy, case.optimum()) > 1e-3


def test_the_memory_of_saba_is_the_full_gradient_after_one_pass() -> None:
    case = LeastSquares()
    solver = SABA(1e-300, 1e-300)
    state = replace(solver.init(case.problem, case.weights, case.alphas), v=case.optimum().v)
    inner, outer = case.inner(), case.outer(3)
    for _ in range(3):
        state = solver.step(case.problem, state, inner, outer)
    whole = SABA().products(case.problem, state, case.inner([16]).batches[0])
    close(state.memory[0].mean, joined(*whole), 1e-12)
    _, *outer_whole = case.problem.outer_gradients(state.weights, state.alphas, (case.x_outer, case.y_outer))
    shares = [3 / 8, 3 / 8, 2 / 8]
    assert [len(part[1]) for part in outer.batches] == [3, 3, 2]
    unequal = sum(share * entry[0] for share, entry in zip(shares, state.memory[1].entries, strict=True))
    torch.testing.assert_close(unequal, outer_whole[0]["head"], rtol=1e-12, atol=1e-12)


@by_name
def test_estimates_are_unbiased_for_unequal_minibatches(solver: Solver) -> None:
    old, new, sizes = draw(3, 2), draw(3, 2, seed=1), [1, 3, 6]
    minibatches, shares = Minibatches([None] * 3, sizes=sizes), torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    memory = Table(tuple({0: row} for row in old), {0: shares @ old}) if isinstance(solver, SABA) else None
    found = [solver.mean({0: new[index]}, index, minibatches, memory) for index in range(3)]
    torch.testing.assert_close(torch.stack([estimate[0] for estimate, _ in found]).mean(0), shares @ new)
    for index, (_, after) in enumerate(found if memory else []):
        torch.testing.assert_close(after.mean[0], shares @ torch.stack([entry[0] for entry in after.entries if entry]))
        torch.testing.assert_close(after.entries[index], {0: new[index]})


def test_saba_on_one_full_batch_is_soba() -> None:
    case = LeastSquares()
    arguments = (case.problem, case.weights, case.alphas, case.inner([16]), case.outer(1))
    first, second = (solver.run(*arguments, steps=5) for solver in (SABA(0.2, 0.1), SOBA(0.2, 0.1, decay=0.0)))
    close((first.weights, first.v, first.alphas), (second.weights, second.v, second.alphas), 1e-12)


def test_step_sizes_fall_with_the_exponent() -> None:
    case = LeastSquares()
    state = replace(case.at(case.alphas), step=15)
    first = SOBA(0.4, 0.2).step(case.problem, state, case.inner([16]), case.outer(1))
    expected = case.alphas - 0.2 / 4 * case.hypergradient(case.alphas)
    torch.testing.assert_close(first.alphas, expected, rtol=1e-12, atol=1e-12)
    assert first.step == 16


@by_name
def test_calls_are_counted(solver: Solver) -> None:
    case = LeastSquares()
    seen = {"inner_loss": 0, "outer_loss": 0}

    def counted(name: str) -> Any:
        def loss(*arguments: Any) -> Tensor:
            seen[name] += 1
            found: Tensor = getattr(case, name)(*arguments)
            return found

        return loss

    problem = BilevelProblem(counted("inner_loss"), counted("outer_loss"), SGD(0.1))
    found = solver.run(problem, case.weights, case.alphas, case.inner(), case.outer(), steps=3)
    assert found.calls == OracleCalls(3, 3, 3, 3)
    assert found.calls.total == 12
    # products share the graph of the gradient; one pass measures its memory
    assert seen == {"inner_loss": 3 + 1, "outer_loss": 3}


@by_name
@pytest.mark.parametrize("route", ["forward", "finite-difference"])
def test_all_routes_of_second_derivatives_give_the_same_steps(solver: Solver, route: str) -> None:
    case = LeastSquares()
    problem = (case.problem, case.weights, case.alphas)
    first = solver.run(*problem, case.inner(), case.outer(), steps=3)
    second = replace(solver, hvp=route).run(*problem, case.inner(), case.outer(), steps=3)
    close((first.weights, first.v, first.alphas), (second.weights, second.v, second.alphas), 1e-7)


@by_name
def test_shards_of_a_batch_give_the_same_steps(solver: Solver) -> None:
    case, found = LeastSquares(), []
    for problem in (case.problem, replace(case.problem, shards=Shards(2))):
        state = solver.run(problem, case.weights, case.alphas, case.inner([8, 8]), case.outer(2), steps=3)
        found.append((state.weights, state.v, state.alphas))
    close(*found, 1e-12)


@by_name
def test_steps_have_no_side_effects(solver: Solver) -> None:
    case = LeastSquares()
    weights, alphas = tree.clone(case.weights), case.alphas.clone()
    state = solver.init(case.problem, case.weights, case.alphas)
    state = solver.step(case.problem, state, case.inner(), case.outer())
    kept = tree.clone((state.weights, state.v, state.alphas))
    first = solver.step(case.problem, state, case.inner(), case.outer())
    second = solver.step(case.problem, state, case.inner(), case.outer())
    assert equal((state.weights, state.v, state.alphas), kept)
    assert equal((first.weights, first.v, first.alphas), (second.weights, second.v, second.alphas))
    assert equal((case.weights, case.alphas), (weights, alphas))


def test_each_epoch_draws_every_minibatch_once() -> None:
    batches = Minibatches(list(range(7)), seed=3)
    epochs = [[batches.draw() for _ in range(7)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    again = Minibatches(list(range(7)), seed=3)
    assert [again.draw() for _ in range(7)] == epochs[0]


def test_a_callback_ends_a_run() -> None:
    case = LeastSquares()
    seen = []

    def callback(state: SolverState) -> bool:
        seen.append(state.step)
        return state.step == 3

    found = SOBA().run(
        *(case.problem, case.weights, case.alphas, case.inner(), case.outer()), steps=10, callback=callback
    )
    assert (seen, found.step) == ([1, 2, 3], 3)


def test_divergence_is_reported() -> None:
    case = LeastSquares()
    with pytest.raises(DivergenceError, match="outer_lr"):
        SOBA(1e6, 1e6).run(case.problem, case.weights, case.alphas, case.inner(), case.outer(), steps=100)


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        *((kind, {"lr": bad}, "lr") for kind in (SOBA, SABA) for bad in (0.0, -1.0, float("nan"), float("inf"))),
        (SABA, {"outer_lr": 0.0}, "outer_lr"),
        *((SOBA, {"decay": bad}, "decay") for bad in (-0.1, 1.1, float("nan"))),
        (SOBA, {"hvp": "backward"}, "hvp"),
    ],
)
def test_bad_settings_are_refused(kind: Any, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        kind(**settings)
    assert caught.value.field == f"{kind.__name__}.{name}"


@pytest.mark.parametrize(("batches", "sizes"), [([], None), ([1, 2], [1]), ([1, 2], [1, 0])])
def test_bad_minibatches_are_refused(batches: list[int], sizes: list[int] | None) -> None:
    with pytest.raises(InvalidValueError):
        Minibatches(batches, sizes=sizes)


def test_complex_weights_are_refused() -> None:
    problem = BilevelProblem(lambda w, a, b: (w - a).abs().sum(), lambda w, a, b: w.abs().sum(), SGD(0.1))
    with pytest.raises(InvalidValueError) as caught:
        SABA().init(problem, torch.zeros(2, dtype=torch.complex128), draw(2))
    assert caught.value.field == "weights"
