"""Terms that a method adds to the outer loss: functions of the raw alphas, with a direct part only."""

import torch
from torch import Tensor

from sgenas.trees import Tree


def beta_decay(alphas: Tree) -> Tensor:
    """Mean over all edges of all tables of logsumexp over the edge's alphas (beta-DARTS, arXiv:2203.01665).

    Its gradient is softmax(alpha) / edges: the largest alphas are pulled down most. The released code has
    one table; with two, normal and reduction, the mean is over the edges of both.
    """
    # (a table without rows, the alphas of one choice, is an edge by itself)
    return torch.cat([table.logsumexp(dim=-1).flatten() for table in alphas.values()]).mean()


def zero_one_squared(alphas: Tree) -> Tensor:
    """-mean (sigmoid(alpha) - 1/2)^2 over all entries: lowest where all weights are 0 or 1.

    Fair DARTS (arXiv:1911.12126), its default form. Value and gradient are 0 at alpha = 0.
    """
    return -_from_half(alphas).square().mean()


def zero_one_absolute(alphas: Tree) -> Tensor:
    """-mean |sigmoid(alpha) - 1/2|: the other form of Fair DARTS."""
    return -_from_half(alphas).abs().mean()


def _from_half(alphas: Tree) -> Tensor:
    return torch.cat([table.flatten() for table in alphas.values()]).sigmoid() - 0.5
