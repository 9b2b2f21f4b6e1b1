"""The operations of the DARTS cells in their search form: batch statistics, no affine, no running buffers.

Shapes: B images, C channels, H x W pixels. Every operation maps (B, C, H, W) to the same shape, or to
(B, C, ceil(H / 2), ceil(W / 2)) with stride 2. Definitions: arXiv:1806.09055 and cnn/operations.py of the
DARTS code.

An operation does not read a plain tensor but a `NodeState`: what all edges that leave a node need from it
(its activated values, its pooled values) is computed once for the node instead of once for each edge. It
does not return a plain tensor but a `Term`, since the sum that it enters can finish it at less cost.

Several members, M copies of the network with their own weights and alphas, may go through one call: their
channels lie side by side, C = M times the channels of one, and a convolution has one group for each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sgenas.spaces.kernels import channels_last, depthwise, join, pointwise, to_phases
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalisation import normalise


@dataclass(frozen=True)
class Term:
    """What an operation adds to a node. raw: still to be normalised. phased: see `kernels.to_phases`."""

    value: Tensor
    raw: bool = False
    phased: bool = False


class NodeState:
    """The value of one node and, made on demand and once, what the operations take from it."""

    def __init__(self, value: Tensor, nonlinearity: Nonlinearity) -> None:
        self.value = value
        self.nonlinearity = nonlinearity
        self._cache: dict[str, Tensor] = {}

    def activated(self) -> Tensor:
        """max(value, 0), or what stands for it."""
        return self._once("activated", lambda: self.nonlinearity.activate(self.value))

    def max_pool(self, stride: int) -> Tensor:
        """3x3 max pooling, then normalisation."""
        return self._once(
            f"max{stride}", lambda: normalise(self.nonlinearity.max_pool(self.value, 3, stride))
        )

    def avg_pool(self, stride: int) -> Tensor:
        """3x3 mean over the pixels inside the image, then normalisation."""
        return self._once(f"avg{stride}", lambda: normalise(self._mean(stride)))

    def mean_pool(self) -> Tensor:
        """3x3 mean over the pixels inside the image, not normalised."""
        return self._once("mean", lambda: self._mean(1))

    def _mean(self, stride: int) -> Tensor:
        return F.avg_pool2d(self.value, 3, stride, padding=1, count_include_pad=False)

    def even(self) -> Tensor:
        """activated() at the even pixels: all that a dilated convolution of stride 2 reads."""
        return self._once("even", lambda: channels_last(self.activated()[:, :, ::2, ::2]))

    def phases(self) -> Tensor:
        """activated() with the pixels of each parity apart, see `kernels.to_phases`."""
        return self._once("phases", lambda: to_phases(self.activated()))

    @property
    def phased(self) -> bool:
        """Whether dilated convolutions of stride 1 work on phases: even sides, on a CPU."""
        even = self.value.shape[2] % 2 == 0 and self.value.shape[3] % 2 == 0
        return even and self.value.device.type == "cpu"

    def _once(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]


class MaxPool(nn.Module):
    """3x3 max pooling with normalisation (the published cell has no normalisation there)."""

    def __init__(self, channels: int, stride: int) -> None:  # noqa: ARG002
        super().__init__()
        self.stride = stride

    def forward(self, node: NodeState) -> Term:
        return Term(node.max_pool(self.stride))


class AvgPool(nn.Module):
    """3x3 average pooling with normalisation."""

    def __init__(self, channels: int, stride: int) -> None:  # noqa: ARG002
        super().__init__()
        self.stride = stride

    def forward(self, node: NodeState) -> Term:
        return Term(node.avg_pool(self.stride))


class Skip(nn.Module):
    """The identity."""

    def forward(self, node: NodeState) -> Term:
        return Term(node.value)


class FactorizedReduce(nn.Module):
    """ReLU, then two 1x1 convolutions of stride 2 side by side, the second one pixel further, normalised."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.even = nn.Conv2d(channels_in, half, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - half, 1, stride=2, bias=False)

    def forward(self, node: NodeState) -> Term:
        x = node.activated()
        # with an odd number of rows or columns the shifted half lacks its last one: zeros stand for it
        shifted = F.pad(x[:, :, 1:, 1:], (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        halves = [pointwise(x, self.even.weight, 2), pointwise(shifted, self.odd.weight, 2)]
        return Term(join(halves, x.shape[1] // self.even.weight.shape[1]), raw=True)


class PointwiseConv(nn.Module):
    """ReLU, 1x1 convolution, normalisation: how a cell brings its inputs to its own number of channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, node: NodeState) -> Term:
        return Term(pointwise(node.activated(), self.pointwise.weight), raw=True)


class DepthwiseSeparable(nn.Module):
    """Depthwise k x k convolution, then 1x1 convolution, of a value that is activated already."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, activated: Tensor) -> Tensor:
        return pointwise(depthwise(activated, self.depthwise.weight, self.stride), self.pointwise.weight)

    def dilated(self, activated: Tensor) -> Tensor:
        """The same with dilation 2 and stride 1, in one call: for what cannot be cut into phases."""
        weight = self.depthwise.weight
        spread = F.conv2d(
            activated, weight, None, padding=weight.shape[-1] - 1, dilation=2, groups=weight.shape[0]
        )
        return pointwise(spread, self.pointwise.weight)


class SeparableConv(nn.Module):
    """(ReLU, depthwise, pointwise, normalisation) twice, the stride in the first."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.first = DepthwiseSeparable(channels, kernel, stride)
        self.second = DepthwiseSeparable(channels, kernel, 1)

    def forward(self, node: NodeState) -> Term:
        between = node.nonlinearity.activate(normalise(self.first(node.activated())))
        return Term(self.second(between), raw=True)


class DilatedConv(nn.Module):
    """ReLU, depthwise with dilation 2, pointwise, normalisation.

    oneDNN has no fast kernel for dilated depthwise convolutions. Pixels of different parity never meet in
    one, so it is an ordinary convolution of the even pixels (stride 2) or of each parity apart (stride 1).
    In the latter case the output stays in phases, and the node's sum undoes it once.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = DepthwiseSeparable(channels, kernel, stride=1)

    def forward(self, node: NodeState) -> Term:
        if self.stride == 2:
            return Term(self.conv(node.even()), raw=True)
        if node.phased:
            return Term(self.conv(node.phases()), raw=True, phased=True)
        return Term(self.conv.dilated(node.activated()), raw=True)


def _skip(channels: int, stride: int) -> nn.Module:
    return Skip() if stride == 1 else FactorizedReduce(channels, channels)


BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "max_pool_3x3": MaxPool,
    "avg_pool_3x3": AvgPool,
    "skip_connect": _skip,
    "sep_conv_3x3": lambda channels, stride: SeparableConv(channels, 3, stride),
    "sep_conv_5x5": lambda channels, stride: SeparableConv(channels, 5, stride),
    "dil_conv_3x3": lambda channels, stride: DilatedConv(channels, 3, stride),
    "dil_conv_5x5": lambda channels, stride: DilatedConv(channels, 5, stride),
}
"""name -> (channels, stride) -> module. `none` is not here: its output is zero, so no one computes it."""
