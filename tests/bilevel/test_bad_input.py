"""What no estimator can work with is one line that says what, where and which."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import (
    SGD,
    SGE,
    BilevelProblem,
    ConjugateGradient,
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
from sgenas.trees import Tree

ESTIMATORS: list[Estimator] = [
    FirstOrder(),
    FiniteDifference(),
    SGE(4),
    Unrolled(),
    Neumann(2),
    ConjugateGradient(2),
    EvolutionStrategies(4),
]
every = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
NAN = float("nan")


def generator() -> torch.Generator:
    """Of directions whose first entry is largest in the third: 0.39, -1.21, 0.57, -1.04."""
    return torch.Generator().manual_seed(2)


def inner(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
    """L_train; a batch is the factor that it is taken times."""
    return batch * (weights["w"].square() * alphas["a"].exp() + weights["w"]).sum()


def outer(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
    return batch * (weights["w"] * alphas["a"]).sum()


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def run(
    estimator: Estimator,
    *,
    inner_loss: Any = inner,
    outer_loss: Any = outer,
    alphas: Tree | None = None,
    state: InnerState | None = None,
    batches: tuple[float, ...] = (1.0, 1.0, 1.0),
    outer_batch: float = 1.0,
    memory: Tree | None = None,
) -> HypergradientResult:
    problem = BilevelProblem(inner_loss, outer_loss, SGD(0.1, momentum=0.9))
    return estimator(
        problem,
        problem.init({"w": tensor(1, 2, 3)}) if state is None else state,
        {"a": tensor(0.1, 0.2, 0.3)} if alphas is None else alphas,
        [torch.tensor(batch, dtype=torch.float64) for batch in batches],
        torch.tensor(outer_batch, dtype=torch.float64),
        generator=generator(),
        memory=memory,
    )


def fails(kind: type[SgenasError], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@every
def test_alphas_need_not_ask_for_a_gradient(estimator: Estimator) -> None:
    """Estimators differentiate by tensors of their own: what is given may or may not record a graph."""
    without = run(estimator)
    asking = tensor(0.1, 0.2, 0.3).requires_grad_()
    for given in (asking, asking * 1):
        result = run(estimator, alphas={"a": given})
        assert torch.equal(result.grad["a"], without.grad["a"])
        assert not result.grad["a"].requires_grad
    assert asking.grad is None


@every
def test_alphas_that_have_no_derivative(estimator: Estimator) -> None:
    whole = {"a": torch.tensor([1, 2, 3])}
    message = "alphas must be floating-point tensors, got 'a' of torch.int64"
    fails(InvalidValueError, message, lambda: run(estimator, alphas=whole))
    fails(
        InvalidValueError, "alphas must hold at least one tensor, got none", lambda: run(estimator, alphas={})
    )


@every
def test_a_loss_that_is_not_finite_is_named_with_its_step(estimator: Estimator) -> None:
    fails(
        DivergenceError,
        r"^inner_loss is nan in inner step 2 of 3$",
        lambda: run(estimator, batches=(1.0, NAN, 1.0)),
    )
    fails(
        DivergenceError,
        r"^inner_loss is inf in inner step 1 of 2$",
        lambda: run(estimator, batches=(float("inf"), 1.0)),
    )
    fails(DivergenceError, r"^outer_loss is nan after inner step 3$", lambda: run(estimator, outer_batch=NAN))


@pytest.mark.parametrize("computation", ["loop", "streamed", "vectorised", "directional"])
@pytest.mark.parametrize(("steps", "step"), [(1, 1), (3, 1)])
def test_the_direction_is_named_too(computation: str, steps: int, step: int) -> None:
    """The loss has no value where the first alpha has grown: the third direction goes there first."""
    limit = 0.1 + 0.5 * draws()[2] - 1e-6

    def cut(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return inner(weights, alphas, batch) + (limit - alphas["a"][0]).sqrt() * weights["w"].sum()

    def run_cut() -> HypergradientResult:
        return run(SGE(4, 0.5, computation), inner_loss=cut, batches=(1.0,) * steps)

    message = rf"^inner_loss is nan in inner step {step} of {steps} along direction 3 of 4$"
    fails(DivergenceError, message, run_cut)


def draws() -> Tensor:
    """The entries of the first alpha in the four directions of the runs here."""
    return torch.randn(4, 3, generator=generator(), dtype=torch.float64)[:, 0]


def test_evolution_names_the_direction_and_the_loss() -> None:
    limit = 0.1 + 0.5 * draws()[2] - 1e-6

    def cut_outer(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return outer(weights, alphas, batch) + (limit - alphas["a"][0]).sqrt()

    def cut_inner(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return inner(weights, alphas, batch) + (limit - alphas["a"][0]).sqrt() * weights["w"].sum()

    estimator = EvolutionStrategies(4, 0.5)
    message = r"^outer_loss is nan after inner step 3 along direction 3 of 4$"
    fails(DivergenceError, message, lambda: run(estimator, outer_loss=cut_outer))
    message = r"^inner_loss is nan in inner step 1 of 3 along direction 3 of 4$"
    fails(DivergenceError, message, lambda: run(estimator, inner_loss=cut_inner))


def test_weights_that_overflow_in_the_last_step_are_named() -> None:
    """All losses are finite, and what the last step makes of them is not."""

    def overflowing(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return inner(weights, alphas, batch) + Steep.apply(weights["w"].sum(), alphas["a"][0] > 0.1)

    message = r"^the projection is (nan|-?inf) along direction \d of 4, though its inner losses are finite$"
    fails(DivergenceError, message, lambda: run(SGE(4, 0.5, "loop"), inner_loss=overflowing, batches=(1.0,)))


class Steep(torch.autograd.Function):
    """0, with an infinite slope where `steep`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steep: Tensor) -> Tensor:
        ctx.steep = steep
        return 0 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return torch.where(ctx.steep, float("inf"), 0.0) * grad, None


@every
def test_a_loss_that_changes_its_shape_between_steps(estimator: Estimator) -> None:
    def changing(weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        loss = inner(weights, alphas, batch)
        return loss if batch == 1 else loss[None]

    fails(
        InvalidValueError,
        r"inner_loss must return a 0-d tensor, got \(1,\)",
        lambda: run(estimator, inner_loss=changing, batches=(1.0, 2.0)),
    )


@every
def test_momentum_that_is_not_shaped_as_the_weights(estimator: Estimator) -> None:
    """Sums would pass by broadcasting."""
    state = InnerState({"w": tensor(1, 2, 3)}, {"w": tensor(0)})
    message = r"state.buffers must be shaped as state.weights, got \(1,\) for 'w', whose weight is \(3,\)"
    fails(InvalidValueError, message, lambda: run(estimator, state=state))
    state = InnerState({"w": tensor(1, 2, 3)}, {"v": tensor(0)})
    message = r"got \(1,\) for 'v', whose weight is none"
    fails(InvalidValueError, message, lambda: run(estimator, state=state))


@every
def test_no_batch_at_all(estimator: Estimator) -> None:
    fails(InvalidValueError, "inner_batches must hold at least 1 batch", lambda: run(estimator, batches=()))


def test_fewer_batches_than_steps_to_walk_back() -> None:
    message = "inner_batches must hold at least Unrolled.last_steps = 4 batches, got 3"
    fails(InvalidValueError, message, lambda: run(Unrolled(4)))


def test_a_control_variate_of_the_wrong_shape() -> None:
    message = r"control_variate must be shaped as the alphas {'a': \(3,\)}, got {'a': \(1,\)}"
    for call in (
        lambda: run(SGE(4, control_variate=(lambda known: {"a": tensor(1)},))),
        lambda: run(SGE(4, control_variate=("memory",)), memory={"a": tensor(1)}),
    ):
        fails(InvalidValueError, message, call)


def test_a_control_variate_that_knows_nothing_yet_leaves_the_others() -> None:
    """`memory` has no guess in the first step."""
    both, one = SGE(4, control_variate=("memory", "one-sided")), SGE(4, control_variate=("one-sided",))
    found, expected = run(both), run(one)
    assert torch.equal(found.indirect["a"], expected.indirect["a"])
    assert found.diagnostics["coefficients"].numel() == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), NAN])
def test_numbers_that_are_not_above_0_and_finite(value: float) -> None:
    fails(InvalidValueError, f"SGE.smoothing must be > 0 and finite, got {value}", lambda: SGE(4, value))
    message = f"EvolutionStrategies.smoothing must be > 0 and finite, got {value}"
    fails(InvalidValueError, message, lambda: EvolutionStrategies(4, value))
    fails(InvalidValueError, f"SGD.lr must be > 0 and finite, got {value}", lambda: SGD(value))
    message = f"SGE.memory_limit must be .*got {value}"
    fails(InvalidValueError, message, lambda: SGE(4, computation="vectorised", memory_limit=value))


def test_trees_are_left_as_they_were_after_an_error() -> None:
    alphas = {"a": tensor(0.1, 0.2, 0.3)}
    before = trees.clone(alphas)
    for estimator in ESTIMATORS:
        fails(DivergenceError, "nan", lambda each=estimator: run(each, alphas=alphas, outer_batch=NAN))
    assert torch.equal(alphas["a"], before["a"])
