"""The fast kernels against PyTorch's calls: values, gradients, second derivatives, and under torch.func."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sgenas.spaces import darts, nasbench201
from sgenas.spaces.cell_space import CellSpace
from sgenas.spaces.darts_space.operations import BUILDERS, make_operation
from sgenas.spaces.kernels import (
    NARROW,
    channels_last,
    depthwise,
    from_phases,
    join,
    subsample_pointwise,
    subsampled,
    to_phases,
)
from sgenas.spaces.nonlinearity import maximum, smooth_maximum, stacked_maximum

SHAPES = [(2, 3, 8, 8, 1), (2, 3, 7, 9, 1), (1, 4, 8, 6, 2), (2, 2, 9, 5, 2), (1, 2, 1, 1, 1), (1, 2, 2, 3, 2)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1])


def loss_of(convolution: Callable[..., Tensor], stride: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weight: convolution(x, weight, stride).sin().square().sum()


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_depthwise_equals_conv2d(kernel: int, shape: tuple[int, ...]) -> None:
    *size, stride = shape
    x, weight = draw(0, *size), draw(1, size[1], 1, kernel, kernel)
    results = []
    for convolution in (depthwise, plain):
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = convolution(*inputs, stride)
        results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_of_depthwise(stride: int) -> None:
    inputs = [draw(0, 2, 2, 5, 6).requires_grad_(), draw(1, 2, 1, 5, 5).requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, w: depthwise(x, w, stride), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: depthwise(x, w, stride), inputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_works_under_torch_func(stride: int) -> None:
    x, weight = draw(0, 2, 3, 6, 7), draw(1, 3, 1, 5, 5)
    tangents = draw(2, 2, 3, 6, 7), draw(3, 3, 1, 5, 5)
    ours, theirs = loss_of(depthwise, stride), loss_of(plain, stride)
    for transform in (
        lambda loss: torch.func.grad(loss, argnums=(0, 1))(x, weight),
        lambda loss: torch.func.jvp(loss, (x, weight), tangents),
        # forward over reverse, the only order that is trusted for Hessian-vector products
        lambda loss: torch.func.jvp(torch.func.grad(loss, argnums=(0, 1)), (x, weight), tangents),
    ):
        torch.testing.assert_close(transform(ours), transform(theirs), rtol=1e-10, atol=1e-10)
    many = torch.stack([weight, 2 * weight, draw(4, 3, 1, 5, 5)])
    for dims in ((None, 0), (0, None)):
        batch = (x, many) if dims[1] == 0 else (torch.stack([x, -x]), weight)
        grads = [torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=dims)(*batch) for loss in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_phases_hold_every_pixel_once_and_come_back() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    phases = to_phases(x)
    assert phases.shape == (8, 3, 2, 3)
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(phases[2 * index : 2 * index + 2], x[:, :, row::2, column::2])
    assert torch.equal(from_phases(phases), x)
    assert phases.is_contiguous(memory_format=torch.channels_last)
    assert from_phases(phases).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [3, 5])
def test_dilated_convolution_is_an_ordinary_one_on_phases(kernel: int) -> None:
    x, weight = draw(0, 2, 3, 8, 10), draw(1, 3, 1, kernel, kernel)
    dilated = F.conv2d(x, weight, padding=kernel - 1, dilation=2, groups=3)
    torch.testing.assert_close(from_phases(depthwise(to_phases(x), weight, 1)), dilated)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_dilated_convolution_of_stride_2_reads_even_pixels_only(kernel: int, size: tuple[int, int]) -> None:
    x, weight = draw(0, 2, 3, *size), draw(1, 3, 1, kernel, kernel)
    dilated = F.conv2d(x, weight, stride=2, padding=kernel - 1, dilation=2, groups=3)
    torch.testing.assert_close(depthwise(x[:, :, ::2, ::2], weight, 1), dilated)


@pytest.mark.parametrize("members", [1, 2])
def test_join_puts_the_channels_of_a_member_together_and_keeps_channels_last(members: int) -> None:
    parts = [channels_last(draw(seed, 2, 3 * members, 4, 5)) for seed in (0, 1)]
    apart = [part.reshape(2, members, 3, 4, 5) for part in parts]
    whole = join(parts, members)
    assert torch.equal(whole, torch.cat(apart, dim=2).reshape(2, 6 * members, 4, 5))
    assert whole.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pool", [stacked_maximum, smooth_maximum])
def test_poolings_keep_channels_last(pool: Callable[..., Tensor]) -> None:
    pooled = pool(channels_last(draw(0, 2, 3, 6, 7)), 3, 2, 1)
    assert pooled.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [1, 5, 6])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1), (3, 2)])
def test_deterministic_maximum_equals_the_pooling_of_pytorch(kernel: int, stride: int, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # integers, so that many are equal: the first of them gets the derivative
    x = torch.randint(-2, 3, (2, 3, side, side + 1), generator=generator, dtype=torch.float64).requires_grad_()
    padding = kernel // 2 if kernel % 2 else 0
    expected = F.max_pool2d(x, kernel, stride, padding, ceil_mode=kernel % 2 == 0)
    found = stacked_maximum(x, kernel, stride, padding)
    assert torch.equal(found, expected)
    assert torch.equal(maximum(x, kernel, stride, padding), expected)
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(y, x, cotangent)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


class StridedPointwise(TorchDispatchMode):
    """Records the strides of narrow strided convolutions with kernel 1, and counts all convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[Any] = []
        self.convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.convolutions += 1
            weight, stride = args[1], args[3]
            if weight.shape[2:].numel() == 1 and weight.shape[1] < NARROW and max(stride) > 1:
                self.strides.append(stride)
        return func(*args, **(kwargs or {}))


CONVOLUTIONS = [
    (nn.Conv1d(3, 4, 1, stride=2), (2, 3, 7)),
    (nn.Conv2d(3, 4, 1, stride=2), (2, 3, 7, 6)),
    (nn.Conv2d(4, 6, 1, stride=(1, 3), groups=2, bias=False), (2, 4, 5, 8)),
    (nn.Conv2d(3, 4, 1, stride=2, padding_mode="circular"), (3, 7, 6)),
    (nn.Conv3d(3, 4, 1, stride=(2, 1, 2)), (2, 3, 5, 4, 3)),
]


@pytest.mark.parametrize(("conv", "shape"), CONVOLUTIONS)
@pytest.mark.parametrize("last", [False, True])
def test_subsampled_convolution_equals_the_strided_one(conv: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    plain = copy.deepcopy(conv).double()
    ours = subsample_pointwise(copy.deepcopy(plain))
    x = draw(0, *shape)
    x = channels_last(x) if last and len(shape) == 4 else x
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is type(plain)
        assert module.state_dict().keys() == plain.state_dict().keys()
        assert repr(module) == repr(plain)
        with StridedPointwise() as seen:
            y = module(x)
        assert seen.convolutions == 1
        assert not seen.strides
        torch.testing.assert_close(y, plain(x), rtol=1e-12, atol=1e-12)

    def loss(module: nn.Module) -> Callable[..., Tensor]:
        return lambda weights, x: torch.func.functional_call(module, weights, x).sin().sum()

    weights = {name: value.detach() for name, value in plain.named_parameters()}
    tangents = {name: torch.ones_like(value) for name, value in weights.items()}
    many = {name: torch.stack([value, 2 * value]) for name, value in weights.items()}
    for transform in (
        lambda loss: torch.func.grad(loss, argnums=(0, 1))(weights, x),
        lambda loss: torch.func.jvp(torch.func.grad(loss), (weights, x), (tangents, torch.ones_like(x))),
        lambda loss: torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(many, x),
    ):
        torch.testing.assert_close(transform(loss(ours)), transform(loss(plain)), rtol=1e-10, atol=1e-10)


def test_padded_unstrided_and_custom_convolutions_are_left_alone() -> None:
    class Mean(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.mean()

    convs = nn.ModuleList(
        [nn.Conv2d(2, 2, 1, 2, padding=1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, 2), Mean(2, 2, 1, 2)]
    )
    subsample_pointwise(convs)
    assert not any("_conv_forward" in vars(conv) for conv in convs)


def test_subsampled_ends_with_its_block_and_keeps_what_was_changed_before() -> None:
    modules = nn.Sequential(nn.Conv2d(2, 2, 1, 2), subsample_pointwise(nn.Conv2d(2, 2, 1, 2)))
    with pytest.raises(KeyError), subsampled(modules):
        assert all("_conv_forward" in vars(conv) for conv in modules)
        raise KeyError
    assert ["_conv_forward" in vars(conv) for conv in modules] == [False, True]


@pytest.mark.parametrize("name", BUILDERS)
def test_discrete_operations_run_no_strided_pointwise_convolution(name: str) -> None:
    operation = make_operation(name, 4, 2)
    with StridedPointwise() as seen:
        operation(torch.randn(2, 4, 6, 6))
    assert not seen.strides


@pytest.mark.parametrize(
    "space", [darts(channels=4, layers=3), darts(channels=4, layers=3, partial_channels=2), nasbench201(channels=2)]
)
def test_supernets_run_no_strided_pointwise_convolution(space: CellSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    network = space.bind(space.initial_weights(generator), space.initial_alphas(generator))
    with StridedPointwise() as seen:
        network(torch.randn(2, 3, 12, 12))
    assert seen.convolutions > 10
    assert not seen.strides


def test_narrow_strided_pointwise_gradients_do_not_corrupt_memory() -> None:
    """In a process of its own, which PyTorch's plain call ends on a CPU with AVX-512."""
    program = """
import torch
from torch import nn
from sgenas.spaces.darts_space.operations import FactorizedReduce
from sgenas.spaces.kernels import dense, subsample_pointwise
torch.set_num_threads(1)
conv = subsample_pointwise(nn.Conv2d(4, 2, 1, 2, bias=False))
for call in (conv, FactorizedReduce(4, 4), lambda x: dense(x, conv.weight, 2)):
    for side in (48, 64, 96):
        for _ in range(3):
            x = torch.randn(4, 4, side, side).contiguous(memory_format=torch.channels_last)
            call(x.requires_grad_()).square().sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
