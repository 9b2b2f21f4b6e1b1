"""On a GPU a step of an optimizer is a few kernels, however many weights there are; the numbers are a CPU's."""

from typing import Any

import pytest
import torch
from pretended_gpu import gpu_machine
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.gradients import gradient, laid_out_as
from sgenas.optim import SGD, Adam, AdamW, InnerOptimizer, projection, step_vjp

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPES = [(4, 4, 1, 1), (4, 1, 3, 3), (4, 3, 3, 3), (4,)]
"""Pointwise, depthwise and dense convolutions, and a shift."""
OPTIMIZERS = [
    SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1, grad_clip=0.5),
    Adam(0.1, weight_decay=0.1, grad_clip=0.5),
    AdamW(0.1, grad_clip=0.5),
]


def drawn(count: int, seed: int, device: torch.device) -> tree.TensorDict:
    """``count`` tensors of each shape."""
    draw = torch.Generator().manual_seed(seed)
    names = [(number, shape) for number in range(count) for shape in SHAPES]
    values = {f"{number} {shape}": torch.randn(shape, generator=draw, dtype=torch.float64) for number, shape in names}
    return tree.to(values, device)


def last(value: Tensor) -> Tensor:
    """A copy in channels-last memory, also where a contiguous one counts as that."""
    if value.ndim == 1:
        return value
    images, channels, height, width = value.shape
    copy = value.permute(0, 2, 3, 1).contiguous().view(-1)
    strides = (channels * height * width, 1, width * channels, channels)
    return copy.as_strided((images, channels, height, width), strides)


def gradients(weights: tree.TensorDict) -> tree.TensorDict:
    """Gradients with the strides that convolutions of channels-last images give them."""
    leaves = tree.leaves(weights)
    # (the gradient of a permuted copy is permuted)
    loss = torch.stack([last(leaf).sin().sum() for leaf in leaves.values()]).sum()
    return dict(zip(leaves, gradient(loss, list(leaves.values())), strict=True))


def results(optimizer: InnerOptimizer, weights: tree.TensorDict, grad: tree.TensorDict, v: tree.TensorDict) -> Any:
    """Everything that estimators do with an optimizer once there is a gradient."""
    state = optimizer.step(optimizer.init(weights), grad)
    other = tree.scale(grad, 0.5)
    again = optimizer.step(state, other)
    moved = projection(optimizer, state, grad, again, v)(state, other)
    back = step_vjp(optimizer, state, other, v, dict.fromkeys(state.slots, v))
    _, _, through = step_vjp(optimizer, state, other, v)
    return again.weights, again.slots, moved, back, through, tree.add(v, grad, moved), tree.norm(v), tree.dot(v, grad)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda each: type(each).__name__)
def test_launches_of_steps_and_their_derivatives_do_not_grow_with_the_weights(optimizer: InnerOptimizer) -> None:
    launches = []
    for count in (2, 4):
        weights, v = drawn(count, 0, CPU), drawn(count, 1, CPU)
        expected = results(optimizer, weights, gradients(weights), v)
        with gpu_machine() as machine:
            weights, v = drawn(count, 0, GPU), drawn(count, 1, GPU)
            start, grad = optimizer.init(weights), gradients(weights)
            machine.reset()
            optimizer.step(start, grad)
            assert machine.launches < 25
            machine.reset()
            found = results(optimizer, weights, grad, v)
            assert not machine.waits
            # (copies of the weights and slots at the start are one each)
            launches.append(machine.launches - len(weights) * (1 + len(start.slots)))
            found = tree.to(found, CPU)
        for one, other in zip(tree.tensors(found), tree.tensors(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert launches[0] == launches[1] < 250


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradients_on_a_gpu_have_the_layout_of_their_weights(shape: tuple[int, ...]) -> None:
    values = torch.rand(shape)
    with gpu_machine() as machine:
        weight, part = tree.to(torch.ones(shape), GPU), tree.to(last(values), GPU)
        assert part.stride() != weight.stride()
        machine.reset()
        found = laid_out_as(part, weight)
        assert found.stride() == weight.stride()
        # a view where only dimensions of size 1 differ
        assert machine.launches == (0 if 1 in shape[1:3] else 1)
        torch.testing.assert_close(found.cpu(), values)
    assert laid_out_as(last(values), torch.ones(shape)).stride() == last(values).stride(), "on a CPU it is as it comes"


def test_scaled_sums_that_need_gradients_get_the_right_ones() -> None:
    first, second = drawn(1, 0, CPU), drawn(1, 1, CPU)
    factor = torch.tensor(0.5, dtype=torch.float64)
    found = []
    for device in (CPU, GPU):
        with gpu_machine():
            a, b = (tree.leaves(tree.to(each, device)) for each in (first, second))
            scale = tree.to(factor, device).requires_grad_()
            values = torch.autograd.grad(tree.norm(tree.add(a, b, scale)), [*a.values(), *b.values(), scale])
            found.append(tree.to(list(values), CPU))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
