"""A running average of a network's weights (arXiv:1803.05407 names the idea; the form is TensorFlow's)."""

import copy

import torch
from torch import nn


class RunningAverage:
    """average <- d average + (1 - d) weights, with d = min(decay, (1 + t) / (10 + t)) at update t = 1, 2, ...

    The first updates forget faster, so that a short run does not drag its random first weights along. The
    statistics of batch normalisation are averaged in the same way; integers are copied. `network` holds the
    average, ready to be evaluated.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights of the moment."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, current = self.network.state_dict(), network.state_dict()
        floats = [name for name in averages if averages[name].is_floating_point()]
        torch._foreach_lerp_(
            [averages[name] for name in floats], [current[name] for name in floats], 1 - decay
        )
        for name in averages.keys() - set(floats):
            averages[name].copy_(current[name])
