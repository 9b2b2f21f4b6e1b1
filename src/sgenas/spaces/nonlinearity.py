"""What bends a search network: the published ReLU and max pooling, or smooth functions in their place.

ReLU and maximum have gradients that jump. Automatic differentiation sees nothing of the jumps, a difference
over a finite smoothing mu sees them as noise. A smooth network is for the search alone: the cell that is read
out of it keeps the published operations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas.errors import InvalidValueError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "softplus": F.softplus,
}
POOLINGS = ("hard", "smooth")
SHARPNESS = 4.0
"""t of the smooth maximum, per standard deviation of what is pooled, which is about 1 in a cell."""


@dataclass(frozen=True)
class Nonlinearity:
    """activation: relu, silu (x sigmoid(x)) or softplus (log(1 + exp(x))). pooling: hard (the maximum) or
    smooth (`smooth_maximum`). Raises InvalidValueError for others.
    """

    activation: str = "relu"
    pooling: str = "hard"

    def __post_init__(self) -> None:
        for field, known in (("activation", tuple(ACTIVATIONS)), ("pooling", POOLINGS)):
            value = getattr(self, field)
            if value not in known:
                raise InvalidValueError(f"{field} must be one of {', '.join(known)}, got {value!r}")

    def activate(self, x: Tensor) -> Tensor:
        """The activation, element by element."""
        return ACTIVATIONS[self.activation](x)

    def max_pool(self, x: Tensor, kernel: int, stride: int) -> Tensor:
        """Maxima of kernel x kernel windows; sides become ceil(side / stride).

        Windows of 3 are centred on their pixel, windows of 2 begin at it; what lies outside does not count.
        """
        padding = kernel // 2 if kernel % 2 else 0
        if self.pooling == "hard":
            return maximum(x, kernel, stride, padding)
        return smooth_maximum(x, kernel, stride, padding)


def maximum(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Maxima of kernel x kernel windows; sides become ceil(side / stride).

    On a GPU the derivative of PyTorch's own pooling adds in any order, and torch.use_deterministic_algorithms
    refuses it: there they are taken window by window, `stacked_maximum`.
    """
    if x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return stacked_maximum(x, kernel, stride, padding)
    return F.max_pool2d(x, kernel, stride, padding, ceil_mode=kernel % 2 == 0)


def stacked_maximum(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """`maximum`, of rows first, then of columns; equal ones go to the first, as in PyTorch's own pooling."""
    for axis in (3, 2):
        windows = _windows(x, axis, kernel, stride, padding, float("-inf"))
        x = torch.stack(windows).max(dim=0).values
    return x


def smooth_maximum(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """log(mean exp(t x)) / t over the pixels of each window that lie inside, t = SHARPNESS.

    Between the mean (t = 0) and the maximum (t to infinity). Of rows first, then of columns: the sum of
    exponentials factorises.
    """
    counts = torch.ones_like(x[:1, :1])
    for axis in (2, 3):
        x = _log_sum(SHARPNESS * x, axis, kernel, stride, padding) / SHARPNESS
        counts = torch.stack(_windows(counts, axis, kernel, stride, padding, 0.0)).sum(0)
    return x - counts.log() / SHARPNESS


def _log_sum(x: Tensor, axis: int, kernel: int, stride: int, padding: int) -> Tensor:
    # far below every value, yet finite: infinite ones give nan in second derivatives
    return torch.stack(_windows(x, axis, kernel, stride, padding, -1e4)).logsumexp(0)


def _windows(x: Tensor, axis: int, kernel: int, stride: int, padding: int, outside: float) -> list[Tensor]:
    """The kernel pixels of each window along an axis, the k-th of all windows in one tensor."""
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
