"""Activation and pooling of a supernet: the published ReLU and max pooling, or smooth functions instead.

The gradients of ReLU and of the maximum jump. Automatic differentiation does not see the jumps; a finite
difference sees them as noise. A smooth supernet is for the search only: derived cells have the published
operations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas.errors import require_choice
from sgenas.spaces.kernels import laid_out

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "softplus": F.softplus}
POOLINGS = ("hard", "smooth")
SHARPNESS = 4.0
"""t of the smooth maximum, for inputs of standard deviation about 1, as normalization makes them."""


@dataclass(frozen=True)
class Nonlinearity:
    """Activation and maximum of a supernet.

    Args:
        activation: ``relu``, ``silu`` (x sigmoid(x)) or ``softplus`` (log(1 + exp(x))).
        pooling: ``hard`` (the maximum) or ``smooth`` (`smooth_maximum`).
    """

    activation: str = "relu"
    pooling: str = "hard"

    def __post_init__(self) -> None:
        require_choice("activation", self.activation, tuple(ACTIVATIONS))
        require_choice("pooling", self.pooling, POOLINGS)

    def activate(self, x: Tensor) -> Tensor:
        """The activation, element by element."""
        return ACTIVATIONS[self.activation](x)

    def max_pool(self, x: Tensor, kernel: int, stride: int) -> Tensor:
        """Maxima of kernel x kernel windows; sides become ceil(side / stride).

        Windows of 3 are centered on their pixel, windows of 2 begin at it. Pixels outside do not count.
        """
        pool = maximum if self.pooling == "hard" else smooth_maximum
        return pool(x, kernel, stride, kernel // 2 if kernel % 2 else 0)


def maximum(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Maxima of kernel x kernel windows; sides become ceil(side / stride).

    On a GPU the derivative of PyTorch's pooling adds in any order, and torch.use_deterministic_algorithms
    refuses it; `stacked_maximum` replaces it then.
    """
    if x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return stacked_maximum(x, kernel, stride, padding)
    return F.max_pool2d(x, kernel, stride, padding, ceil_mode=kernel % 2 == 0)


def stacked_maximum(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """`maximum`, over rows, then columns; of equal values the first gets the gradient, as in PyTorch."""
    for axis in (3, 2):
        windows = _windows(x, axis, kernel, stride, padding, float("-inf"))
        x = torch.stack(windows).max(dim=0).values
    return laid_out(x)


def smooth_maximum(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """log(mean exp(t x)) / t over the pixels of each window that are inside the image, t = SHARPNESS.

    Between the mean (t = 0) and the maximum (t to infinity). Over rows, then columns: the sum of
    exponentials factorizes.
    """
    counts = torch.ones_like(x[:1, :1])
    for axis in (2, 3):
        # outside: far below every value, yet finite, since infinite padding gives NaN in second derivatives
        windows = _windows(SHARPNESS * x, axis, kernel, stride, padding, -1e4)
        x = torch.stack(windows).logsumexp(0) / SHARPNESS
        counts = torch.stack(_windows(counts, axis, kernel, stride, padding, 0.0)).sum(0)
    return laid_out(x - counts.log() / SHARPNESS)


def _windows(x: Tensor, axis: int, kernel: int, stride: int, padding: int, outside: float) -> list[Tensor]:
    """The pixels of each window along an axis: the k-th pixel of all windows is one tensor."""
    side = x.shape[axis]
    windows = -(-side // stride)
    after = max(0, (windows - 1) * stride + kernel - padding - side)
    pad = (padding, after) if axis == 3 else (0, 0, padding, after)
    padded = F.pad(x, pad, value=outside)
    index = [slice(None)] * 4
    found = []
    for first in range(kernel):
        index[axis] = slice(first, first + (windows - 1) * stride + 1, stride)
        found.append(padded[tuple(index)])
    return found
