"""Complex weights against the same problem with real and imaginary part as two real tensors."""

import pytest
import torch
from bilevel_cases import close, draw, equal, optimizers
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
    InnerState,
    Neumann,
    Unrolled,
)
from sgenas.errors import InvalidValueError
from sgenas.tree import Tree

OPTIMIZERS = optimizers()
PARTS = ("re", "im", "bias")
ESTIMATORS: list[Estimator] = [
    FirstOrder(),
    FiniteDifference(1e-3),
    Unrolled(),
    Unrolled(2, hvp="forward"),
    Unrolled(hvp="finite-difference"),
    Neumann(4, 0.03, damping=20.0),
    ConjugateGradient(8, damping=20.0),
    SGE(4, 0.1, "antithetic", computation="sequential"),
    SGE(4, 0.1, computation="batched"),
    SGE(4, 0.1, control_variate="finite-difference"),
    EvolutionStrategies(4, 0.1),
]


def complex_weights() -> Tree:
    return {"filter": torch.complex(draw(3, 2), draw(3, 2, seed=1)), "bias": draw(2, seed=2)}


def apart(weights: Tree) -> Tree:
    """Real and imaginary part as two tensors."""
    return {"re": weights["filter"].real.clone(), "im": weights["filter"].imag.clone(), "bias": weights["bias"]}


def inner_loss(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
    spectrum = torch.fft.fft(batch.to(torch.complex128), dim=1) * alphas.exp()
    return (spectrum @ weights["filter"] + weights["bias"]).abs().square().add(1).log().mean()


def outer_loss(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
    return (inner_loss(weights, alphas, batch) * alphas[0].cos()).sin()


def problems(name: str, stacked: bool = False) -> tuple[BilevelProblem, BilevelProblem]:
    """The problem over complex weights and over their parts."""

    def joined(loss):  # type: ignore[no-untyped-def]
        def seen(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
            whole = {"filter": torch.complex(weights["re"], weights["im"]), "bias": weights["bias"]}
            return loss(whole, alphas, batch)

        return seen

    def stack(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return torch.func.vmap(inner_loss, in_dims=(0, 0, None))(weights, alphas, batch)

    optimizer = OPTIMIZERS[name][0]
    return (
        BilevelProblem(inner_loss, outer_loss, optimizer, stack if stacked else None),
        BilevelProblem(joined(inner_loss), joined(outer_loss), optimizer),
    )


def same(found: InnerState, wanted: InnerState) -> None:
    close(apart(found.weights), wanted.weights, 1e-9)
    for name, slot in wanted.slots.items():
        close(apart(found.slots[name]), slot, 1e-9)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "only-some"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_estimates_are_those_of_the_two_parts(name: str, estimator: Estimator) -> None:
    if OPTIMIZERS[name][2] is None and isinstance(estimator, Neumann | ConjugateGradient):
        pytest.skip("no implicit gradient with decoupled weight decay")
    whole, parts = problems(name, stacked=estimator == ESTIMATORS[-2])
    alphas, batches = draw(3, seed=3) / 2, list(draw(4, 5, 3, seed=4))
    # in the middle of an optimization, so that slots are not zero
    start = whole.run(whole.init(complex_weights()), alphas, batches[:1]).end
    other = parts.run(parts.init(apart(complex_weights())), alphas, batches[:1]).end
    same(start, other)
    found = estimator(whole, start, alphas, batches[1:3], batches[3], seed=0)
    wanted = estimator(parts, other, alphas, batches[1:3], batches[3], seed=0)
    assert isinstance(estimator, FirstOrder) or wanted.indirect.norm() > 1e-7, "else it shows nothing"
    close((found.direct, found.indirect), (wanted.direct, wanted.indirect), 1e-8)
    same(found.state, wanted.state)
    assert found.state.weights["filter"].is_complex()
    assert found.cost == wanted.cost


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam"])
def test_kept_steps_have_complex_gradients_as_pytorch_has_them(name: str) -> None:
    whole, parts = problems(name)
    alphas, batches = draw(3, seed=3) / 2, list(draw(2, 5, 3, seed=4))
    step = whole.run(whole.init(complex_weights()), alphas, batches, keep=1).steps[0]
    _, grad = whole.inner_gradient(step.before.weights, alphas, batches[1])
    close(apart(step.grad), apart(grad), 1e-12)
    same(step.after, parts.run(parts.init(apart(complex_weights())), alphas, batches).end)


def test_nothing_that_was_passed_changes() -> None:
    whole, _ = problems("momentum")
    alphas, batches = draw(3, seed=3), list(draw(2, 5, 3, seed=4))
    state = whole.init(complex_weights())
    before = tree.clone(state.weights)
    for estimator in (Unrolled(), SGE(2)):
        estimator(whole, state, alphas, batches[:1], batches[1], seed=0)
    assert equal(state.weights, before)


def test_complex_alphas_and_losses_are_refused() -> None:
    whole, _ = problems("sgd")
    state, batches = whole.init(complex_weights()), list(draw(2, 5, 3, seed=4))
    with pytest.raises(InvalidValueError) as caught:
        Unrolled()(whole, state, torch.complex(draw(3), draw(3)), batches[:1], batches[1])
    assert caught.value.field == "alphas"
    odd = BilevelProblem(lambda w, a, b: w["filter"].sum(), outer_loss, whole.inner_optimizer)
    with pytest.raises(InvalidValueError, match="real") as caught:
        FirstOrder()(odd, state, draw(3), batches[:1], batches[1])
    assert caught.value.field == "inner_loss"


@pytest.mark.parametrize("weights", [{"w": torch.ones(2, dtype=torch.int64)}, {}])
def test_weights_that_cannot_be_trained_are_refused(weights: Tree) -> None:
    whole, _ = problems("sgd")
    with pytest.raises(InvalidValueError) as caught:
        FirstOrder()(whole, InnerState(weights), draw(3), [draw(5, 3)], draw(5, 3))
    assert caught.value.field == "weights"
