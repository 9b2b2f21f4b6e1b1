"""Evolution strategies: the quadratic's objective is a quadratic in the alphas, so differences are known."""

import pytest
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import SGD, BilevelProblem, EvolutionStrategies, HypergradientResult
from sgenas.bilevel.averaging import average
from sgenas.bilevel.directions import draw as directions
from sgenas.bilevel.toy import Quadratic, WeightDecay
from sgenas.errors import InvalidValueError

OPTIMIZERS = [SGD(0.2), SGD(0.2, momentum=0.9, weight_decay=0.1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


class Case:
    """A quadratic problem in the middle of its optimisation."""

    def __init__(self, optimizer: SGD, steps: int) -> None:
        self.toy = Quadratic.random(generator())
        self.problem = self.toy.problem(optimizer)
        start = self.problem.init(self.toy.weights)
        self.state = self.problem.run(start, self.toy.alphas, list(draw(3, 7, seed=3))).end
        self.inner, self.outer = list(draw(steps, 7, seed=7)), draw(7, seed=8)
        self.direct, indirect = self.toy.exact(optimizer, self.state, self.inner, self.outer)
        self.exact = trees.flatten(trees.add(self.direct, indirect))

    def estimate(self, estimator: EvolutionStrategies, seed: int = 0) -> HypergradientResult:
        return estimator(
            self.problem, self.state, self.toy.alphas, self.inner, self.outer, generator=generator(seed)
        )

    def many(self, estimator: EvolutionStrategies, count: int) -> Tensor:
        return torch.stack([trees.flatten(self.estimate(estimator, seed).grad) for seed in range(count)])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_central_differences_of_a_quadratic_are_exact(optimizer: SGD, steps: int) -> None:
    """Pairs u, -u: (1/Q) sum <grad F, u> u, whatever mu is."""
    case = Case(optimizer, steps)
    result = case.estimate(EvolutionStrategies(6, 0.7, "antithetic"))
    u = directions("antithetic", 6, case.toy.alphas, generator()).matrix
    torch.testing.assert_close(trees.flatten(result.grad), u.T @ (u @ case.exact) / 6, rtol=1e-9, atol=1e-9)
    for name, tensor in case.direct.items():
        torch.testing.assert_close(result.direct[name], tensor, rtol=1e-10, atol=1e-10)
    for name, tensor in result.indirect.items():
        torch.testing.assert_close(tensor, result.grad[name] - case.direct[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_as_many_orthogonal_pairs_as_alphas_are_the_whole_gradient(optimizer: SGD) -> None:
    case = Case(optimizer, 3)
    near, far = (
        case.estimate(EvolutionStrategies(6, smoothing, "orthogonal")).diagnostics["projections"]
        for smoothing in (0.5, 1.0)
    )
    # F(alpha + mu u) = F + mu <g, u> + mu^2 c: two values of mu tell the slope from the bend
    u = directions("orthogonal", 6, case.toy.alphas, generator()).matrix
    slope = 2 * near - far
    torch.testing.assert_close(u.T @ slope / 6, case.exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("kind", "independent"), [("gaussian", 8), ("antithetic", 4)])
def test_is_unbiased_with_the_known_variance(kind: str, independent: int) -> None:
    """E ||grad - exact||^2 = (p + 1) / Q ||exact||^2, of the whole gradient; pairs count once."""
    case = Case(OPTIMIZERS[1], 1)
    draws = case.many(EvolutionStrategies(8, 1e-4, kind), 150)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - case.exact).abs() < 4 * error).all()
    assert (error < 0.15 * case.exact.norm()).all(), "else noise alone would pass"
    squared = (draws - case.exact).square().sum(1)
    expected = 7 / independent * case.exact.square().sum()
    assert abs(squared.mean() - expected) < 4 * squared.std() / len(draws) ** 0.5


@pytest.mark.parametrize(("kind", "ratio"), [("gaussian", 2), ("antithetic", 4)])
def test_error_of_a_difference_falls_as_mu_or_its_square(kind: str, ratio: float) -> None:
    toy = WeightDecay.random(generator())
    problem, inner, outer = toy.problem(SGD(0.3)), draw(4, seed=1), draw(4, seed=2)
    state = problem.init(toy.weights)
    _, exact = toy.exact(SGD(0.3), state, 6, inner, outer)
    u = directions(kind, 8, toy.alphas, generator()).matrix
    expected = u.T @ (u @ exact["log_decay"]) / 8
    errors = []
    for smoothing in (0.008, 0.004, 0.002):
        estimator = EvolutionStrategies(8, smoothing, kind)
        result = estimator(problem, state, toy.alphas, [inner] * 6, outer, generator=generator())
        errors.append((result.grad["log_decay"] - expected).norm().item())
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("kind", ["gaussian", "antithetic", "sphere", "orthogonal"])
def test_the_estimate_is_the_average_of_its_differences(kind: str) -> None:
    case = Case(SGD(0.2), 1)
    result = case.estimate(EvolutionStrategies(6, 0.1, kind))
    found = average(directions(kind, 6, case.toy.alphas, generator()), result.diagnostics["projections"])
    assert torch.equal(trees.flatten(result.grad), found.gradient)
    assert ("standard_error" in result.diagnostics) == (kind != "orthogonal")
    if found.variance is not None:
        assert torch.equal(result.diagnostics["standard_error"], found.variance.sqrt())


def test_the_outer_objective_needs_no_derivative() -> None:
    """A black box: what it computes leaves no graph behind."""
    case = Case(SGD(0.2), 2)

    def hidden(weights: trees.Tree, alphas: trees.Tree, batch: Tensor) -> Tensor:
        return case.problem.outer_loss(trees.detach(weights), trees.detach(alphas), batch)

    problem = BilevelProblem(case.problem.inner_loss, hidden, SGD(0.2))
    arguments = (case.state, case.toy.alphas, case.inner, case.outer)
    result = EvolutionStrategies(4)(problem, *arguments, generator=generator())
    shown = case.estimate(EvolutionStrategies(4))
    for name in shown.grad:
        assert torch.equal(result.grad[name], shown.grad[name])
        assert (result.direct[name] == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_directions": 0}, "EvolutionStrategies.num_directions must be >= 1, got 0"),
        ({"smoothing": 0.0}, "EvolutionStrategies.smoothing must be > 0 and finite, got 0.0"),
        ({"directions": "cube"}, "EvolutionStrategies.directions must be one of gaussian, .*, got 'cube'"),
        (
            {"num_directions": 3, "directions": "antithetic"},
            "EvolutionStrategies.num_directions must be even with antithetic directions, got 3",
        ),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        EvolutionStrategies(**settings)  # type: ignore[arg-type]


def test_needs_a_generator() -> None:
    case = Case(SGD(0.2), 1)
    with pytest.raises(InvalidValueError, match="EvolutionStrategies needs generator="):
        EvolutionStrategies()(case.problem, case.state, case.toy.alphas, case.inner, case.outer)
