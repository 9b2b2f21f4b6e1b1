"""What holds for every estimator: costs, purity, structure of the alphas, seeds, and refused input."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from bilevel_cases import ALPHAS, PassCounter, QuadraticCase, close, draw, equal, generator, nonlinear
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import (
    ESTIMATORS,
    SGE,
    BilevelProblem,
    ConjugateGradient,
    Context,
    Cost,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    HypergradientResult,
    InnerState,
    Neumann,
    Unrolled,
)
from sgenas.errors import DivergenceError, InvalidValueError, SgenasError
from sgenas.optim import SGD, Adam, InnerOptimizer
from sgenas.tree import Tree

COSTS: list[tuple[Estimator, Callable[[int], Cost]]] = [
    (FirstOrder(), lambda n: Cost(n + 1, n + 1, n)),
    (FiniteDifference(), lambda n: Cost(n + 3, n + 3, n)),
    (SGE(3), lambda n: Cost(4 * n + 1, 4 * n + 1, 4 * n)),
    (SGE(4, "auto", "antithetic"), lambda n: Cost(15 * n + 1, 15 * n + 1, 15 * n)),
    (SGE(3, control_variate="finite-difference"), lambda n: Cost(4 * n + 3, 4 * n + 3, 4 * n)),
    (SGE(3, control_variate=Unrolled(hvp="forward")), lambda n: Cost(6 * n + 1, 6 * n + 1, 4 * n)),
    (Unrolled(hvp="forward"), lambda n: Cost(3 * n + 1, 3 * n + 1, n)),
    (Unrolled(1, "finite-difference"), lambda n: Cost(n + 3, n + 3, n)),
    (Neumann(2, hvp="forward"), lambda n: Cost(n + 7, n + 7, n)),
    (Neumann(2, hvp="finite-difference"), lambda n: Cost(n + 7, n + 7, n)),
    (ConjugateGradient(2, hvp="forward"), lambda n: Cost(n + 7, n + 7, n)),
    (EvolutionStrategies(3), lambda n: Cost(4 * n + 4, 4 * n + 1, 4 * n)),
]
every = pytest.mark.parametrize("estimator", [each for each, _ in COSTS], ids=lambda e: type(e).__name__)
HEAVY = SGD(0.2, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize(("estimator", "cost"), COSTS, ids=lambda e: getattr(type(e), "__name__", ""))
@pytest.mark.parametrize("steps", [1, 3])
def test_cost_is_what_was_really_spent(estimator: Estimator, cost: Callable[[int], Cost], steps: int) -> None:
    case, counter = QuadraticCase(HEAVY, steps), PassCounter()
    problem = counter.problem(case.problem)
    # the first call also finds out how much memory a pass takes
    assert case.estimate(estimator, problem=problem).cost == cost(steps)
    counter.forward = counter.backward = 0
    result = case.estimate(estimator, problem=problem)
    assert result.cost == cost(steps) == estimator.cost(steps)
    assert (result.cost.forward, result.cost.backward) == (counter.forward, counter.backward)


@pytest.mark.parametrize("hvp", ["auto", "reverse"])
@pytest.mark.parametrize("steps", [1, 3])
def test_double_backward_costs_a_pass_for_a_graph_and_two_for_a_product(hvp: str, steps: int) -> None:
    """Unrolled has the graphs from the inner steps."""
    case, counter = QuadraticCase(HEAVY, steps), PassCounter()
    problem = counter.problem(case.problem)
    for estimator, passes in ((Unrolled(hvp=hvp), 3 * steps + 1), (Neumann(2, hvp=hvp), steps + 8)):
        case.estimate(estimator, problem=problem)
        counter.forward = counter.backward = 0
        result = case.estimate(estimator, problem=problem)
        assert result.cost == Cost(passes, passes, steps)
        assert result.cost.forward <= estimator.cost(steps).forward
        built = steps + 1 + isinstance(estimator, Neumann)
        assert counter.forward == counter.backward == built


def test_the_cost_of_a_solver_that_stops_early_is_below_the_prediction() -> None:
    case, counter = QuadraticCase(HEAVY, 3), PassCounter()
    estimator = ConjugateGradient(7, 0.3, hvp="forward")
    problem = counter.problem(case.problem)
    # the first call also finds out whether forward mode is right
    case.estimate(estimator, problem=problem)
    counter.forward = counter.backward = 0
    result = case.estimate(estimator, problem=problem)
    assert (result.cost.forward, result.cost.backward) == (counter.forward, counter.backward)
    assert result.cost.forward < estimator.cost(3).forward


@every
def test_state_is_the_unperturbed_trajectory(estimator: Estimator) -> None:
    case = nonlinear(HEAVY, 3)
    end = case.problem.run(case.state, case.alphas, case.inner)
    result = case.estimate(estimator)
    assert result.state.step == case.state.step + 3
    assert equal(result.state.weights, end.end.weights)
    assert equal(result.state.slots, end.end.slots)
    assert [float(loss) for loss in result.inner_losses] == [float(loss) for loss in end.losses]
    expected = case.problem.outer_loss(result.state.weights, case.alphas, case.outer)
    torch.testing.assert_close(result.outer_loss, expected)


@every
def test_there_are_no_side_effects(estimator: Estimator) -> None:
    case = nonlinear(Adam(0.05), 2)
    given = [case.state.weights, case.state.slots, case.alphas, case.inner, case.outer]
    case.alphas["scale"].requires_grad_()
    before, rng = tree.clone(given), torch.get_rng_state()
    try:
        result = case.estimate(estimator)
        assert equal(given, before)
        assert all(tensor.grad is None for tensor in tree.tensors(given))
        assert torch.equal(torch.get_rng_state(), rng)
        parts = [result.grad, result.direct, result.indirect, result.state.weights, result.state.slots]
        assert not any(tensor.requires_grad for tensor in tree.tensors(parts))
        assert not result.outer_loss.requires_grad
        assert case.problem.counter.total == replace(case.problem).counter.total
    finally:
        case.alphas["scale"].requires_grad_(False)


@every
def test_it_repeats_with_the_seed(estimator: Estimator) -> None:
    case = nonlinear(HEAVY, 2)
    first, second, other = (case.estimate(estimator, seed) for seed in (0, 0, 1))
    assert equal(first.grad, second.grad)
    assert equal(first.grad, other.grad) != estimator.draws
    by_seed = estimator(case.problem, case.state, case.alphas, case.inner, case.outer, seed=1)
    assert equal(by_seed.grad, other.grad)


@every
def test_surroundings_do_not_matter(estimator: Estimator) -> None:
    """torch.no_grad around the call, or a state whose tensors require gradients."""
    case = nonlinear(HEAVY, 2)
    plain = case.estimate(estimator)
    with torch.no_grad():
        silent = case.estimate(estimator)
    state = replace(case.state, weights=tree.leaves(case.state.weights), slots=tree.leaves(case.state.slots))
    live = case.estimate(estimator, state=state)
    for result in (silent, live):
        assert equal(result.grad, plain.grad)
        parts = [result.grad, result.state.weights, result.state.slots, list(result.diagnostics.values())]
        assert not any(tensor.requires_grad for tensor in tree.tensors(parts))
    with torch.inference_mode():
        fails(InvalidValueError, "inference_mode", lambda: case.estimate(estimator))


@pytest.mark.parametrize("estimator", [FiniteDifference(), SGE(4), SGE(4, computation="batched"), Unrolled()], ids=str)
@pytest.mark.parametrize("optimizer", [SGD(0.1, 0.9, grad_clip=0.5), Adam(0.1)], ids=str)
def test_weights_of_two_dtypes_and_without_entries(estimator: Estimator, optimizer: InnerOptimizer) -> None:
    """float32 and float64 side by side: close to all in float64, and every tensor keeps its dtype."""
    weights = {"short": draw(3), "long": draw(seed=1), "none": draw(0)}
    alphas = {"a": draw(3, seed=2), "none": draw(0)}

    def inner(w: Tree, a: Tree, batch: Tensor) -> Tensor:
        assert w["short"].dtype == batch.dtype
        return (w["short"].square() * a["a"].exp() - batch * w["short"]).sum().double() + w["long"].sin() * a["a"][0]

    problem, results = BilevelProblem(inner, lambda w, a, b: w["short"].sin().sum() * w["long"], optimizer), []
    for dtype in (torch.float32, torch.float64):
        state = problem.init({**weights, "short": weights["short"].to(dtype)})
        inner_batches = [draw(3, seed=seed).to(dtype) for seed in (4, 5)]
        results.append(estimator(problem, state, alphas, inner_batches, None, seed=0))
    assert results[0].state.weights["short"].dtype == torch.float32
    torch.testing.assert_close(results[0].grad, results[1].grad, rtol=2e-2, atol=1e-3)


@every
def test_the_parts_make_the_whole(estimator: Estimator) -> None:
    case = nonlinear(HEAVY, 2)
    result = case.estimate(estimator)
    close(tree.add(result.direct, result.indirect), result.grad)
    direct, indirect = tree.norm(result.direct).square(), tree.norm(result.indirect).square()
    assert isinstance(estimator, FirstOrder) == (direct / (direct + indirect) == 1)
    assert result.direct["no"] == 0
    assert estimator.draws or result.grad["no"] == 0, "no loss uses it"


@every
def test_alphas_may_be_a_bare_tensor_and_weights_a_list(estimator: Estimator) -> None:
    """The same numbers as from dicts."""

    def pair(optimizer: SGD, plain: bool) -> HypergradientResult:
        w, a = draw(3, seed=1), draw(3, seed=2)

        def inner(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
            w, a = (weights[0], alphas) if plain else (weights["w"], alphas["a"])
            return (w.square() * a.exp() + batch * w).sum()

        def outer(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
            w, a = (weights[0], alphas) if plain else (weights["w"], alphas["a"])
            return (w - batch).square().sum() + 0.1 * (a * w).sum()

        problem = BilevelProblem(inner, outer, optimizer)
        state = problem.init([w] if plain else {"w": w})
        return estimator(problem, state, a if plain else {"a": a}, [a, w], w + a, seed=0)

    bare, named = (pair(HEAVY, plain) for plain in (True, False))
    assert torch.equal(bare.grad, named.grad["a"])
    assert torch.equal(bare.indirect, named.indirect["a"])
    assert torch.equal(bare.state.weights[0], named.state.weights["w"])


@every
def test_backward_adds_to_the_grad_of_what_was_passed(estimator: Estimator) -> None:
    case = nonlinear(HEAVY, 1)
    leaves = tree.leaves(case.alphas)
    plain, recorded = case.estimate(estimator), case.estimate(estimator, alphas=leaves)
    assert equal(plain.grad, recorded.grad), "whether the alphas record a graph changes nothing"
    for _ in range(2):
        recorded.backward()
    close(tree.map(lambda leaf: leaf.grad, leaves), tree.scale(plain.grad, 2.0))

    silent = tree.clone(case.alphas)
    case.estimate(estimator, alphas=silent).backward()
    close(tree.map(lambda leaf: leaf.grad, silent), plain.grad)

    computed = tree.leaves(case.alphas)
    case.estimate(estimator, alphas=tree.scale(computed, 1.0)).backward()
    close(tree.map(lambda leaf: leaf.grad, computed), plain.grad)


def fails(kind: type[SgenasError], text: str, call: Callable[[], Any], field: str | None = None) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
    if field is not None:
        assert getattr(caught.value, "field", None) == field


@every
def test_unsuitable_arguments_are_refused(estimator: Estimator) -> None:
    case, invalid = nonlinear(HEAVY, 2), InvalidValueError
    fails(invalid, "at least 1 batch", lambda: case.estimate(estimator, inner=[]), "inner_batches")
    whole = {**ALPHAS, "no": torch.tensor([1])}
    fails(invalid, "'no' of torch.int64", lambda: case.estimate(estimator, alphas=whole), "alphas")
    fails(invalid, "at least one tensor", lambda: case.estimate(estimator, alphas={}), "alphas")
    short = {"momentum": tree.map(lambda t: t.flatten()[:1], case.state.weights)}
    for slots in ({}, short):  # sums of other shapes would pass by broadcasting
        state = InnerState(case.state.weights, slots)
        fails(invalid, "momentum", lambda state=state: case.estimate(estimator, state=state), "state.slots")

    def changing(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        loss = case.problem.inner_loss(weights, alphas, batch)
        return loss[None] if batch is case.inner[1] else loss

    problem = replace(case.problem, inner_loss=changing)
    fails(invalid, r"0-d tensor, got \(1,\)", lambda: case.estimate(estimator, problem=problem), "inner_loss")
    arguments = (case.problem, case.state, case.alphas, case.inner, case.outer)
    fails(invalid, "not both", lambda: estimator(*arguments, generator=generator(), seed=0), "seed")
    if estimator.draws:
        fails(invalid, "generator= or seed=", lambda: estimator(*arguments), "generator")
    else:
        estimator(*arguments)


@every
def test_a_loss_that_is_not_finite_is_named_with_its_step(estimator: Estimator) -> None:
    case = nonlinear(HEAVY, 3)
    nan = torch.full_like(case.outer, float("nan"))
    inner = [case.inner[0], nan, case.inner[2]]
    fails(DivergenceError, "^inner_loss is nan in inner step 2 of 3$", lambda: case.estimate(estimator, inner=inner))
    fails(DivergenceError, "^outer_loss is nan after inner step 3$", lambda: case.estimate(estimator, outer=nan))


@pytest.mark.parametrize(
    "estimator",
    [
        SGE(4, 0.5, computation="sequential"),
        SGE(4, 0.5, computation="batched"),
        EvolutionStrategies(4, 0.5),
    ],
    ids=lambda e: getattr(e, "computation", "es"),
)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_loss_that_is_not_finite_is_named_with_its_direction(estimator: Estimator, steps: int) -> None:
    """The loss has no value for a large first alpha; the third direction goes there first."""
    first = torch.randn(4, 3, generator=generator(2), dtype=torch.float64)[:, 0]
    assert first.argmax() == 2
    limit = 0.1 + 0.5 * first[2] - 1e-6

    def inner(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return (weights.square() * alphas.exp()).sum() + (limit - alphas[0]).sqrt() * weights.sum()

    def outer(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return (weights * alphas).sum()

    problem = BilevelProblem(inner, outer, SGD(0.1, 0.9))
    alphas = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    call = (problem, problem.init(draw(3)), alphas, [None] * steps, None)
    message = rf"^inner_loss is nan in inner step 1 of {steps} along direction 3 of 4$"
    fails(DivergenceError, message, lambda: estimator(*call, generator=generator(2)))

    if isinstance(estimator, EvolutionStrategies):
        swapped = replace(problem, inner_loss=outer, outer_loss=inner)
        message = rf"^outer_loss is nan after inner step {steps} along direction 3 of 4$"
        fails(DivergenceError, message, lambda: estimator(swapped, *call[1:], generator=generator(2)))


def test_weights_that_overflow_in_the_last_step_are_named() -> None:
    """All inner losses are finite, and the gradient of the last one is not."""

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, steep: Tensor) -> Tensor:
            ctx.steep = steep
            return 0 * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return torch.where(ctx.steep, float("inf"), 0.0) * grad, None

    def inner(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return (weights.square() * alphas.exp()).sum() + Steep.apply(weights.sum(), alphas[0] > 0.1)

    problem = BilevelProblem(inner, lambda w, a, b: (w * a).sin().sum(), SGD(0.1))
    alphas = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    call = (problem, problem.init(draw(3)), alphas, [None], None)
    fails(DivergenceError, r"along direction \d of 4", lambda: SGE(4, 0.5)(*call, seed=2))


def test_passes_add_up() -> None:
    assert Cost(1, 2.5, 3) + Cost(10, 20, 30) == Cost(11, 22.5, 33)


def test_defaults_are_those_of_the_papers() -> None:
    """SGE's mu and DARTS' radius are 0.01, its Q is 10."""
    assert (SGE().num_directions, SGE().smoothing, SGE().directions) == (10, 0.01, "gaussian")
    assert FiniteDifference().radius == 0.01


def test_a_new_estimator_writes_one_method_and_registers() -> None:
    class Half(Estimator):
        def indirect_gradient(self, context: Context) -> Tree:
            return tree.scale(Unrolled().indirect_gradient(context), 0.5)

        def kept_steps(self, inner_steps: int) -> int:
            return inner_steps

    case = nonlinear(HEAVY, 2)
    close(case.estimate(Half()).indirect, tree.scale(case.estimate(Unrolled()).indirect, 0.5))
    assert ESTIMATORS.names()[:7] == (
        *("first-order", "finite-difference", "sge", "unrolled", "neumann", "conjugate-gradient"),
        "evolution-strategies",
    )
    assert all(ESTIMATORS.get(name)() for name in ESTIMATORS)


class TestFromModules:
    def make(self, model: torch.nn.Module) -> BilevelProblem:
        def inner(model: Callable[..., Any], alphas: Tree, batch: Tensor) -> Tensor:
            return (model(batch) * alphas.exp()).square().mean()

        def outer(model: Callable[..., Any], alphas: Tree, batch: Tensor) -> Tensor:
            return (model(batch) - 1).square().mean()

        return BilevelProblem.from_modules(model, inner, outer, SGD(0.1, 0.9))

    @pytest.mark.parametrize(
        "estimator", [FirstOrder(), FiniteDifference(), SGE(4), Unrolled(), EvolutionStrategies(4)], ids=str
    )
    def test_it_has_the_numbers_of_the_functional_problem_and_changes_nothing(self, estimator: Estimator) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        model.double().requires_grad_()
        before = tree.clone(dict(model.state_dict()))
        problem, alphas = self.make(model), draw(2, seed=1)
        batches = [draw(6, 3, seed=seed) for seed in (2, 3, 4)]
        state = problem.init()
        result = estimator(problem, state, alphas, batches[:2], batches[2], seed=0)
        assert equal(dict(model.state_dict()), before)
        assert list(state.weights) == [name for name, _ in model.named_parameters()]

        def logits(w: Tree, x: Tensor) -> Tensor:
            x = torch.nn.functional.linear(x, w["0.weight"], w["0.bias"])
            x = torch.nn.functional.batch_norm(x, None, None, w["1.weight"], w["1.bias"], True)
            return torch.nn.functional.linear(x, w["2.weight"], w["2.bias"])

        functional = BilevelProblem(
            lambda w, a, x: (logits(w, x) * a.exp()).square().mean(),
            lambda w, a, x: (logits(w, x) - 1).square().mean(),
            SGD(0.1, 0.9),
        )
        wanted = estimator(functional, state, alphas, batches[:2], batches[2], seed=0)
        torch.testing.assert_close(result.grad, wanted.grad, rtol=1e-8, atol=1e-10)

    def test_frozen_parameters_stay(self) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        model[0].requires_grad_(False)
        assert list(self.make(model).init().weights) == ["1.weight", "1.bias"]

    @pytest.mark.parametrize("part", [torch.nn.Dropout(0.5), torch.nn.RReLU()], ids=lambda part: type(part).__name__)
    def test_passes_that_draw_are_refused(self, part: torch.nn.Module) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), part)
        problem, alphas, x = self.make(model), torch.zeros(2), torch.ones(3, 2)
        fails(
            InvalidValueError,
            "random numbers.*eval",
            lambda: FirstOrder()(problem, problem.init(), alphas, [x], x),
            "model",
        )
        model.eval()
        FirstOrder()(problem, problem.init(), alphas, [x], x)

    def test_init_needs_weights_without_a_module(self) -> None:
        problem = BilevelProblem(lambda w, a, b: w.sum(), lambda w, a, b: w.sum(), SGD(0.1))
        fails(InvalidValueError, "init", problem.init, "weights")


def test_losses_that_draw_are_refused() -> None:
    def noisy(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return (weights * alphas).square().sum() * (1 + 0.1 * torch.rand(()))

    def pure(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return (weights * alphas).square().sum()

    for losses in ((noisy, pure), (pure, noisy)):
        problem = BilevelProblem(*losses, SGD(0.1))
        arguments = (problem, problem.init(torch.ones(2)), torch.ones(2), [None], None)
        fails(InvalidValueError, "draws", partial(SGE(2), *arguments, seed=0), "losses")
