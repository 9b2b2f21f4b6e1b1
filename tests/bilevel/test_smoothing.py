"""mu chosen from the differences: near the best where that is known, and never by chance."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas.bilevel import SGD, SGE, BilevelProblem, sge
from sgenas.bilevel.directions import draw, gaussian
from sgenas.bilevel.projections import Perturbation
from sgenas.bilevel.smoothing import LADDER, best_step, choose, probes
from sgenas.bilevel.toy import WeightDecay
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.trees import Tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("bend", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("noise", [1e-8, 1e-6, 1e-4])
def test_the_step_balances_bend_and_noise(order: int, bend: float, noise: float) -> None:
    """Slopes off by bend h^order + noise / h: no step in reach is three times as good."""
    found = best_step([2.0 + bend * h**order + noise / h for h in LADDER], order)
    error = bend * found.smoothing**order + noise / found.smoothing
    smallest, largest = (step / 10 ** (1 / (order + 1)) for step in (LADDER[-2], LADDER[0]))
    best = min(max((noise / (order * bend)) ** (1 / (order + 1)), smallest), largest)
    assert error < 3 * (bend * best**order + noise / best)
    assert found.noise_floor > error / 3, "it must not claim to be better than it is"


@pytest.mark.parametrize("central", [True, False])
def test_slopes_are_taken_along_the_direction_and_against_it(central: bool) -> None:
    """Of 3 t + 5 t^2 + 7 t^3: 3 + 7 h^2 on both sides, 3 + 5 h + 7 h^2 on one."""

    def moved(task: Perturbation) -> Tensor:
        assert task.smoothing == 1.0
        t = torch.stack([direction["a"].sum() / 2 for direction in task.directions])
        return 3 * t + 5 * t**2 + 7 * t**3

    tree: Tree = {"a": torch.ones(2, dtype=torch.float64)}
    problem = BilevelProblem(lambda w, a, b: w["w"].sum(), lambda w, a, b: w["w"].sum(), SGD(0.1))
    start = problem.init({"w": torch.ones(1)})
    trajectory = problem.run(start, tree, [None])
    task = Perturbation(problem, start, tree, [], 9.0, [None], trajectory, trajectory.end.weights)
    found = choose(task, moved, tree, central=central)
    slopes = [3 + (0 if central else 5) * h + 7 * h**2 for h in LADDER]
    expected = best_step(slopes, 2 if central else 1)
    assert found.smoothing == pytest.approx(expected.smoothing)
    assert found.noise_floor == pytest.approx(expected.noise_floor, rel=1e-3)


def test_a_chance_agreement_of_two_noisy_steps_is_not_believed() -> None:
    slopes = [1.0 + 1e-3 * h + 1e-3 / h for h in LADDER]
    fooled = [*slopes[:4], slopes[3]]
    assert best_step(fooled, 1) == best_step(slopes, 1)
    assert best_step(slopes, 1).smoothing == pytest.approx(1 / math.sqrt(10))


def test_steps_that_are_not_finite_are_passed_over() -> None:
    nan, inf = float("nan"), float("inf")
    assert best_step([nan, inf, 1.0, 1.0, 3.0], 1).smoothing == pytest.approx(0.01 / math.sqrt(10))
    with pytest.raises(
        DivergenceError, match="SGE.smoothing 'auto' found no two neighbouring steps of 1.0, "
    ):
        best_step([1.0, nan, 1.0, inf, 1.0], 1)


SIZE = 15


def single(toy: WeightDecay) -> WeightDecay:
    return WeightDecay(
        toy.curvature.float(),
        toy.offset.float(),
        {name: tensor.float() for name, tensor in toy.weights.items()},
        {name: tensor.float() for name, tensor in toy.alphas.items()},
    )


class Case:
    """The decay problem in float32, 6 steps, and what its projections should be."""

    def __init__(self, seed: int) -> None:
        toy = WeightDecay.random(generator(seed), size=SIZE)
        self.inner, self.outer = torch.randn(2, SIZE, generator=generator(100 + seed), dtype=torch.float64)
        start = SGD(0.3).init(toy.weights)
        _, exact = toy.exact(SGD(0.3), start, 6, self.inner, self.outer)
        self.exact, self.toy = exact["log_decay"], single(toy)

    def run(self, **settings: Any) -> Any:
        problem = self.toy.problem(SGD(0.3))
        estimator = SGE(20, **settings)
        return estimator(
            problem,
            problem.init(self.toy.weights),
            self.toy.alphas,
            [self.inner.float()] * 6,
            self.outer.float(),
            generator=generator(),
        )

    def error(self, **settings: Any) -> float:
        """Of the estimate against the same average of exact projections: no sampling noise."""
        result = self.run(**settings)
        kind = settings.get("directions", "gaussian")
        u = draw(kind, 20, self.toy.alphas, generator()).matrix.double()
        expected = u.T @ (u @ self.exact) / 20
        return (result.indirect["log_decay"].double() - expected).norm().item()


GRID = [10.0 ** (-power / 2) for power in range(10)]


@pytest.mark.parametrize("kind", ["gaussian", "antithetic"])
@pytest.mark.parametrize("seed", range(6))
def test_in_float32_it_is_near_the_best_of_a_grid(kind: str, seed: int) -> None:
    case = Case(seed)
    errors = {mu: case.error(smoothing=mu, directions=kind) for mu in GRID}
    chosen = case.error(smoothing="auto", directions=kind)
    assert chosen < 8 * min(errors.values())
    assert chosen < 0.1 * max(errors[GRID[0]], errors[GRID[-1]]), "else any mu would do"


def test_it_is_reported_repeats_and_is_what_is_used() -> None:
    case = Case(0)
    first, second = case.run(smoothing="auto"), case.run(smoothing="auto")
    assert torch.equal(first.grad["log_decay"], second.grad["log_decay"])
    mu, floor = first.diagnostics["smoothing"].item(), first.diagnostics["noise_floor"].item()
    assert any(mu == pytest.approx(h / math.sqrt(10)) for h in LADDER[:-1])
    assert 0 < floor < 0.01 * first.diagnostics["projections"].abs().max()
    # float32 holds mu in the diagnostics, the estimate has it in double precision
    step = next(h / math.sqrt(10) for h in LADDER if mu == pytest.approx(h / math.sqrt(10)))
    fixed = case.run(smoothing=step)
    assert torch.equal(first.grad["log_decay"], fixed.grad["log_decay"])


@pytest.mark.parametrize("computation", ["loop", "streamed", "vectorised", "directional"])
def test_every_computation_chooses_alike(computation: str) -> None:
    def loss(weights: Tree, alphas: Tree, batch: None) -> Tensor:
        return (weights["w"] * alphas["a"].exp()).sin().sum()

    tree = {"w": torch.ones(3, dtype=torch.float64)}
    problem = BilevelProblem(loss, lambda w, a, batch: w["w"].square().sum(), SGD(0.1))
    found = [
        SGE(4, "auto", each)(
            problem, problem.init(tree), {"a": tree["w"]}, [None] * 2, None, generator=generator()
        )
        for each in ("loop", computation)
    ]
    torch.testing.assert_close(found[0].grad["a"], found[1].grad["a"], rtol=1e-6, atol=1e-9)
    assert torch.equal(found[0].diagnostics["smoothing"], found[1].diagnostics["smoothing"])


def test_jumps_of_the_gradient_ask_for_a_larger_step() -> None:
    """Kinks are noise to a difference, though the arithmetic is exact."""

    def chosen(roughness: float) -> float:
        def loss(weights: Tree, alphas: Tree, batch: None) -> Tensor:
            rough = roughness * (1e6 * alphas["a"]).sin()
            return (weights["w"] * (alphas["a"].exp() + rough)).sum()

        tree = {"w": torch.ones(5, dtype=torch.float64)}
        problem = BilevelProblem(loss, lambda w, a, batch: w["w"].square().sum(), SGD(0.1))
        result = SGE(2, "auto")(
            problem, problem.init(tree), {"a": 0.3 * tree["w"]}, [None], None, generator=generator()
        )
        return result.diagnostics["smoothing"].item()

    steps = [chosen(roughness) for roughness in (0.0, 1e-4, 1e-2)]
    assert steps[0] < steps[1] < steps[2]


def test_what_it_costs() -> None:
    assert probes(central=False) == 5
    assert probes(central=True) == 10
    assert SGE(4, "auto").cost(3) == SGE(9).cost(3)
    assert SGE(4, "auto", directions="antithetic").cost(3) == SGE(14).cost(3)


def test_bad_settings() -> None:
    with pytest.raises(InvalidValueError, match="SGE.smoothing must be a number or 'auto', got 'small'"):
        SGE(smoothing="small")


@pytest.mark.parametrize("blocks", ["joint", "table"])
def test_mu_is_chosen_along_a_direction_as_long_as_those_of_a_block(
    monkeypatch: pytest.MonkeyPatch, blocks: str
) -> None:
    alphas: Tree = {name: torch.ones(3, dtype=torch.float64) for name in ("first", "second")}
    problem = BilevelProblem(
        lambda w, a, b: (w["w"] - a["first"] - a["second"]).square().sum(),
        lambda w, a, b: w["w"].square().sum(),
        SGD(0.1),
    )
    state = problem.init({"w": torch.zeros(3, dtype=torch.float64)})
    seen: list[Tree] = []

    def choose_and_keep(task: Any, compute: Any, direction: Tree, *, central: bool) -> Any:
        seen.append(direction)
        return choose(task, compute, direction, central=central)

    monkeypatch.setattr(sge, "choose", choose_and_keep)
    SGE(3, "auto", blocks=blocks)(problem, state, alphas, [None], None, generator=generator(7))
    stream = generator(7)
    draw("gaussian", 3, alphas, stream, blocks)
    drawn = gaussian(1, alphas, stream)[0]
    factor = 1.0 if blocks == "joint" else 0.5**0.5
    for name, part in seen[0].items():
        torch.testing.assert_close(part, factor * drawn[name])
