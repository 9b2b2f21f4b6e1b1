"""What search spaces do with their supernets: fill them, relax the alphas, run them for one or many."""

import torch
from torch import Tensor, nn

from sgenas import trees
from sgenas.spaces import initial, relaxation
from sgenas.trees import Tree


class SupernetSpace:
    """Base of the search spaces. The network takes (images, mixing weights) and holds no alphas."""

    supernet: nn.Module

    def _adopt(self, network: nn.Module, generator: torch.Generator | None) -> None:
        """Makes a network without storage the space's own, first weights drawn (by default with seed 0)."""
        self.supernet = network.to_empty(device="cpu")
        self.supernet.load_state_dict(self.initial_weights(generator or torch.Generator().manual_seed(0)))

    def initial_weights(self, generator: torch.Generator) -> Tree:
        """Fresh weights on the CPU, drawn as PyTorch draws them by default.

        Convolutions and linear layers: uniform in +-1 / sqrt(fan_in); normalisation: scale 1, shift 0.
        """
        return initial.initial_weights(self.supernet, generator)

    def mixing(self, alphas: Tree) -> Tree:
        """Mixing weights of raw alphas: softmax over the operations of each edge (Eq. 1)."""
        return relaxation.softmax(alphas)

    def logits(self, weights: Tree, alphas: Tree, images: Tensor) -> Tensor:
        """(B, classes) for images (B, input_channels, H, W) in floats: pure, differentiable in all three."""
        return torch.func.functional_call(self.supernet, weights, (images, self.mixing(alphas)))

    def stacked_logits(self, weights: Tree, alphas: Tree, images: Tensor) -> Tensor:
        """(M, B, classes): the `logits` of M members at once, every tensor of both trees (M, ...)."""
        flat = trees.map_tree(lambda tensor: tensor.flatten(0, 1), weights)
        return torch.func.functional_call(self.supernet, flat, (images, self.mixing(alphas)))
