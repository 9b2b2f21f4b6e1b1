"""An exponential moving average of a network's weights (in the form of TensorFlow's)."""

import copy

import torch
from torch import Tensor, nn

from sgenas.errors import require


class MovingAverage:
    """average <- d average + (1 - d) weights, with d = min(decay, (1 + t) / (10 + t)) at update t = 1, 2, ...

    The first updates forget faster, so that a short run does not keep its random initial weights. Running
    statistics of batch normalization are averaged in the same way. Integers are copied, and so are buffers with
    infinite entries (masks, for example).

    Args:
        network: Network to average, at its initial weights.
        decay: Decay rate, in (0, 1).

    Attributes:
        network: A copy with the averaged weights, in evaluation mode.
        updates: Number of updates t.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        require(0 < decay < 1, "ema", "in (0, 1)", decay)
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0
        # (the average of two infinities is NaN)
        self._copied = {
            name
            for name, tensor in _tensors(network).items()
            if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.isinf().any()
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, current = _tensors(self.network), _tensors(network)
        averaged = [name for name in averages if name not in self._copied]
        torch._foreach_lerp_([averages[name] for name in averaged], [current[name] for name in averaged], 1 - decay)
        for name in averages.keys() & self._copied:
            averages[name].copy_(current[name])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; one that has several names, such as a tied weight, by the first of them."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
