"""Faults that gave a wrong number, or a message of PyTorch's own, on plausible problems."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bilevel_cases import draw
from torch import Tensor, nn

from sgenas import tree
from sgenas.bilevel import (
    SGE,
    BilevelProblem,
    BlackBoxProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.sharding import Shards
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD, Adam, InnerState
from sgenas.tree import Tree

WHOLE: dict[str, Any] = {"directions": "orthogonal", "smoothing": 1e-5}


class Cube(torch.autograd.Function):
    """x^3, whose backward pass saves 3 x^2: a constant for double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 3 * x**2
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.slope


def outer(weights: Tree, alphas: Tree, _: Any) -> Tensor:
    return sum((leaf**2).sum() for leaf in tree.tensors(weights)) + alphas.sum()


def indirect(estimator: Estimator, problem: BilevelProblem, weights: Tree, alphas: Tree, batch: Any = None) -> Tensor:
    seed = 0 if estimator.draws else None
    found = estimator(problem, problem.init(weights), alphas, [batch, batch], batch, seed=seed)
    return tree.flatten(found.indirect)


def test_padded_attention_in_evaluation_mode_is_one_function() -> None:
    """PyTorch's kernel for passes without gradients sets padded positions to zero."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64).eval()
    x, padding = draw(3, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])

    def loss(model: Callable[..., Tensor], alphas: Tensor, batch: Any) -> Tensor:
        return (model(x, src_key_padding_mask=padding).mean(1) * alphas).square().mean()

    problem = BilevelProblem.from_modules(layer, loss, loss, SGD(lr=0.1))
    state, alphas = problem.init(), draw(8, seed=1)
    value = problem.outer_gradients(state.weights, alphas, None)[0]
    assert problem.outer_value(state.weights, alphas, None) == pytest.approx(value.item(), rel=1e-12)
    assert problem.outer_alpha_gradient(state.weights, alphas, None)[0] == pytest.approx(value.item(), rel=1e-12)
    before = torch.backends.mha.get_fastpath_enabled()
    exact = Unrolled()(problem, state, alphas, [None], None).indirect
    found = FiniteDifference(1e-4)(problem, state, alphas, [None], None).indirect
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-9)
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize("share", [1.0, 0.1, 0.01])
def test_wrong_second_derivatives_beside_larger_ones_are_refused(share: float) -> None:
    def inner(weights: Tree, alphas: Tree, _: Any) -> Tensor:
        return share * Cube.apply(weights["w"] * alphas).sum() + 25 * weights["u"].square().sum()

    problem = BilevelProblem(inner, outer, SGD(lr=0.01))
    with pytest.raises(InvalidValueError, match="custom function Cube"):
        indirect(Unrolled(), problem, {"w": draw(3), "u": draw(3, seed=1)}, draw(3, seed=2))


def test_another_loss_is_not_trusted_because_the_first_one_was() -> None:
    def made(bend: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda weights, alphas, _: bend(weights * alphas).sum()

    problem = BilevelProblem(made(lambda x: x**3), outer, SGD(lr=0.01))
    indirect(Unrolled(), problem, draw(3), draw(3, seed=1))
    with pytest.raises(InvalidValueError, match="custom function Cube"):
        indirect(Unrolled(), replace(problem, inner_loss=made(Cube.apply)), draw(3), draw(3, seed=1))


@pytest.mark.parametrize("estimator", [Unrolled(hvp="forward"), Unrolled()], ids=repr)
def test_scripted_functions_have_their_second_derivatives(estimator: Unrolled) -> None:
    """Forward mode takes those of TorchScript for zero."""

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def made(bend: Callable[[Tensor], Tensor]) -> BilevelProblem:
        def inner(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
            return (bend(batch @ weights) - alphas).square().mean()

        return BilevelProblem(inner, outer, SGD(lr=0.1), shards=Shards(2))

    weights, alphas, batch = draw(4, 2), draw(2, seed=1), draw(6, 4, seed=2)
    wanted = indirect(Unrolled(), made(swish), weights, alphas, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = made(torch.jit.script(swish))
    if estimator.hvp == "auto":
        torch.testing.assert_close(indirect(estimator, scripted, weights, alphas, batch), wanted)
    else:
        with pytest.raises(InvalidValueError, match="TorchScript"):
            indirect(estimator, scripted, weights, alphas, batch)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("estimator", [Unrolled(), FiniteDifference()], ids=repr)
def test_a_step_that_cannot_be_differentiated_is_refused(estimator: Estimator, recorded: bool) -> None:
    class Frozen:
        def init(self, weights: Tree) -> InnerState:
            return InnerState(tree.clone(weights))

        def step(self, state: InnerState, grad: Tree) -> InnerState:
            with torch.set_grad_enabled(recorded):
                return InnerState(tree.add(state.weights, grad.detach(), -0.1), {}, state.step + 1)

    def inner(weights: Tree, alphas: Tree, _: Any) -> Tensor:
        return ((weights - alphas) ** 4).sum()

    problem = BilevelProblem(inner, outer, Frozen())
    with pytest.raises(InvalidValueError, match="differentiable by torch.autograd"):
        indirect(estimator, problem, draw(3), draw(3, seed=1))
    indirect(SGE(3, **WHOLE), problem, draw(3), draw(3, seed=1))


@pytest.mark.parametrize("box", [False, True])
def test_outer_losses_may_take_gradients_themselves(box: bool) -> None:
    def penalized(weights: Tree, alphas: Tree, _: Any) -> Tensor:
        x = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad((x[:, None] * weights).tanh().sum(), x, create_graph=True)
        return slope.square().mean() + weights.square().sum()

    estimator = EvolutionStrategies(3, **WHOLE)
    if box:
        found = BlackBoxProblem(lambda alphas, seed: alphas.sin(), penalized).hypergradient(
            draw(3), estimator=estimator
        )
        wanted = draw(3).requires_grad_()
        penalized(wanted.sin(), wanted, None).backward()
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-4)
    else:
        problem = BilevelProblem(lambda w, a, _: ((w - a) ** 2).sum(), penalized, SGD(lr=0.1))
        exact = indirect(Unrolled(), problem, draw(3), draw(3, seed=1))
        found = indirect(estimator, problem, draw(3), draw(3, seed=1))
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9, grad_clip=0.5), Adam(lr=0.1, grad_clip=0.5)], ids=repr)
def test_single_numbers_of_another_precision_keep_it(optimizer: Any) -> None:
    def inner(weights: Tree, alphas: Tree, _: Any) -> Tensor:
        return (weights["m"] * alphas["b"]).square().sum() + (weights["s"] * alphas["a"]).square().double()

    weights = {"s": torch.tensor(0.7), "m": draw(3)}
    alphas = {"a": torch.tensor(0.3), "b": draw(3, seed=1)}
    problem = BilevelProblem(
        inner, lambda w, a, _: w["m"].square().sum() + w["s"].double() ** 2 + a["a"].double(), optimizer
    )
    for estimator in (Unrolled(), Unrolled(hvp="finite-difference"), FiniteDifference(1e-4)):
        found = estimator(problem, problem.init(weights), alphas, [None] * 2, None)
        assert found.state.weights["s"].dtype == found.grad["a"].dtype == torch.float32
        assert found.grad["b"].dtype == torch.float64
        found.backward()
        alphas["a"].grad = alphas["b"].grad = None


def test_an_outer_loss_without_derivatives_is_refused() -> None:
    def accuracy(weights: Tree, alphas: Tree, _: Any) -> Tensor:
        return (weights > 0.1).double().mean()

    problem = BilevelProblem(lambda w, a, _: ((w - a) ** 2).sum(), accuracy, SGD(lr=0.1))
    for estimator in (Unrolled(), SGE(3)):
        with pytest.raises(InvalidValueError, match="outer_loss must be differentiable"):
            indirect(estimator, problem, draw(3), draw(3, seed=1))
    assert indirect(EvolutionStrategies(3), problem, draw(3), draw(3, seed=1)).shape == (3,)


def test_short_alphas_are_refused_where_they_are_perturbed() -> None:
    problem = BilevelProblem(lambda w, a, _: ((w - a.float()) ** 2).sum(), outer, SGD(lr=0.1))
    alphas = draw(3).bfloat16()
    for estimator in (SGE(3), EvolutionStrategies(3)):
        with pytest.raises(InvalidValueError, match="alphas must be float32 or float64"):
            indirect(estimator, problem, torch.ones(3), alphas)
    assert indirect(FirstOrder(), problem, torch.ones(3), alphas).dtype == torch.bfloat16


def test_tensors_of_inference_mode_are_copied() -> None:
    with torch.inference_mode():
        weights, alphas = torch.ones(3), torch.zeros(3)
    problem = BilevelProblem(lambda w, a, _: ((w - a) ** 2).sum(), outer, SGD(lr=0.1))
    found = Unrolled()(problem, InnerState(weights), alphas, [None], None)
    torch.testing.assert_close(found.indirect, torch.full((3,), 0.32))


@pytest.mark.parametrize("training", [False, True])
def test_black_boxes_may_return_batch_normalization(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    x, y = draw(32, 4), draw(32, 1, seed=1)

    def train(alphas: Tensor, seed: int) -> nn.Module:
        torch.manual_seed(0)
        own = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
        optimizer = torch.optim.SGD(own.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            (own(x * alphas.exp()) - y).square().mean().backward()
            optimizer.step()
        return own

    def tested(weights: Tree, alphas: Tree, _: Any) -> Tensor:
        return (torch.func.functional_call(model.train(training), weights, x) - y).square().mean()

    problem = BlackBoxProblem(train, tested)
    found = [
        problem.hypergradient(torch.zeros(4, dtype=torch.float64), estimator=kind(4, **WHOLE), seed=0).grad
        for kind in (SGE, EvolutionStrategies)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    assert found[0].norm() > 1e-3


INDICES = torch.tensor([0, 0, 1, 2, 2, 2, 3])
DIFFERENTIATING = [FiniteDifference(), Unrolled(), Unrolled(hvp="forward"), Neumann(), ConjugateGradient()]


def embedded(kept: Tensor, **options: Any) -> BilevelProblem:
    def inner(weights: Tree, alphas: Tree, indices: Tensor) -> Tensor:
        rows = F.embedding(indices, weights, **options)
        return ((rows.tanh() * alphas)[kept[indices]] ** 2).sum()

    return BilevelProblem(inner, lambda w, a, _: (w * w.cos()).sum() + a.sum(), SGD(lr=0.1))


@pytest.mark.parametrize("estimator", DIFFERENTIATING, ids=str)
@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"padding_idx": -5}, {"scale_grad_by_freq": True}], ids=str)
def test_gradients_of_embeddings_that_are_those_of_no_function_are_refused(
    estimator: Estimator, options: dict[str, Any]
) -> None:
    w, a, everything = draw(5, 3), draw(3), torch.ones(5, dtype=torch.bool)
    with pytest.raises(InvalidValueError, match="padding_idx|scale_grad_by_freq"):
        indirect(estimator, embedded(everything, **options), w, a, INDICES)
    # the training follows them, which differences of trainings see
    truth = indirect(SGE(**WHOLE), embedded(everything, **options), w, a, INDICES)
    assert (truth - indirect(SGE(**WHOLE), embedded(everything), w, a, INDICES)).norm() > 0.01 * truth.norm()


@pytest.mark.parametrize("estimator", DIFFERENTIATING, ids=str)
def test_padding_that_is_masked_is_padding(estimator: Estimator) -> None:
    w, a, kept = draw(5, 3), draw(3), torch.arange(5) > 0
    found = indirect(estimator, embedded(kept, padding_idx=0), w, a, INDICES)
    torch.testing.assert_close(found, indirect(estimator, embedded(kept), w, a, INDICES))


def test_padding_is_judged_by_the_first_batch_that_has_some() -> None:
    problem, w, a = embedded(torch.ones(5, dtype=torch.bool), padding_idx=0), draw(5, 3), draw(3)
    indirect(Unrolled(), problem, w, a, INDICES[2:])
    with pytest.raises(InvalidValueError, match="padding_idx"):
        indirect(Unrolled(), problem, w, a, INDICES)
