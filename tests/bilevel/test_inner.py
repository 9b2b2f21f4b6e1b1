import itertools

import pytest
import torch

from sgenas import trees
from sgenas.bilevel import SGD
from sgenas.bilevel.toy import Quadratic
from sgenas.errors import InvalidValueError


def draws(seed: int, count: int) -> list[trees.Tree]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "a": torch.randn(3, 2, generator=generator, dtype=torch.float64),
            "b": torch.randn(4, generator=generator, dtype=torch.float64),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "grad_clip"), list(itertools.product([0, 0.9], [0, 3e-2], [None, 0.5, 1e6]))
)
def test_step_is_torch_sgd(momentum: float, weight_decay: float, grad_clip: float | None) -> None:
    start, *gradients = draws(0, 6)
    ours = SGD(0.1, momentum, weight_decay, grad_clip)
    state = ours.init(start)
    theirs = [torch.nn.Parameter(tensor.clone()) for tensor in start.values()]
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for gradient in gradients:
        state = ours.step(state, gradient)
        for parameter, grad in zip(theirs, gradient.values(), strict=True):
            parameter.grad = grad.clone()
        if grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs, grad_clip)
        optimizer.step()
    assert state.step == 5
    for weight, parameter in zip(state.weights.values(), theirs, strict=True):
        torch.testing.assert_close(weight, parameter.data, rtol=1e-14, atol=1e-14)


def test_init_copies_and_step_changes_nothing() -> None:
    start, gradient = draws(1, 2)
    before = trees.clone(start)
    optimizer = SGD(0.1, momentum=0.9, weight_decay=0.1, grad_clip=0.1)
    state = optimizer.init(start)
    optimizer.step(state, gradient)
    for name, tensor in before.items():
        assert torch.equal(start[name], tensor)
        assert torch.equal(state.weights[name], tensor)
        assert torch.equal(state.buffers[name], torch.zeros_like(tensor))
    assert state.weights["a"].data_ptr() != start["a"].data_ptr()


@pytest.mark.parametrize("grad_clip", [None, 0.5, 1e6])
def test_pull_back_is_the_transposed_jacobian_of_the_step(grad_clip: float | None) -> None:
    start, gradient, cotangent = draws(2, 3)
    optimizer = SGD(0.1, momentum=0.9, weight_decay=0.1, grad_clip=grad_clip)
    state = optimizer.init(start)

    def end(vector: torch.Tensor) -> torch.Tensor:
        return trees.flatten(optimizer.step(state, trees.unflatten(vector, gradient)).weights)

    jacobian = torch.autograd.functional.jacobian(end, trees.flatten(gradient))
    expected = -jacobian.T @ trees.flatten(cotangent) / optimizer.lr
    torch.testing.assert_close(
        trees.flatten(optimizer.pull_back(gradient, cotangent)), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "SGD.lr must be > 0 and finite, got 0.0"),
        ({"lr": float("nan")}, "SGD.lr .* got nan"),
        ({"lr": 0.1, "momentum": 1.0}, r"SGD.momentum must be in \[0, 1\), got 1.0"),
        ({"lr": 0.1, "weight_decay": -1.0}, "SGD.weight_decay must be >= 0"),
        ({"lr": 0.1, "grad_clip": 0.0}, "SGD.grad_clip must be > 0 or None, got 0.0"),
    ],
)
def test_bad_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        SGD(**settings)


def test_momentum_needs_its_own_state() -> None:
    toy = Quadratic.random(torch.Generator().manual_seed(0))
    state = SGD(0.1).init(toy.weights)
    with pytest.raises(InvalidValueError, match="buffers is empty"):
        SGD(0.1, momentum=0.9).step(state, toy.weights)
