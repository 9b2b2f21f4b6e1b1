"""Directions other than Gaussian ones, and control variates: each proven in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, Cost, FiniteDifference
from sgenas.bilevel.control_variates import Known, fitted
from sgenas.bilevel.directions import KINDS, draw
from sgenas.bilevel.toy import Quadratic
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

OPTIMIZER = SGD(0.2, momentum=0.9, weight_decay=0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Case:
    """A quadratic problem in the middle of its optimisation, N = 3."""

    def __init__(self) -> None:
        self.toy = Quadratic.random(generator())
        self.problem = self.toy.problem(OPTIMIZER)
        *self.inner, self.outer = torch.randn(4, 7, generator=generator(3), dtype=torch.float64)
        start = self.problem.init(self.toy.weights)
        self.state = self.problem.run(start, self.toy.alphas, self.inner).end
        self.direct, indirect = self.toy.exact(OPTIMIZER, self.state, self.inner, self.outer)
        self.exact, self.shape = trees.flatten(indirect), indirect
        self.size = len(self.exact)

    def estimate(self, estimator: SGE, seed: int = 0, memory: Tree | None = None) -> Any:
        return estimator(
            self.problem,
            self.state,
            self.toy.alphas,
            self.inner,
            self.outer,
            generator=generator(seed),
            memory=memory,
        )

    def many(self, estimator: SGE, count: int = 400, memory: Tree | None = None) -> Tensor:
        return torch.stack(
            [trees.flatten(self.estimate(estimator, seed, memory).indirect) for seed in range(count)]
        )

    def squared_error(self, estimator: SGE, memory: Tree | None = None) -> float:
        draws = self.many(estimator, memory=memory)
        return ((draws - self.exact).square().sum(1).mean() / self.exact.square().sum()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_directions_have_the_identity_as_second_moment(kind: str) -> None:
    alphas = {"a": torch.zeros(2, 2, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    rows = draw(kind, 6 * 2000, alphas, generator()).matrix
    moments = rows.T @ rows / len(rows)
    torch.testing.assert_close(moments, torch.eye(6, dtype=torch.float64), rtol=0, atol=0.06)
    torch.testing.assert_close(rows.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_directions_are_a_scaled_basis(dtype: torch.dtype) -> None:
    alphas = {"a": torch.zeros(5, dtype=dtype)}
    rows = draw("orthogonal", 7, alphas, generator()).matrix
    assert rows.dtype == dtype
    torch.testing.assert_close(rows[:5] @ rows[:5].T, 5 * torch.eye(5, dtype=dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[5:] @ rows[5:].T, 5 * torch.eye(2, dtype=dtype), rtol=0, atol=1e-5)


def test_sphere_and_antithetic_directions() -> None:
    alphas = {"a": torch.zeros(9, dtype=torch.float64)}
    rows = draw("sphere", 4, alphas, generator()).matrix
    torch.testing.assert_close(rows.norm(dim=1), torch.full((4,), 3.0, dtype=torch.float64))
    first, second, third, fourth = draw("antithetic", 4, alphas, generator()).trees(alphas)
    assert torch.equal(first["a"], -second["a"])
    assert torch.equal(third["a"], -fourth["a"])
    assert not torch.equal(first["a"], third["a"])


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_unbiased(kind: str) -> None:
    case = Case()
    draws = case.many(SGE(4, directions=kind))
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - case.exact).abs() < 4.5 * error).all()


def test_as_many_orthogonal_directions_as_alphas_are_exact() -> None:
    case = Case()
    found = trees.flatten(case.estimate(SGE(case.size, directions="orthogonal")).indirect)
    torch.testing.assert_close(found, case.exact, rtol=1e-8, atol=1e-8)


def test_variances_of_the_kinds() -> None:
    """(p + 1) / Q for Gaussian directions, (p - 1) / Q on the sphere, (p / Q - 1) for orthogonal ones."""
    case, count = Case(), 4
    size = case.size
    expected = {"gaussian": (size + 1) / count, "sphere": (size - 1) / count, "orthogonal": size / count - 1}
    for kind, value in expected.items():
        assert case.squared_error(SGE(count, directions=kind)) == pytest.approx(value, rel=0.2), kind


def curved(smoothing: float, kind: str, seed: int = 0) -> float:
    """Largest error of the projections of a problem that bends, <delta, v> of w' = w - lr exp(alpha)."""
    a, w = (torch.randn(3, generator=generator(part), dtype=torch.float64) for part in (1, 2))

    def inner_loss(weights: Tree, alphas: Tree, batch: None) -> Tensor:
        return (weights["w"] * alphas["a"].exp()).sum()

    def outer_loss(weights: Tree, alphas: Tree, batch: None) -> Tensor:
        return weights["w"].sum()

    problem = BilevelProblem(inner_loss, outer_loss, SGD(0.1))
    estimator = SGE(2, smoothing, directions=kind)
    result = estimator(problem, problem.init({"w": w}), {"a": a}, [None], None, generator=generator(seed))
    directions = draw(kind, 2, {"a": a}, generator(seed)).trees({"a": a})
    # the mean over the pair of s_j u_j against that of the exact projections
    exact = sum(-0.1 * (a.exp() * u["a"]).sum() * u["a"] for u in directions) / 2
    return (result.indirect["a"] - exact).norm().item()


def test_antithetic_pairs_make_the_error_quadratic_in_mu() -> None:
    assert curved(0.02, "gaussian") / curved(0.01, "gaussian") == pytest.approx(2, rel=0.1)
    assert curved(0.02, "antithetic") / curved(0.01, "antithetic") == pytest.approx(4, rel=0.1)


def test_an_exact_variate_leaves_no_variance() -> None:
    case = Case()
    exact = SGE(4, control_variate=(lambda known: case.shape,))
    for seed in range(5):
        result = case.estimate(exact, seed)
        found = trees.flatten(result.indirect)
        torch.testing.assert_close(found, case.exact, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(result.diagnostics["coefficients"], torch.ones(1, dtype=torch.float64))
    assert result.diagnostics["standard_error"] < 1e-6


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_the_coefficient_finds_the_scale(factor: float) -> None:
    case = Case()
    scaled = SGE(4, control_variate=(lambda known: trees.scale(case.shape, factor),))
    result = case.estimate(scaled)
    torch.testing.assert_close(trees.flatten(result.indirect), case.exact, rtol=1e-7, atol=1e-7)
    assert result.diagnostics["coefficients"].item() == pytest.approx(1 / factor)


@pytest.mark.parametrize(("kind", "count"), [("gaussian", 5), ("sphere", 5), ("antithetic", 6)])
def test_any_variate_leaves_the_estimate_unbiased(kind: str, count: int) -> None:
    """Even one that has nothing to do with the truth."""
    case = Case()
    wrong = {name: torch.ones_like(tensor) for name, tensor in case.shape.items()}
    draws = case.many(SGE(count, directions=kind, control_variate=(lambda known: wrong,)), 800)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - case.exact).abs() < 4.5 * error).all()


def test_a_good_guess_takes_the_noise_out() -> None:
    """The error scales with what the guess leaves over: here a tenth of the length."""
    case = Case()
    noise = torch.randn(case.size, generator=generator(8), dtype=torch.float64)
    near = case.exact + 0.1 * case.exact.norm() * noise / noise.norm()
    guess = trees.unflatten(near, case.shape)
    plain = case.squared_error(SGE(8))
    helped = case.squared_error(SGE(8, control_variate=("memory",)), memory=guess)
    assert helped < plain / 30


def test_finite_difference_variate_beats_plain_sge_at_equal_cost() -> None:
    case = Case()
    plain, helped = SGE(8), SGE(7, control_variate=("finite-difference",))
    assert helped.cost(2) == Cost(19, 19, 16)
    assert plain.cost(2).forward == 19
    assert case.squared_error(helped) < 0.8 * case.squared_error(plain)


def test_one_sided_variate_is_the_one_sided_difference() -> None:
    """The same guess handed over by hand gives the same estimate."""
    case = Case()
    guess = FiniteDifference(one_sided=True)(
        case.problem, case.state, case.toy.alphas, case.inner, case.outer
    ).indirect
    named = case.estimate(SGE(4, control_variate=("one-sided",)))
    by_hand = case.estimate(SGE(4, control_variate=("memory",)), memory=guess)
    torch.testing.assert_close(trees.flatten(named.grad), trees.flatten(by_hand.grad))
    halves = SGE(4, control_variate=("one-sided",), batch_fraction=0.5).cost(2)
    assert halves.forward == 3 + 0.5 * (8 + 1 + 2)


def test_two_variates_at_once() -> None:
    case = Case()
    first, second = (
        trees.unflatten(part, case.shape) for part in (case.exact.clone(), torch.ones_like(case.exact))
    )
    mixed = trees.add(first, second)  # the truth is the difference of the guesses
    estimator = SGE(6, control_variate=(lambda known: mixed, lambda known: second))
    result = case.estimate(estimator)
    torch.testing.assert_close(trees.flatten(result.indirect), case.exact, rtol=1e-6, atol=1e-6)
    wanted = torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(result.diagnostics["coefficients"], wanted, rtol=1e-5, atol=1e-5)


def test_memory_at_the_first_step_is_plain() -> None:
    case = Case()
    first = case.estimate(SGE(4, control_variate=("memory",)))
    assert torch.equal(trees.flatten(first.grad), trees.flatten(case.estimate(SGE(4)).grad))


def test_coefficients_are_fitted_without_the_own_direction() -> None:
    measured = torch.randn(6, generator=generator(), dtype=torch.float64)
    products = torch.randn(6, 2, generator=generator(1), dtype=torch.float64)
    for group in (1, 2):
        found = fitted(measured, products, group)
        changed = measured.clone()
        changed[0] += 10.0
        again = fitted(changed, products, group)
        torch.testing.assert_close(again[:group], found[:group])
        assert not torch.allclose(again[group:], found[group:])
        solution = torch.linalg.lstsq(products[group:], measured[group:, None]).solution[:, 0]
        torch.testing.assert_close(found[0], solution)


def test_too_few_directions_to_fit_take_the_guess_as_it_is() -> None:
    found = fitted(torch.ones(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64), 1)
    assert (found == 0.5).all()
    case = Case()
    result = case.estimate(SGE(1, control_variate=(lambda known: case.shape,)))
    torch.testing.assert_close(trees.flatten(result.indirect), case.exact, rtol=1e-7, atol=1e-7)


def test_standard_error_is_that_of_the_estimate() -> None:
    case = Case()
    for kind, count in (("gaussian", 6), ("antithetic", 12)):
        estimator = SGE(count, directions=kind)
        claimed = [case.estimate(estimator, seed).diagnostics["standard_error"] for seed in range(400)]
        real = case.many(estimator).var(0).sum()
        assert torch.stack(claimed).square().mean() == pytest.approx(real.item(), rel=0.15)
    assert "standard_error" not in case.estimate(SGE(1)).diagnostics


def test_least_squares_explain_what_was_measured_and_no_more() -> None:
    """<g, u_j> = s_j, and nothing outside of the span of the directions."""
    case = Case()
    for kind in ("gaussian", "sphere", "orthogonal"):
        result = case.estimate(SGE(4, directions=kind, combine="least-squares"))
        rows = draw(kind, 4, case.toy.alphas, generator()).matrix
        found = trees.flatten(result.indirect)
        torch.testing.assert_close(rows @ found, result.diagnostics["projections"], rtol=1e-8, atol=1e-8)
        inside = torch.linalg.lstsq(rows.T, case.exact[:, None]).solution
        torch.testing.assert_close(found, (rows.T @ inside)[:, 0], rtol=1e-7, atol=1e-7)
        assert "standard_error" not in result.diagnostics


@pytest.mark.parametrize(("kind", "count"), [("gaussian", 8), ("sphere", 8), ("antithetic", 16)])
def test_least_squares_over_more_directions_than_alphas_are_exact(kind: str, count: int) -> None:
    case = Case()
    result = case.estimate(SGE(count, directions=kind, combine="least-squares"))
    torch.testing.assert_close(trees.flatten(result.indirect), case.exact, rtol=1e-7, atol=1e-7)


def test_error_of_least_squares() -> None:
    """1 - Q / p; 1 / 3 with Q = 4 of p = 6, where the mean has 7 / 4."""
    case = Case()
    for kind in ("gaussian", "sphere", "orthogonal"):
        found = case.squared_error(SGE(4, directions=kind, combine="least-squares"))
        assert found == pytest.approx(1 - 4 / case.size, rel=0.1), kind


def test_least_squares_of_blocks_stay_in_their_blocks() -> None:
    case = Case()
    sizes = [alpha.numel() for alpha in case.toy.alphas.values()]
    exact = case.estimate(SGE(12, directions="orthogonal", blocks="table", combine="least-squares"))
    torch.testing.assert_close(trees.flatten(exact.indirect), case.exact, rtol=1e-7, atol=1e-7)
    found = case.estimate(SGE(3, blocks="table", combine="least-squares"))
    # one direction a table: along it, the length of the measured part
    for rows, part in zip(
        draw("gaussian", 3, case.toy.alphas, generator(), "table").matrix.split(1),
        trees.flatten(found.indirect).split(sizes),
        strict=True,
    ):
        own = rows[0][rows[0] != 0]
        torch.testing.assert_close(part / part.norm(), own / own.norm() * torch.sign(part @ own))


def test_least_squares_go_from_the_guess() -> None:
    """An exact one is kept, and of any other the error outside of the directions is what is left."""
    case = Case()
    exact = case.estimate(
        SGE(4, control_variate=(lambda known: trees.scale(case.shape, 3.0),), combine="least-squares")
    )
    torch.testing.assert_close(trees.flatten(exact.indirect), case.exact, rtol=1e-7, atol=1e-7)
    assert exact.diagnostics["coefficients"].item() == pytest.approx(1 / 3)
    noise = torch.randn(case.size, generator=generator(8), dtype=torch.float64)
    near = trees.unflatten(case.exact + 0.3 * case.exact.norm() * noise / noise.norm(), case.shape)
    helped = SGE(4, control_variate=("memory",), combine="least-squares")
    for seed in range(20):
        found = case.estimate(helped, seed, near)
        guess = found.diagnostics["coefficients"].item() * trees.flatten(near)
        rows = draw("gaussian", 4, case.toy.alphas, generator(seed)).matrix
        torch.testing.assert_close(rows @ trees.flatten(found.indirect), rows @ case.exact)
        error = (trees.flatten(found.indirect) - case.exact).norm()
        assert error <= (guess - case.exact).norm() + 1e-9
    plain = case.squared_error(SGE(4, control_variate=("memory",)), near)
    assert case.squared_error(helped, near) < plain


def test_variates_see_what_is_known() -> None:
    case, seen = Case(), []

    def look(known: Known) -> Tree:
        seen.append(known)
        return case.shape

    case.estimate(SGE(3, control_variate=(look,)), memory=case.shape)
    (known,) = seen
    assert known.memory is case.shape
    assert len(known.batches) == 3
    expected = case.problem.run(case.state, case.toy.alphas, case.inner).end.weights
    for name, tensor in known.trajectory.end.weights.items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGE(directions="cube"), "SGE.directions must be one of gaussian, .*, got 'cube'"),
        (lambda: SGE(3, directions="antithetic"), "SGE.num_directions must be even .*, got 3"),
        (lambda: SGE(combine="sum"), "SGE.combine must be one of mean, least-squares, got 'sum'"),
        (
            lambda: SGE(control_variate=("magic",)),
            "SGE.control_variate must be among finite-difference, one-sided, memory, got 'magic'",
        ),
        (
            lambda: SGE(control_variate=("one-sided", "finite-difference")),
            "SGE.control_variate must have one of finite-difference and one-sided, got both",
        ),
        (
            lambda: Case().estimate(SGE(2, control_variate=(lambda known: {"x": torch.zeros(1)},))),
            "control_variate must be shaped as the alphas",
        ),
        (
            lambda: draw("antithetic", 3, {"a": torch.zeros(2)}, generator()),
            "num_directions must be even",
        ),
    ],
)
def test_bad_input(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make()
