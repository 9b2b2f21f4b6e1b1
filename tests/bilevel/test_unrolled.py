"""Unrolled against closed forms, against automatic differentiation, and against differences of a supernet."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sgenas
from sgenas import trees
from sgenas.bilevel import SGD, BilevelProblem, InnerState, Unrolled
from sgenas.bilevel.curvature import hessian_slope, mixed_slope, weight_slope
from sgenas.bilevel.toy import Quadratic
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

OPTIMIZERS = [SGD(0.2), SGD(0.2, momentum=0.9, weight_decay=0.1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def quadratic(
    optimizer: SGD, steps: int
) -> tuple[Quadratic, BilevelProblem, InnerState, list[Tensor], Tensor]:
    """In the middle of its optimisation: momentum buffers are not zero."""
    toy = Quadratic.random(generator())
    problem = toy.problem(optimizer)
    state = problem.run(problem.init(toy.weights), toy.alphas, list(draw(3, 7, seed=3))).end
    return toy, problem, state, list(draw(steps, 7, seed=7)), draw(7, seed=8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_is_the_closed_form(optimizer: SGD, steps: int) -> None:
    toy, problem, state, inner, outer = quadratic(optimizer, steps)
    direct, indirect = toy.exact(optimizer, state, inner, outer)
    result = Unrolled()(problem, state, toy.alphas, inner, outer)
    for name in toy.alphas:
        torch.testing.assert_close(result.direct[name], direct[name], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(result.indirect[name], indirect[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("last", [1, 2, 5])
def test_truncated_it_takes_the_state_before_the_last_steps_as_given(optimizer: SGD, last: int) -> None:
    toy, problem, state, inner, outer = quadratic(optimizer, 5)
    before = problem.run(state, toy.alphas, inner[:-last]).end if last < 5 else state
    _, indirect = toy.exact(optimizer, before, inner[-last:], outer)
    result = Unrolled(last)(problem, state, toy.alphas, inner, outer)
    for name in toy.alphas:
        torch.testing.assert_close(result.indirect[name], indirect[name], rtol=1e-10, atol=1e-10)
    assert result.cost.forward == 5 + 1 + 2 * last


def test_what_truncation_leaves_out_falls_with_the_curvature() -> None:
    """As (1 - lr c)^k: c = 0.5 is the smallest eigenvalue of the toy's curvature."""
    toy, problem, state, inner, outer = quadratic(SGD(0.2), 80)
    whole = trees.flatten(Unrolled()(problem, state, toy.alphas, inner, outer).grad)
    errors = [
        (trees.flatten(Unrolled(last)(problem, state, toy.alphas, inner, outer).grad) - whole).norm()
        for last in (20, 30, 40)
    ]
    for first, second in ((0, 1), (1, 2)):
        assert errors[second] / errors[first] == pytest.approx(0.9**10, rel=0.1)


class Nonlinear:
    """Alphas of several shapes: a scalar, one that only the outer loss uses, one that neither does."""

    def __init__(self) -> None:
        self.weights = {"w": draw(3, 2), "b": draw(2, seed=1)}
        self.alphas = {
            "scalar": draw(seed=2),
            "table": draw(2, 3, seed=3),
            "outer": draw(2, seed=4),
            "unused": draw(1, seed=5),
        }

    @staticmethod
    def logits(weights: Tree, alphas: Tree, x: Tensor) -> Tensor:
        mixed = x @ weights["w"] + weights["b"]
        return torch.tanh(alphas["table"].softmax(0)[0] * x) @ weights["w"] + mixed * alphas["scalar"].exp()

    def inner(self, weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return self.logits(weights, alphas, batch).sin().square().mean()

    def outer(self, weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        logits = self.logits(weights, {**alphas, "scalar": alphas["scalar"].detach()}, batch)
        return (logits.cos() * alphas["outer"]).mean()

    def problem(self, optimizer: SGD) -> BilevelProblem:
        return BilevelProblem(self.inner, self.outer, optimizer)


def by_autograd(
    problem: BilevelProblem, state: InnerState, alphas: Tree, inner: list[Tensor], outer: Tensor
) -> Tree:
    """The whole hypergradient, autograd recording every step."""
    leaves, optimizer = trees.leaves(alphas), problem.inner_optimizer
    state = InnerState(trees.leaves(state.weights), state.buffers, state.step)
    for batch in inner:
        loss = problem.inner_loss(state.weights, leaves, batch)
        grads = torch.autograd.grad(loss, list(state.weights.values()), create_graph=True)
        state = optimizer.step(state, dict(zip(state.weights, grads, strict=True)))
    loss = problem.outer_loss(state.weights, leaves, outer)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.3), SGD(0.3, 0.9, 0.05), SGD(0.3, 0.9, 0.05, grad_clip=0.1), SGD(0.3, grad_clip=1e6)],
    ids=str,
)
def test_equals_autograd_through_the_steps(optimizer: SGD, steps: int) -> None:
    toy = Nonlinear()
    problem = toy.problem(optimizer)
    batches = list(draw(steps + 2, 4, 3, seed=9))
    state = problem.run(problem.init(toy.weights), toy.alphas, batches[:1]).end
    expected = by_autograd(problem, state, toy.alphas, batches[1:-1], batches[-1])
    result = Unrolled()(problem, state, toy.alphas, batches[1:-1], batches[-1])
    for name, tensor in expected.items():
        torch.testing.assert_close(result.grad[name], tensor, rtol=1e-9, atol=1e-11)
    assert (result.grad["unused"] == 0).all()
    assert result.indirect["outer"].abs().max() < 1e-12
    assert result.indirect["scalar"].abs() > 1e-4, "else it shows nothing"


def test_clipping_is_at_work_in_that_test() -> None:
    toy = Nonlinear()
    problem = toy.problem(SGD(0.3))
    _, gradient = problem.inner_gradient(toy.weights, toy.alphas, draw(4, 3, seed=9))
    assert 0.1 < trees.norm(gradient) < 1e6


def test_a_loss_without_weights_has_no_indirect_part() -> None:
    problem = BilevelProblem(
        lambda w, a, batch: a["a"].square().sum(), lambda w, a, batch: (w["w"] * a["a"]).sum(), SGD(0.1)
    )
    result = Unrolled()(problem, problem.init({"w": draw(2)}), {"a": draw(2, seed=1)}, [None] * 3, None)
    assert torch.equal(result.grad["a"], result.direct["a"])


SEARCHES = {"smooth": ("silu", "smooth"), "hard": ("relu", "hard")}


class Supernet:
    """The search network of DARTS, tiny and in float64, normalised by its batches."""

    def __init__(self, activation: str, pooling: str) -> None:
        self.space = sgenas.space(
            "darts", channels=2, layers=3, nodes=2, classes=3, activation=activation, pooling=pooling
        )
        self.weights = trees.map_tree(Tensor.double, self.space.initial_weights(generator()))
        alphas = self.space.initial_alphas(generator(1))
        self.alphas = trees.map_tree(lambda tensor: 500 * tensor.double(), alphas)
        labels = generator(2)
        self.batches = [
            (draw(6, 3, 8, 8, seed=index), torch.randint(3, (6,), generator=labels)) for index in range(3)
        ]

    def loss(self, weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.space.logits(weights, alphas, batch[0]), batch[1])


def shaped(tree: Tree, seed: int) -> Tree:
    """Random numbers in the shapes of `tree`."""
    return trees.unflatten(draw(trees.size(tree), seed=seed), tree)


@pytest.mark.parametrize("kind", SEARCHES)
def test_second_derivatives_of_a_supernet(kind: str) -> None:
    """Through batch normalisation, where other ways go wrong without a word: differences of the gradient."""
    net = Supernet(*SEARCHES[kind])
    problem = BilevelProblem(net.loss, net.loss, SGD(0.1))
    v, h = trees.scale(shaped(net.weights, 3), 1e-2), 1e-5
    gradients = [
        problem.outer_gradients(trees.add(net.weights, v, sign * h), net.alphas, net.batches[0])[1:]
        for sign in (1, -1)
    ]
    expected = [
        trees.scale(trees.subtract(plus, minus), 1 / (2 * h)) for plus, minus in zip(*gradients, strict=True)
    ]
    both = weight_slope(net.loss, net.weights, net.alphas, net.batches[0], v)
    alone = [
        slope(net.loss, net.weights, net.alphas, net.batches[0], v) for slope in (hessian_slope, mixed_slope)
    ]
    for found, separate, truth in zip(both, alone, expected, strict=True):
        assert trees.norm(trees.subtract(found, truth)) < 1e-6 * trees.norm(truth)
        assert trees.norm(trees.subtract(found, separate)) < 1e-12 * trees.norm(truth)


@pytest.mark.parametrize("kind", SEARCHES)
def test_is_the_slope_of_the_real_objective_of_a_supernet(kind: str) -> None:
    optimizer = SGD(0.05, momentum=0.9, weight_decay=0.01, grad_clip=0.2)
    net = Supernet(*SEARCHES[kind])
    problem = BilevelProblem(net.loss, net.loss, optimizer)
    *inner, outer = net.batches
    state = problem.run(problem.init(net.weights), net.alphas, inner[1:]).end

    def objective(alphas: Tree) -> Tensor:
        return problem.outer_value(problem.run(state, alphas, inner).end.weights, alphas, outer)

    result = Unrolled()(problem, state, net.alphas, inner, outer)
    u, h = shaped(net.alphas, 4), 1e-5
    plus, minus = (objective(trees.add(net.alphas, u, sign * h)) for sign in (1, -1))
    assert abs(trees.dot(result.grad, u) - (plus - minus) / (2 * h)) < 1e-5 * trees.norm(result.indirect)


def test_bad_settings() -> None:
    with pytest.raises(InvalidValueError, match="Unrolled.last_steps must be >= 1 or None, got 0"):
        Unrolled(0)
    toy, problem, state, inner, outer = quadratic(SGD(0.1), 2)
    with pytest.raises(InvalidValueError, match="at least Unrolled.last_steps = 3 batches, got 2"):
        Unrolled(3)(problem, state, toy.alphas, inner, outer)


def test_weights_before_the_last_steps_are_not_kept() -> None:
    """Memory: as many sets of weights as steps are walked back, and none is left at the end of the walk."""
    toy, problem, state, inner, outer = quadratic(SGD(0.1), 6)
    alive: list[Any] = []

    class Watched(SGD):
        def step(self, state: InnerState, grad: Tree) -> InnerState:
            import weakref

            after = super().step(state, grad)
            alive.append(weakref.ref(after.weights["vector"]))
            return after

    kept: list[int] = []

    def outer_loss(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        kept.append(sum(reference() is not None for reference in alive))
        return problem.outer_loss(weights, alphas, batch)

    watched = BilevelProblem(problem.inner_loss, outer_loss, Watched(0.1))
    Unrolled(2)(watched, state, toy.alphas, inner, outer)
    # before the last two steps, and the end
    assert kept == [3]
