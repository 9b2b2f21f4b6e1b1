"""Faster ways to the same numbers, for the calls that oneDNN is slow at on a CPU.

Every piece is exact: equal to the plain call in outputs and gradients up to rounding, and usable under
torch.func (grad, vmap, jvp). Figures: docs/speed.md.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WIDE = 5
"""Kernel width from which the weight gradient of a depthwise convolution is split."""


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


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Depthwise convolution, weight (C, 1, k, k), k odd, padded by (k - 1) / 2.

    On a CPU, 5-wide kernels take their weight gradient in two 3-wide parts (`_SplitDepthwise`).
    """
    padding = weight.shape[-1] // 2
    if weight.shape[-1] == WIDE and x.device.type == "cpu":
        return _SplitDepthwise.apply(x, weight, stride)
    return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])


class _SplitDepthwise(torch.autograd.Function):
    """A 5 x 5 depthwise convolution whose weight gradient is computed as that of two 5 x 3 ones.

    oneDNN's weight gradient for 5-wide depthwise kernels takes ten times as long as for 3-wide ones; 5-high
    ones are fast. Columns 0-2 of the gradient come from the padded input read at offset 0, columns 3-4 from
    the same buffer read at offset 3.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, WIDE // 2, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:  # noqa: ARG004
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding = [WIDE // 2, WIDE // 2]
            grad_x = _backward(grad, x, weight, ctx.stride, padding, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            pad, width = WIDE // 2, x.shape[3]
            # one more column of zeros on the right than the kernel needs, so that both views are equally wide
            padded = F.pad(x, (pad, pad + 1, pad, pad))
            parts = [
                _backward(grad, view, part, ctx.stride, [0, 0], [False, True, False])[1]
                for view, part in (
                    (padded[..., : width + 2], weight[..., :3]),
                    (padded[..., 3:], weight[..., 2:]),
                )
            ]
            grad_weight = torch.cat([parts[0], parts[1][..., :2]], dim=-1)
        return grad_x, grad_weight, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None, _: None) -> Tensor:
        x, weight = ctx.saved_tensors
        terms = []
        if x_tangent is not None:
            terms.append(_SplitDepthwise.apply(x_tangent, weight, ctx.stride))
        if weight_tangent is not None:
            terms.append(_SplitDepthwise.apply(x, weight_tangent, ctx.stride))
        return sum(terms[1:], start=terms[0])


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_weight, unused) of a depthwise convolution, those in `mask`."""
    channels = x.shape[1]
    strides, ones, zeros = [stride, stride], [1, 1], [0, 0]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, strides, padding, ones, False, zeros, channels, mask
    )
