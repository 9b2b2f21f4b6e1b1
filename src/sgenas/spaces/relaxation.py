"""From raw alphas to mixing weights: the continuous relaxation of the choice of an operation."""

import torch
from torch import Tensor

from sgenas.trees import Tree


def softmax(alphas: Tree) -> Tree:
    """Eq. 1: each table (edges, operations) becomes beta = softmax over the operations of an edge."""
    return {name: table.softmax(dim=-1) for name, table in alphas.items()}


def sigmoid(alphas: Tree) -> Tree:
    """Each entry by itself: 1 / (1 + exp(-alpha)), so that operations do not compete (arXiv:1911.12126)."""
    return {name: table.sigmoid() for name, table in alphas.items()}


def over_incoming(edges: Tensor, targets: list[int]) -> Tensor:
    """Softmax over the edges that enter the same node; edges (..., E), targets[e] the node that e enters.

    Edges of a node stand side by side, as `derivation.edges_of` orders them.
    """
    counts = [targets.count(node) for node in dict.fromkeys(targets)]
    return torch.cat([group.softmax(dim=-1) for group in torch.split(edges, counts, dim=-1)], dim=-1)
