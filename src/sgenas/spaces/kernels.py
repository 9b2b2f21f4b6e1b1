"""Faster computations of the same values, for the calls that are slow in oneDNN on a CPU.

Every function equals PyTorch's plain call in outputs and gradients up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from sgenas.device import channels_last_on

NARROW = 16
"""Channels from which on a strided convolution with kernel 1 is correct in oneDNN: one vector of AVX-512."""
Module = TypeVar("Module", bound=nn.Module)

WIDE = 5
"""Kernel width from which the weight gradient of a depthwise convolution is split."""


def hand_written(x: Tensor) -> bool:
    """Whether the hand-written derivatives apply: on a CPU, and only in a plain backward pass.

    They support neither vmap nor forward mode nor mixed precision. Under torch.func, in forward mode, with
    autocast and in torch.compile (which fuses operations itself) PyTorch's operations compute the same.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) in channels-last memory; a copy only if it is not.

    By permutation, since vmap refuses requests for a memory format.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def laid_out(x: Tensor) -> Tensor:
    """x (B, C, H, W) in the memory layout of its device; a copy only if it is in another one."""
    return channels_last(x) if channels_last_on(x.device) else x.contiguous()


def in_memory_order(x: Tensor) -> tuple[Tensor, int]:
    """(B, H, W, C) and 3 if images are channels-last on the device of x, else (B, C, H, W) and 1: dimension of C."""
    return (x.permute(0, 2, 3, 1), 3) if channels_last_on(x.device) else (x, 1)


def in_image_order(x: Tensor) -> Tensor:
    """Inverse of `in_memory_order`."""
    return x.permute(0, 3, 1, 2) if channels_last_on(x.device) else x


def to_phases(x: Tensor) -> Tensor:
    """Space to batch: (B, C, H, W), H and W even, -> (4 B, C, H / 2, W / 2), one image per pixel parity.

    A convolution of dilation 2 never mixes parities, so on phases it is an ordinary one, for which there are
    fast kernels. Channels-last in, channels-last out; one copy.
    """
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    phases = pixels.permute(2, 4, 0, 1, 3, 5).reshape(4 * batch, height // 2, width // 2, channels)
    return phases.permute(0, 3, 1, 2)


def from_phases(phases: Tensor) -> Tensor:
    """Inverse of `to_phases`."""
    batch, channels, height, width = phases.shape
    pixels = phases.permute(0, 2, 3, 1).reshape(2, 2, batch // 4, height, width, channels)
    x = pixels.permute(2, 3, 0, 4, 1, 5).reshape(batch // 4, 2 * height, 2 * width, channels)
    return x.permute(0, 3, 1, 2)


def dense(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """k x k convolution of x (B, M C, H, W) by weight (M O, C, k, k), padded by (k - 1) / 2: a group per member."""
    groups = x.shape[1] // weight.shape[1]
    if weight.shape[-1] == 1:
        return pointwise(x, weight, None, stride=(stride, stride), groups=groups)
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: tuple[int, ...], groups: int) -> Tensor:
    """Convolution with kernel 1 in 1 to 3 dimensions; on a CPU, a narrow strided one of the pixels that it reads.

    With AVX-512, oneDNN's weight gradient of such a convolution of channels-last x writes out of bounds. Wider ones
    are correct, and faster with a stride. Exported programs keep the stride, since they have no gradients.
    """
    narrow = weight.shape[1] < NARROW and max(stride) > 1
    if narrow and x.device.type == "cpu" and not torch.compiler.is_exporting():
        last = len(stride) == 2 and x.ndim == 4 and x.stride(1) == 1
        pixels: Any = (..., *(slice(None, None, step) for step in stride))
        x = x[pixels]
        # the copy that the convolution would make in each of its passes
        x = channels_last(x) if last else x.contiguous()
        stride = (1,) * len(stride)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    return convolution(x, weight, bias, stride, groups=groups)


def subsample_pointwise(module: Module) -> Module:
    """``module``, whose strided convolutions with kernel 1 compute with `pointwise` from now on; in place.

    Classes, parameters, hooks and printed form stay as they are, and copies and pickles keep the change.
    Convolutions that pad, and subclasses with a ``forward`` of their own, are left alone.
    """
    for conv in strided_pointwise(module):
        conv._conv_forward = partial(pointwise, stride=conv.stride, groups=conv.groups)
    return module


@contextmanager
def subsampled(module: nn.Module) -> Iterator[None]:
    """`subsample_pointwise` for the duration of a with block."""
    changed = [conv for conv in strided_pointwise(module) if "_conv_forward" not in vars(conv)]
    subsample_pointwise(module)
    try:
        yield
    finally:
        for conv in changed:
            del conv._conv_forward


def strided_pointwise(module: nn.Module) -> list[Any]:
    """The convolutions of ``module`` that `subsample_pointwise` changes."""
    return [
        conv
        for conv in module.modules()
        for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if isinstance(conv, kind)
        and type(conv).forward is kind.forward
        and max(conv.kernel_size) == 1 < max(conv.stride)
        and not any(conv._reversed_padding_repeated_twice)
    ]


def join(parts: Sequence[Tensor], members: int) -> Tensor:
    """Joins the channels of parts (B, M C_i, H, W) member by member, into (B, M sum C_i, H, W)."""
    if members == 1:
        return torch.cat(list(parts), dim=1)
    ordered = [in_memory_order(part) for part in parts]
    apart = [torch.unflatten(part, axis, (members, -1)) for part, axis in ordered]
    axis = ordered[0][1]
    return in_image_order(torch.cat(apart, dim=axis + 1).flatten(axis, axis + 1))


def split_channels(x: Tensor, members: int, first: int) -> tuple[Tensor, Tensor]:
    """(B, M C, H, W) -> the first ``first`` channels of every member, and the rest."""
    if members == 1 and x.device.type == "cpu":
        # slices, of which oneDNN takes gradients in either layout
        return laid_out(x[:, :first]), laid_out(x[:, first:])
    ordered, axis = in_memory_order(x)
    apart = torch.unflatten(ordered, axis, (members, -1))
    parts = torch.split(apart, [first, apart.shape[axis + 1] - first], dim=axis + 1)
    here, rest = (laid_out(in_image_order(part.flatten(axis, axis + 1))) for part in parts)
    return here, rest


def shuffle_channels(x: Tensor, members: int, groups: int) -> Tensor:
    """Channel shuffle of each member: of G groups of n channels, the i-th of every group become adjacent."""
    ordered, axis = in_memory_order(x)
    apart = torch.unflatten(ordered, axis, (members, groups, -1))
    return in_image_order(apart.transpose(axis + 1, axis + 2).flatten(axis, axis + 2))


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Depthwise convolution, weight (C, 1, k, k), k odd, padded by (k - 1) / 2."""
    if hand_written(x):
        return _Depthwise.apply(x, weight, stride)
    return _convolution(x, weight, stride)


def _convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=x.shape[1])


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with cheaper derivatives than oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.stride = stride
        ctx.save_for_backward(x, weight)
        return _convolution(x, weight, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        padding = weight.shape[-1] // 2
        if ctx.needs_input_grad[0] and ctx.stride == 1:
            # the convolution with the kernel rotated by 180 degrees, which is faster
            grad_x = _convolution(grad, weight.flip(2, 3), 1)
        elif ctx.needs_input_grad[0]:
            grad_x = _backward(grad, x, weight, ctx.stride, [padding, padding], [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            height, width = x.shape[2:]
            wide = weight.shape[-1] == WIDE and ctx.stride == 1 and width % 2 == 0 and height >= WIDE
            if wide:
                grad_weight = _wide_gradient(grad, x, weight)
            else:
                grad_weight = _weight_gradient(grad, x, weight, ctx.stride, padding)
        return grad_x, grad_weight, None


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, *padding: int) -> Tensor:
    """padding: of rows and of columns, or one number for both."""
    return _backward(grad, x, weight, stride, [padding[0], padding[-1]], [False, True, False])[1]


def _wide_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The weight gradient of a 5 x 5 kernel with stride 1 as that of two 5 x 3 kernels, for even widths.

    oneDNN takes ten times as long for 5-wide kernels as for 3-wide ones; 5-high ones are fast if the image
    is higher than 4. The middle columns are those of a 5 x 3 kernel. Columns 0, 2 and 4 are two pixels
    apart: if the two pixels of a pair in a row become channels, they are the columns of a 5 x 3 kernel
    again, and channels-last memory has that order already, so nothing is copied.
    """
    channels = x.shape[1]
    middle = _weight_gradient(grad, x, weight[..., 1:4], 1, 2, 1)
    narrow = weight.new_empty(2 * channels, 1, WIDE, 3)
    outer = _weight_gradient(_pairs(grad), _pairs(x), narrow, 1, 2, 1)
    outer = outer.view(2, channels, 1, WIDE, 3).sum(0)
    columns = (outer[..., 0], middle[..., 0], outer[..., 1], middle[..., 2], outer[..., 2])
    return torch.stack(columns, dim=-1)


def _pairs(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2 C, H, W / 2): a view if x is channels-last."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels).permute(0, 3, 1, 2)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_weight, unused) of a depthwise convolution, those that ``mask`` asks for."""
    channels = x.shape[1]
    strides = [stride, stride]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, strides, padding, [1, 1], False, [0, 0], channels, mask
    )
