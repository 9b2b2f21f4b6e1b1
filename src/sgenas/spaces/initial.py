"""First weights of a supernet, from a generator of our own."""

import math

import torch
from torch import nn

from sgenas.trees import Tree


def initial_weights(network: nn.Module, generator: torch.Generator) -> Tree:
    """Fresh weights for `network` on the CPU, by the names of its parameters; its own are not read.

    Convolutions and linear layers: uniform in +-1 / sqrt(fan_in), as PyTorch draws them by default;
    normalisation: scale 1, shift 0.
    """
    weights: Tree = {}
    for name, module in network.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            tensor = torch.empty(parameter.shape, dtype=torch.get_default_dtype())
            if isinstance(module, nn.BatchNorm2d):
                tensor.fill_(1.0 if key == "weight" else 0.0)
            else:
                bound = 1 / math.sqrt(module.weight[0].numel())
                tensor.uniform_(-bound, bound, generator=generator)
            weights[f"{name}.{key}"] = tensor
    return weights
