"""The operations of the cells in a supernet: batch statistics, no scale and shift, no running buffers.

Shapes: B images, C channels, H x W pixels. Every operation maps (B, C, H, W) to the same shape, or to
(B, C, ceil(H / 2), ceil(W / 2)) with stride 2. Definitions: arXiv:1806.09055 and cnn/operations.py of the
DARTS code; for NAS-Bench-201 arXiv:2001.00326.

An operation takes a `NodeState` instead of a tensor: what all edges that leave a node share (its activated
values, its pooled values) is computed once per node, not once per edge. It returns a `Term` instead of a
tensor, since the sum over terms can finish it at less cost.

M members, copies of the network with their own weights and alphas, can go through one call: their channels
are concatenated, C = M times the channels of one, and a convolution has one group per member.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sgenas.spaces.kernels import dense, depthwise, join, laid_out, to_phases
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalization import normalize


@dataclass(frozen=True)
class Term:
    """What an operation adds to a node.

    Args:
        value: (B, C, H, W).
        raw: Whether it still has to be normalized.
        phased: Whether it is in the form of `kernels.to_phases`.
    """

    value: Tensor
    raw: bool = False
    phased: bool = False


class NodeState:
    """The value of one node, and what operations compute from it, each once and on demand."""

    def __init__(self, value: Tensor, nonlinearity: Nonlinearity) -> None:
        self.value = value
        self.nonlinearity = nonlinearity
        self._cache: dict[str, Tensor] = {}

    def activated(self) -> Tensor:
        """The activation of the value."""
        return self._once("activated", lambda: self.nonlinearity.activate(self.value))

    def max_pool(self, stride: int) -> Tensor:
        """3x3 max pooling, then normalization."""
        return self._once(f"max{stride}", lambda: normalize(self.nonlinearity.max_pool(self.value, 3, stride)))

    def avg_pool(self, stride: int) -> Tensor:
        """3x3 mean over the pixels inside the image, then normalization."""
        return self._once(f"avg{stride}", lambda: normalize(self._mean(stride)))

    def mean_pool(self, stride: int) -> Tensor:
        """The same without normalization."""
        return self._once(f"mean{stride}", lambda: self._mean(stride))

    def identity(self, stride: int) -> Tensor:
        """The value."""
        return self.value

    def _mean(self, stride: int) -> Tensor:
        return F.avg_pool2d(self.value, 3, stride, padding=1, count_include_pad=False)

    def bypass(self, stride: int) -> Tensor:
        """The value, or with stride 2 the maxima of 2 x 2 pixels, at odd borders of those that exist (PC-DARTS)."""
        return self.value if stride == 1 else self._once("bypass", lambda: self.nonlinearity.max_pool(self.value, 2, 2))

    def even(self) -> Tensor:
        """activated() at the even pixels, which are all that a dilated convolution of stride 2 reads."""
        return self._once("even", lambda: laid_out(self.activated()[:, :, ::2, ::2]))

    def phases(self) -> Tensor:
        """activated() in the form of `kernels.to_phases`."""
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


class Shared(nn.Module):
    """An operation without weights: the method ``name`` of the node, the same for all edges that leave it."""

    def __init__(self, name: str, stride: int = 1) -> None:
        super().__init__()
        self.name, self.stride = name, stride

    def forward(self, node: NodeState) -> Term:
        return Term(getattr(node, self.name)(self.stride))


class SharedFactorizedReduce(nn.Module):
    """ReLU, two concatenated 1x1 convolutions of stride 2, the second shifted by one pixel, normalization."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.even = nn.Conv2d(channels_in, half, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - half, 1, stride=2, bias=False)

    def forward(self, node: NodeState) -> Term:
        x = node.activated()
        # with odd sides the shifted half lacks its last row or column, which are zeros
        shifted = F.pad(x[:, :, 1:, 1:], (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        halves = [dense(x, self.even.weight, 2), dense(shifted, self.odd.weight, 2)]
        return Term(join(halves, x.shape[1] // self.even.weight.shape[1]), raw=True)


class PointwiseConv(nn.Module):
    """ReLU, 1x1 convolution, normalization: brings the inputs of a cell to its number of channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, node: NodeState) -> Term:
        return Term(dense(node.activated(), self.pointwise.weight), raw=True)


class DenseConv(nn.Module):
    """ReLU, k x k convolution, normalization; k = 1 or 3 (NAS-Bench-201)."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, node: NodeState) -> Term:
        return Term(dense(node.activated(), self.conv.weight), raw=True)


class DepthwiseSeparable(nn.Module):
    """Depthwise k x k convolution, then 1x1 convolution, of an activated value."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, activated: Tensor) -> Tensor:
        return dense(depthwise(activated, self.depthwise.weight, self.stride), self.pointwise.weight)

    def dilated(self, activated: Tensor) -> Tensor:
        """The same with dilation 2 and stride 1, for sides that are odd."""
        weight = self.depthwise.weight
        spread = F.conv2d(activated, weight, None, padding=weight.shape[-1] - 1, dilation=2, groups=weight.shape[0])
        return dense(spread, self.pointwise.weight)


class SeparableConv(nn.Module):
    """(ReLU, depthwise, pointwise, normalization) twice, the stride in the first."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.first = DepthwiseSeparable(channels, kernel, stride)
        self.second = DepthwiseSeparable(channels, kernel, 1)

    def forward(self, node: NodeState) -> Term:
        between = node.nonlinearity.activate(normalize(self.first(node.activated())))
        return Term(self.second(between), raw=True)


class DilatedConv(nn.Module):
    """ReLU, depthwise with dilation 2, pointwise, normalization.

    oneDNN has no fast kernel for dilated depthwise convolutions. They never mix pixels of different parity,
    so they are ordinary convolutions of the even pixels (stride 2) or of each parity (stride 1). In the
    latter case the output keeps the form of `kernels.to_phases`, which the sum of the node undoes once.
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


Builder = Callable[[int, int], nn.Module]
"""(channels, stride) -> an operation that takes a NodeState and returns a Term."""

# the published cell does not normalize max pooling
DARTS_BUILDERS: dict[str, Builder] = {
    "max_pool_3x3": lambda channels, stride: Shared("max_pool", stride),
    "avg_pool_3x3": lambda channels, stride: Shared("avg_pool", stride),
    "skip_connect": lambda channels, stride: (
        Shared("identity") if stride == 1 else SharedFactorizedReduce(channels, channels)
    ),
    "sep_conv_3x3": lambda channels, stride: SeparableConv(channels, 3, stride),
    "sep_conv_5x5": lambda channels, stride: SeparableConv(channels, 5, stride),
    "dil_conv_3x3": lambda channels, stride: DilatedConv(channels, 3, stride),
    "dil_conv_5x5": lambda channels, stride: DilatedConv(channels, 5, stride),
}
"""Operations of the DARTS cells by name; not `none`, whose output is zero and is never computed."""

NASBENCH201_BUILDERS: dict[str, Builder] = {
    "skip_connect": lambda channels, stride: Shared("identity"),
    "nor_conv_1x1": lambda channels, stride: DenseConv(channels, 1),
    "nor_conv_3x3": lambda channels, stride: DenseConv(channels, 3),
    "avg_pool_3x3": lambda channels, stride: Shared("mean_pool"),
}
"""Operations of the NAS-Bench-201 cells by name; their stride is always 1."""
