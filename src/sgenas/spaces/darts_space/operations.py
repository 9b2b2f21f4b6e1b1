"""The operations of discrete networks, and drop path.

Shapes: B images, C channels, H x W pixels. Every operation maps (B, C, H, W) to the same shape, or with
stride 2 to (B, C, ceil(H / 2), ceil(W / 2)). Unlike the operations of the supernet, these take plain tensors,
batch normalization has a scale, a shift and running statistics, and pooling is not normalized. Convolutions
have no bias. Definitions: arXiv:1806.09055 and cnn/operations.py of the DARTS code; arXiv:2001.00326 for
nor_conv.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas.device import moved
from sgenas.errors import GenotypeError, InvalidValueError, require
from sgenas.spaces.kernels import subsample_pointwise
from sgenas.spaces.nonlinearity import maximum


class FactorizedReduce(nn.Module):
    """ReLU, then two parallel 1x1 convolutions of stride 2, the second shifted by one pixel, then BN.

    (B, channels_in, H, W) -> (B, channels_out, ceil(H / 2), ceil(W / 2)); channels_out is at least 2.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.even = nn.Conv2d(channels_in, half, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - half, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        subsample_pointwise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        # With an odd side the shifted half lacks its last pixels: pad with zeros, as in the supernet.
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def conv_bn(channels_in: int, channels_out: int) -> nn.Sequential:
    """The stem of a network: 3x3 convolution, BN."""
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out))


def relu_conv_bn(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU, kernel x kernel convolution (kernel odd), BN; (B, channels_in, H, W) -> channels_out channels."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), subsample_pointwise(conv), nn.BatchNorm2d(channels_out))


def _depthwise_separable(channels: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise convolution, 1x1 convolution, BN."""
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


def _separable(channels: int, kernel: int, stride: int) -> nn.Module:
    twice = (_depthwise_separable(channels, kernel, each) for each in (stride, 1))
    return nn.Sequential(*(module for modules in twice for module in modules))


class MaxPool(nn.Module):
    """3x3 max pooling; (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return maximum(x, 3, self.stride, 1)


BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "max_pool_3x3": lambda _, stride: MaxPool(stride),
    "avg_pool_3x3": lambda _, stride: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
    "skip_connect": lambda channels, stride: nn.Identity() if stride == 1 else FactorizedReduce(channels, channels),
    "sep_conv_3x3": lambda channels, stride: _separable(channels, 3, stride),
    "sep_conv_5x5": lambda channels, stride: _separable(channels, 5, stride),
    "dil_conv_3x3": lambda channels, stride: nn.Sequential(*_depthwise_separable(channels, 3, stride, dilation=2)),
    "dil_conv_5x5": lambda channels, stride: nn.Sequential(*_depthwise_separable(channels, 5, stride, dilation=2)),
    "nor_conv_1x1": lambda channels, stride: relu_conv_bn(channels, channels, 1, stride),
    "nor_conv_3x3": lambda channels, stride: relu_conv_bn(channels, channels, 3, stride),
}
"""name -> (channels, stride) -> module. ``none`` is missing: its zeros are left out of the sum."""


def make_operation(name: str, channels: int, stride: int = 1) -> nn.Module:
    """A new operation ``name`` with its own parameters; GenotypeError if no module implements it."""
    if name not in BUILDERS:
        raise GenotypeError(f"edge.operation must be one of {', '.join(BUILDERS)}, got {name!r}")
    return BUILDERS[name](channels, stride)


def path_scales(
    paths: int, images: int, probability: float, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Factors (paths, images, 1, 1, 1) of drop path: 1 / (1 - p) with probability 1 - p, else 0; the mean is 1.

    Source: arXiv:1605.07648, in the form of the DARTS code, but without changing activations in place. The generator
    draws on its own device; None stands for PyTorch's global one of ``device``.
    """
    keep = 1 - probability
    where = device if generator is None else generator.device
    uniform = torch.rand(paths, images, 1, 1, 1, generator=generator, device=where)
    return moved((uniform < keep) / keep, device)


def drop_path(x: Tensor, scale: Tensor | None) -> Tensor:
    """``x * scale`` for x (B, C, H, W) and a row (B, 1, 1, 1) of ``path_scales``; x if scale is None."""
    return x if scale is None else x * scale.to(x.dtype)


def require_sizes(least: int, **sizes: int) -> None:
    """Raises InvalidValueError for the first of the named sizes that is not an integer >= ``least``."""
    for field, value in sizes.items():
        good = isinstance(value, int) and not isinstance(value, bool) and value >= least
        require(good, field, f"an integer >= {least}", value)


def require_images(images: Tensor, input_channels: int) -> None:
    """Raises InvalidValueError unless ``images`` is (B, input_channels, H, W) with H and W at least 1."""
    if images.ndim != 4 or images.shape[1] != input_channels or min(images.shape[2:]) < 1:
        got = tuple(images.shape)
        raise InvalidValueError(f"images must have shape (B, {input_channels}, H, W), got {got}", field="images")
