"""SGE's directions, control variates, aggregation and choice of mu: each verified in float64."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bilevel_cases import QuadraticCase, draw, generator, nonlinear
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import (
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Context,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Unrolled,
)
from sgenas.bilevel.estimators.sge.aggregation import _fitted, aggregate
from sgenas.bilevel.estimators.sge.directions import DIRECTIONS
from sgenas.bilevel.estimators.sge.directions import draw as directions
from sgenas.bilevel.estimators.sge.smoothing import LADDER, best_step, choose_smoothing, num_probes
from sgenas.bilevel.test_problems import WeightDecay
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.optim import SGD
from sgenas.tree import Tree

OPTIMIZER = SGD(0.2, momentum=0.9, weight_decay=0.1)
KINDS = tuple(DIRECTIONS)
SIX = {"a": torch.zeros(2, 2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}


@pytest.fixture(scope="module")
def case() -> QuadraticCase:
    return QuadraticCase(OPTIMIZER, 3)


@dataclass(frozen=True)
class Guess(Estimator):
    """Returns what it was given."""

    vector: Tensor

    def indirect_gradient(self, context: Context) -> Tree:
        return tree.unflatten(self.vector, context.alphas)


def many(case: QuadraticCase, sge: SGE, count: int = 400) -> Tensor:
    """Indirect gradients of ``count`` seeds (count, p), from the known projections of the quadratic."""
    guess = sge.control_variate
    baseline = None
    if guess is not None:
        baseline = tree.flatten(case.estimate(FiniteDifference() if isinstance(guess, str) else guess).indirect)
    found = []
    for seed in range(count):
        rows = directions(sge.directions, sge.num_directions, case.alphas, generator(seed))
        found.append(aggregate(rows, rows @ case.exact, sge.directions, baseline, sge.aggregate)[0])
    return torch.stack(found)


def squared_error(case: QuadraticCase, sge: SGE) -> float:
    """Relative MSE of the indirect gradient."""
    draws = many(case, sge)
    return ((draws - case.exact).square().sum(1).mean() / case.exact.square().sum()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aggregated", ["mean", "least-squares"])
@pytest.mark.parametrize("control_variate", [None, "finite-difference"])
def test_sge_aggregates_its_projections(
    kind: str, aggregated: str, control_variate: str | None, case: QuadraticCase
) -> None:
    """So that the statistics below may leave the passes out."""
    sge = SGE(4, 0.3, kind, control_variate, aggregated)
    found = torch.stack([tree.flatten(case.estimate(sge, seed).indirect) for seed in range(3)])
    torch.testing.assert_close(found, many(case, sge, 3), rtol=1e-7, atol=1e-8)


# -- directions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_directions_have_the_identity_as_second_moment(kind: str) -> None:
    rows = directions(kind, 6 * 2000, SIX, generator())
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(rows.T @ rows / len(rows), eye, rtol=0, atol=0.06)
    torch.testing.assert_close(rows.mean(0), 0 * eye[0], rtol=0, atol=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_directions_are_a_scaled_basis(dtype: torch.dtype) -> None:
    rows = directions("orthogonal", 7, torch.zeros(5, dtype=dtype), generator())
    assert rows.dtype == dtype
    torch.testing.assert_close(rows[:5] @ rows[:5].T, 5 * torch.eye(5, dtype=dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[5:] @ rows[5:].T, 5 * torch.eye(2, dtype=dtype), rtol=0, atol=1e-5)


def test_antithetic_directions_are_pairs() -> None:
    rows = directions("antithetic", 4, torch.zeros(9, dtype=torch.float64), generator())
    assert torch.equal(rows[0], -rows[1])
    assert torch.equal(rows[2], -rows[3])
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_unbiased(kind: str, case: QuadraticCase) -> None:
    draws = many(case, SGE(4, directions=kind), 400)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - case.exact).abs() < 4.5 * error).all()


def test_as_many_orthogonal_directions_as_alphas_are_exact(case: QuadraticCase) -> None:
    found = tree.flatten(case.estimate(SGE(case.size, directions="orthogonal")).indirect)
    torch.testing.assert_close(found, case.exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("kind", "error"), [("gaussian", 7 / 4), ("orthogonal", 2 / 4)])
def test_relative_mse_of_the_kinds(kind: str, error: float, case: QuadraticCase) -> None:
    """(p + 1) / Q for Gaussian directions, p / Q - 1 for orthogonal ones."""
    assert squared_error(case, SGE(4, directions=kind)) == pytest.approx(error, rel=0.2)


def test_standard_error_is_that_of_the_estimate(case: QuadraticCase) -> None:
    for kind, count in (("gaussian", 6), ("antithetic", 12)):
        estimator = SGE(count, directions=kind)
        claimed = []
        for seed in range(400):
            rows = directions(kind, count, case.alphas, generator(seed))
            claimed.append(aggregate(rows, rows @ case.exact, kind)[1]["standard_error"].square())
        real = many(case, estimator).var(0).sum()
        assert torch.stack(claimed).mean() == pytest.approx(real.item(), rel=0.15)
        found = case.estimate(estimator, 399).diagnostics["standard_error"].square()
        torch.testing.assert_close(found, claimed[-1], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("kind", "count"), [("gaussian", 1), ("antithetic", 2)])
def test_standard_error_of_one_direction_follows_from_its_distribution(kind: str, count: int) -> None:
    """Of <g, u> u: (p + 1) |g|^2."""
    g = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    rows = directions(kind, count * 10_000, g, generator()).reshape(-1, count, 4)
    found = torch.stack([aggregate(each, each @ g, kind)[1]["standard_error"].square() for each in rows])
    assert found.mean() == pytest.approx(5 * g.square().sum().item(), rel=0.05)


# -- control variates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 3.0, -0.5])
@pytest.mark.parametrize("how", ["mean", "least-squares"])
def test_a_proportional_baseline_leaves_no_variance(factor: float, how: str, case: QuadraticCase) -> None:
    estimator = SGE(4, control_variate=Guess(factor * case.exact), aggregate=how)
    result = case.estimate(estimator)
    torch.testing.assert_close(tree.flatten(result.indirect), case.exact, rtol=1e-7, atol=1e-7)
    assert result.diagnostics["coefficient"].item() == pytest.approx(1 / factor)
    assert how != "mean" or result.diagnostics["standard_error"] < 1e-6


@pytest.mark.parametrize(("kind", "count"), [("gaussian", 5), ("antithetic", 6)])
def test_any_baseline_leaves_the_estimate_unbiased(kind: str, count: int, case: QuadraticCase) -> None:
    wrong = Guess(torch.ones_like(case.exact))
    draws = many(case, SGE(count, directions=kind, control_variate=wrong), 800)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - case.exact).abs() < 4.5 * error).all()


def test_noise_scales_with_the_rest_of_a_good_baseline(case: QuadraticCase) -> None:
    noise = draw(case.size, seed=8)
    near = case.exact + 0.1 * case.exact.norm() * noise / noise.norm()
    assert squared_error(case, SGE(8, control_variate=Guess(near))) < squared_error(case, SGE(8)) / 30


def test_finite_difference_baseline_beats_plain_sge_at_equal_cost(case: QuadraticCase) -> None:
    plain, helped = SGE(8), SGE(7, control_variate="finite-difference")
    assert helped.cost(2) == plain.cost(2).__class__(19, 19, 16)
    assert plain.cost(2).forward == 19
    assert squared_error(case, helped) < 0.8 * squared_error(case, plain)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("finite-difference", FiniteDifference()),
        ("unrolled", Unrolled()),
        ("conjugate-gradient", ConjugateGradient()),
        ("first-order", FirstOrder()),
    ],
)
def test_a_control_variate_is_a_name_or_an_estimator(name: str, estimator: Estimator, case: QuadraticCase) -> None:
    by_name, by_object, by_hand = (
        case.estimate(SGE(4, control_variate=each))
        for each in (name, estimator, Guess(tree.flatten(case.estimate(estimator).indirect)))
    )
    assert torch.equal(tree.flatten(by_name.grad), tree.flatten(by_object.grad))
    torch.testing.assert_close(tree.flatten(by_name.grad), tree.flatten(by_hand.grad))
    assert "residual" not in by_name.diagnostics
    if name == "unrolled":
        torch.testing.assert_close(tree.flatten(by_name.indirect), case.exact, rtol=1e-7, atol=1e-7)
    if name == "first-order":
        torch.testing.assert_close(tree.flatten(by_name.grad), tree.flatten(case.estimate(SGE(4)).grad))


@pytest.mark.parametrize(
    "value",
    [
        *("memory", "sge", "finite_difference", "f", ""),
        *(("finite-difference",), SGE(2), EvolutionStrategies(2), FiniteDifference, 3),
    ],
    ids=str,
)
def test_anything_else_is_refused_as_a_control_variate(value: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        SGE(control_variate=value)
    assert caught.value.field == "SGE.control_variate"


@pytest.mark.parametrize("group", [1, 2])
def test_coefficients_are_fitted_without_their_own_direction(group: int) -> None:
    measured, products = draw(8), draw(8, 1, seed=1)
    found = _fitted(measured, products, group)
    again = _fitted(measured + 10 * torch.eye(8)[0], products, group)
    torch.testing.assert_close(again[:group], found[:group])
    assert not torch.allclose(again[group:], found[group:])
    solution = torch.linalg.lstsq(products[group:], measured[group:, None]).solution[:, 0]
    torch.testing.assert_close(found[0], solution)


def test_a_baseline_that_is_not_finite_is_named(case: QuadraticCase) -> None:
    with pytest.raises(DivergenceError, match="control variate"):
        case.estimate(SGE(4, control_variate=Guess(case.exact / 0)))


@pytest.mark.parametrize(("count", "kind"), [(1, "gaussian"), (3, "gaussian"), (3, "orthogonal"), (6, "antithetic")])
def test_too_few_directions_to_fit_take_the_baseline_as_it_is(count: int, kind: str, case: QuadraticCase) -> None:
    """From one or two independent ones the coefficient would have no mean, or no variance."""
    result = case.estimate(SGE(count, directions=kind, control_variate=Guess(case.exact)))
    assert result.diagnostics["coefficient"] == 1
    torch.testing.assert_close(tree.flatten(result.indirect), case.exact, rtol=1e-7, atol=1e-7)


# -- least squares ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_least_squares_explain_the_projections_and_no_more(kind: str, case: QuadraticCase) -> None:
    """<g, u_j> = s_j, and nothing outside the span of the directions; relative MSE 1 - Q / p."""
    estimator = SGE(4, directions=kind, aggregate="least-squares")
    result = case.estimate(estimator)
    rows, found = directions(kind, 4, case.alphas, generator()), tree.flatten(result.indirect)
    torch.testing.assert_close(rows @ found, result.diagnostics["projections"], rtol=1e-8, atol=1e-8)
    inside = torch.linalg.lstsq(rows.T, case.exact[:, None]).solution
    torch.testing.assert_close(found, (rows.T @ inside)[:, 0], rtol=1e-7, atol=1e-7)
    assert "standard_error" not in result.diagnostics
    assert squared_error(case, estimator) == pytest.approx(1 - 4 / case.size, rel=0.1)


@pytest.mark.parametrize(("kind", "count"), [("gaussian", 8), ("antithetic", 16)])
def test_least_squares_over_more_directions_than_alphas_are_exact(kind: str, count: int, case: QuadraticCase) -> None:
    result = case.estimate(SGE(count, directions=kind, aggregate="least-squares"))
    torch.testing.assert_close(tree.flatten(result.indirect), case.exact, rtol=1e-7, atol=1e-7)


def test_least_squares_start_from_the_baseline(case: QuadraticCase) -> None:
    """The error outside the directions is that of the scaled baseline."""
    noise = draw(case.size, seed=8)
    near = case.exact + 0.3 * case.exact.norm() * noise / noise.norm()
    helped = SGE(4, control_variate=Guess(near), aggregate="least-squares")
    for seed in range(20):
        found = case.estimate(helped, seed)
        guess = found.diagnostics["coefficient"] * near
        rows = directions("gaussian", 4, case.alphas, generator(seed))
        torch.testing.assert_close(rows @ tree.flatten(found.indirect), rows @ case.exact)
        error = (tree.flatten(found.indirect) - case.exact).norm()
        assert error <= (guess - case.exact).norm() + 1e-9
    assert squared_error(case, helped) < squared_error(case, SGE(4, control_variate=Guess(near)))


# -- mu ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("bend", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("noise", [1e-8, 1e-6, 1e-4])
def test_the_step_balances_curvature_and_noise(order: int, bend: float, noise: float) -> None:
    """Quotients off by bend h^order + noise / h: no step in reach is three times as good."""
    found = best_step([2.0 + bend * h**order + noise / h for h in LADDER], order)
    error = bend * found.smoothing**order + noise / found.smoothing
    smallest, largest = (step / 10 ** (1 / (order + 1)) for step in (LADDER[-2], LADDER[0]))
    best = min(max((noise / (order * bend)) ** (1 / (order + 1)), smallest), largest)
    assert error < 3 * (bend * best**order + noise / best)
    assert found.noise_floor > error / 3, "it must not claim to be better than it is"


@pytest.mark.parametrize("central", [True, False])
def test_quotients_are_taken_along_the_direction_and_against_it(central: bool) -> None:
    """Of 3 t + 5 t^2 + 7 t^3: 3 + 7 h^2 on both sides, 3 + 5 h + 7 h^2 on one."""
    seen: list[Any] = []

    def moved(task: Any) -> Tensor:
        assert task.smoothing == 1.0
        t = torch.stack([tree.flatten(tree.subtract(point, task.context.alphas)).mean() for point in task.points])
        return 3 * t + 5 * t**2 + 7 * t**3

    class Spy(SGE):
        def _projections(self, task: Any) -> Tensor:
            seen.append(task)
            return super()._projections(task)

    nonlinear(SGD(0.1), 1).estimate(Spy(2))
    ones = tree.map(torch.ones_like, seen[0].context.alphas)
    found = choose_smoothing(seen[0], moved, ones, central=central)
    expected = best_step([3 + (0 if central else 5) * h + 7 * h**2 for h in LADDER], 2 if central else 1)
    assert found.smoothing == pytest.approx(expected.smoothing)
    assert found.noise_floor == pytest.approx(expected.noise_floor, rel=1e-3)
    assert num_probes(central) == (10 if central else 5)


def test_a_chance_agreement_of_two_noisy_steps_is_not_believed() -> None:
    quotients = [1.0 + 1e-3 * h + 1e-3 / h for h in LADDER]
    assert best_step([*quotients[:4], quotients[3]], 1) == best_step(quotients, 1)
    assert best_step(quotients, 1).smoothing == pytest.approx(1 / math.sqrt(10))


def test_steps_that_are_not_finite_are_skipped() -> None:
    nan, inf = float("nan"), float("inf")
    assert best_step([nan, inf, 1.0, 1.0, 3.0], 1).smoothing == pytest.approx(0.01 / math.sqrt(10))
    with pytest.raises(DivergenceError, match="SGE.smoothing"):
        best_step([1.0, nan, 1.0, inf, 1.0], 1)


class Decay:
    """The decay problem in float32, 6 steps, and what its projections should be."""

    def __init__(self, seed: int) -> None:
        toy = WeightDecay.random(generator(seed), size=15)
        self.inner, self.outer = torch.randn(2, 15, generator=generator(100 + seed), dtype=torch.float64)
        _, exact = toy.exact(SGD(0.3), SGD(0.3).init(toy.weights), 6, self.inner, self.outer)
        self.exact = exact["log_decay"]
        self.toy = WeightDecay(
            *(tree.map(torch.Tensor.float, each) for each in (toy.curvature, toy.offset, toy.weights, toy.alphas))
        )

    def run(self, **settings: Any) -> Any:
        problem, inner = self.toy.problem(SGD(0.3)), [self.inner.float()] * 6
        state = problem.init(self.toy.weights)
        sge = SGE(20, computation="sequential", **settings)
        return sge(problem, state, self.toy.alphas, inner, self.outer.float(), seed=0)

    def error(self, **settings: Any) -> float:
        """Of the estimate against the same average of exact projections: no sampling noise."""
        u = directions(settings["directions"], 20, self.toy.alphas, generator()).double()
        expected = u.T @ (u @ self.exact) / 20
        return (self.run(**settings).indirect["log_decay"].double() - expected).norm().item()


@pytest.mark.parametrize("kind", ["gaussian", "antithetic"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_in_float32_mu_is_near_the_best_of_a_grid(kind: str, seed: int) -> None:
    decay, grid = Decay(seed), [10.0 ** (-power / 2) for power in range(10)]
    errors = {mu: decay.error(smoothing=mu, directions=kind) for mu in grid}
    chosen = decay.error(smoothing="auto", directions=kind)
    assert chosen < 8 * min(errors.values())
    assert chosen < 0.1 * max(errors[grid[0]], errors[grid[-1]]), "else any mu would do"


def test_the_chosen_mu_is_reported_and_used() -> None:
    result = Decay(0).run(smoothing="auto")
    mu, floor = result.diagnostics["smoothing"].item(), result.diagnostics["noise_floor"].item()
    assert 0 < floor < 0.01 * result.diagnostics["projections"].abs().max()
    # float32 holds mu in the diagnostics, the estimate has it in double precision
    step = next(h / math.sqrt(10) for h in LADDER[:-1] if mu == pytest.approx(h / math.sqrt(10)))
    assert torch.equal(result.grad["log_decay"], Decay(0).run(smoothing=step).grad["log_decay"])


def test_jumps_of_the_gradient_ask_for_a_larger_step() -> None:
    """Kinks are noise to a difference, though the arithmetic is exact."""

    def chosen(roughness: float) -> float:
        def loss(weights: Tree, alphas: Tree, batch: None) -> Tensor:
            return (weights * (alphas.exp() + roughness * (1e6 * alphas).sin())).sum()

        ones = torch.ones(5, dtype=torch.float64)
        problem = BilevelProblem(loss, lambda w, a, batch: w.square().sum(), SGD(0.1))
        result = SGE(2, "auto")(problem, problem.init(ones), 0.3 * ones, [None], None, seed=0)
        return result.diagnostics["smoothing"].item()

    steps = [chosen(roughness) for roughness in (0.0, 1e-4, 1e-2)]
    assert steps[0] < steps[1] < steps[2]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"num_directions": 0}, "num_directions"),
        ({"num_directions": 3, "directions": "antithetic"}, "num_directions"),
        ({"num_directions": 2.5}, "num_directions"),
        *(({"num_directions": bad}, "num_directions") for bad in ("many", "10")),
        ({"num_directions": "auto", "directions": "orthogonal"}, "num_directions"),
        ({"num_directions": "auto", "aggregate": "least-squares"}, "num_directions"),
        *(({"max_added_variance": bad}, "max_added_variance") for bad in (0.0, float("inf"), float("nan"))),
        ({"directions": "cube"}, "directions"),
        *(({"smoothing": bad}, "smoothing") for bad in (0.0, -1.0, float("inf"), float("nan"), "small", None)),
        ({"aggregate": "median"}, "aggregate"),
        ({"computation": "magic"}, "computation"),
        ({"computation": "batched", "chunk": 0}, "chunk"),
        ({"computation": "sequential", "chunk": 2}, "chunk"),
    ],
)
def test_bad_settings_name_the_field(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        SGE(**settings)
    assert caught.value.field == f"SGE.{field}"


def test_auto_directions_are_refused_outside_a_search(case: QuadraticCase) -> None:
    with pytest.raises(InvalidValueError) as caught:
        case.estimate(SGE("auto"))
    assert caught.value.field == "SGE.num_directions"


def test_a_similar_name_is_suggested() -> None:
    with pytest.raises(InvalidValueError, match="did you mean 'batched'"):
        SGE(computation="batchd")
