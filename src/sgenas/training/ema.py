"""An exponential moving average of a network's weights (in the form of TensorFlow's)."""

import copy

import torch
from torch import nn

from sgenas.errors import require


class MovingAverage:
    """average <- d average + (1 - d) weights, with d = min(decay, (1 + t) / (10 + t)) at update t = 1, 2, ...

    The first updates forget faster, so that a short run does not keep its random initial weights. The
    statistics of batch normalization are averaged in the same way; integers are copied.

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

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, current = self.network.state_dict(), network.state_dict()
        floats = [name for name in averages if averages[name].is_floating_point()]
        torch._foreach_lerp_([averages[name] for name in floats], [current[name] for name in floats], 1 - decay)
        for name in averages.keys() - set(floats):
            averages[name].copy_(current[name])
