"""Faster ways to the same numbers, for the calls that oneDNN is slow at on a CPU.

Every piece is exact: equal to the plain call in outputs and gradients up to rounding. Figures: docs/speed.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

WIDE = 5
"""Kernel width from which the weight gradient of a depthwise convolution is split."""


def hand_written(x: Tensor) -> bool:
    """Whether the hand-written derivatives apply: on a CPU, and only in a plain backward pass.

    They know neither vmap nor forward mode nor mixed precision, so under torch.func, in forward mode, with
    autocast and in torch.compile (which fuses by itself) the same numbers come from PyTorch's own operations.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) with the channels of a pixel side by side in memory; a copy only where they are not.

    By permutation, since vmap refuses to be asked for a memory format.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def to_phases(x: Tensor) -> Tensor:
    """Space to batch: (B, C, H, W), H and W even, -> (4 B, C, H / 2, W / 2), the pixels of each parity apart.

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


def pointwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """1x1 convolution, weight (M O, C, 1, 1) for x (B, M C, H, W): one group for each of M members."""
    return F.conv2d(x, weight, None, stride, groups=x.shape[1] // weight.shape[1])


def join(parts: Sequence[Tensor], members: int) -> Tensor:
    """Joins the channels of parts (B, M C_i, H, W) member by member, into (B, M sum C_i, H, W)."""
    if members == 1:
        return torch.cat(list(parts), dim=1)
    apart = [part.reshape(part.shape[0], members, -1, *part.shape[2:]) for part in parts]
    return torch.cat(apart, dim=2).flatten(1, 2)


def split_channels(x: Tensor, members: int, first: int) -> tuple[Tensor, Tensor]:
    """(B, M C, H, W) -> the first `first` channels of every member, and the others; both channels-last."""
    apart = x.reshape(x.shape[0], members, -1, *x.shape[2:])
    return (
        channels_last(apart[:, :, :first].flatten(1, 2)),
        channels_last(apart[:, :, first:].flatten(1, 2)),
    )


def shuffle_channels(x: Tensor, members: int, groups: int) -> Tensor:
    """Deals the channels of each member out: of G groups of n, the i-th of each group come side by side."""
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, members, groups, channels // (members * groups), height, width)
    return channels_last(apart.transpose(2, 3).reshape(batch, channels, height, width))


def classify_members(features: Tensor, classifier: nn.Linear, members: int) -> Tensor:
    """Logits (M, B, classes) of features (B, M F), the classifier's weight and bias those of M members."""
    classes = classifier.out_features
    weight = classifier.weight.reshape(members, classes, -1)
    bias = classifier.bias.reshape(members, 1, classes)
    apart = features.reshape(features.shape[0], members, -1).transpose(0, 1)
    return torch.baddbmm(bias, apart, weight.mT)


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
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad, x, weight, ctx.stride)
        if ctx.needs_input_grad[1]:
            if weight.shape[-1] == WIDE:
                grad_weight = _wide_gradient(grad, x, weight, ctx.stride)
            else:
                grad_weight = _weight_gradient(grad, x, weight, ctx.stride, weight.shape[-1] // 2)
        return grad_x, grad_weight, None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """With stride 1 it is the convolution with the kernel turned by 180 degrees, and faster as such."""
    if stride == 1:
        return _convolution(grad, weight.flip(2, 3), 1)
    padding = weight.shape[-1] // 2
    return _backward(grad, x, weight, stride, [padding, padding], [True, False, False])[0]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, *padding: int) -> Tensor:
    """padding: of rows and columns, or one for both."""
    return _backward(grad, x, weight, stride, [padding[0], padding[-1]], [False, True, False])[1]


def _wide_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The weight gradient of a 5 x 5 kernel as that of two 5 x 3 ones.

    oneDNN needs ten times as long for 5-wide kernels as for 3-wide ones; 5-high ones are fast, if the image
    is higher than 4. The columns in the middle are those of a 5 x 3 kernel as it stands. Columns 0, 2 and 4
    are two pixels apart: with the pixels of a row taken in pairs, the two of a pair as channels, they are the
    columns of a 5 x 3 kernel again, and channels-last memory is in that order already: no copy.
    """
    channels, width = x.shape[1], x.shape[3]
    if stride == 1 and width % 2 == 0 and x.shape[2] > WIDE - 1:
        middle = _weight_gradient(grad, x, weight[..., 1:4], 1, 2, 1)
        narrow = weight.new_empty(2 * channels, 1, WIDE, 3)
        outer = _weight_gradient(_pairs(grad), _pairs(x), narrow, 1, 2, 1)
        outer = outer.view(2, channels, 1, WIDE, 3).sum(0)
        columns = (outer[..., 0], middle[..., 0], outer[..., 1], middle[..., 2], outer[..., 2])
        return torch.stack(columns, dim=-1)
    # Else from the padded input read at two offsets, columns 0-2 and 3-4; one more column of zeros on the
    # right than the kernel needs, so that both views are equally wide.
    pad = WIDE // 2
    padded = F.pad(x, (pad, pad + 1, pad, pad))
    left = _weight_gradient(grad, padded[..., : width + 2], weight[..., :3], stride, 0)
    right = _weight_gradient(grad, padded[..., 3:], weight[..., 2:], stride, 0)
    return torch.cat([left, right[..., :2]], dim=-1)


def _pairs(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2 C, H, W / 2): a view of what is channels-last."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels).permute(0, 3, 1, 2)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_weight, unused) of a depthwise convolution, those in `mask`."""
    channels = x.shape[1]
    strides, ones, zeros = [stride, stride], [1, 1], [0, 0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, strides, padding, ones, False, zeros, channels, mask
    )
