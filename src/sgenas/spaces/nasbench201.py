"""The search space of NAS-Bench-201 (arXiv:2001.00326): one small cell, stacked in three stages.

Shapes as in `ops`: B images, C channels, H x W pixels, M members side by side along the channels. The search
network is that of AutoDL's NAS-Bench-201 searches, with batch statistics and no running buffers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces.cells import Builder, MixedCell, Stem
from sgenas.spaces.derivation import Rule
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.kernels import classify_members, pointwise
from sgenas.spaces.nasbench201_strings import EDGES, INPUTS, KIND, NODES, OPERATIONS, genotype_of
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalisation import affine_norm
from sgenas.spaces.ops import NodeState, Skip, Term
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree

STAGES = 3


def convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """3x3 convolution, weight (M O, C, 3, 3) for x (B, M C, H, W): one group for each of M members."""
    return F.conv2d(x, weight, None, stride, padding=1, groups=x.shape[1] // weight.shape[1])


class NormalConv(nn.Module):
    """ReLU, k x k convolution, normalisation without scale and shift; k = 1 or 3."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, node: NodeState) -> Term:
        weight = self.conv.weight
        convolve = pointwise if weight.shape[-1] == 1 else convolution
        return Term(convolve(node.activated(), weight), raw=True)


class MeanPool(nn.Module):
    """3x3 average pooling."""

    def forward(self, node: NodeState) -> Term:
        return Term(node.mean_pool())


BUILDERS: dict[str, Builder] = {
    "skip_connect": lambda channels, stride: Skip(),  # noqa: ARG005
    "nor_conv_1x1": lambda channels, stride: NormalConv(channels, 1),  # noqa: ARG005
    "nor_conv_3x3": lambda channels, stride: NormalConv(channels, 3),  # noqa: ARG005
    "avg_pool_3x3": lambda channels, stride: MeanPool(),  # noqa: ARG005
}
"""name -> (channels, stride) -> module; the benchmark's cells have stride 1 throughout."""


class SearchCell(MixedCell):
    """Three nodes, each the sum of m_k o_k(x) over all earlier nodes x and operations; gives the last."""

    def __init__(
        self, operations: Sequence[str], channels: int, partial: int, nonlinearity: Nonlinearity
    ) -> None:
        super().__init__(NODES, INPUTS, channels, partial, nonlinearity)
        self.make_edges(operations, BUILDERS)

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, M C, H, W) from x of the same shape and mixing (M, E, O)."""
        return self.node_values([x], mixing)[-1]


class ResidualBlock(nn.Module):
    """Between two stages: halves the image, twice as many channels, nothing to search.

    (ReLU, 3x3 convolution, normalisation with scale and shift) twice, the first of stride 2, plus the mean of
    2x2 pixels through a 1x1 convolution. With odd sides the last row or column is the mean of what is there,
    where the published block, made for 32 x 32 images, does not fit together.
    """

    def __init__(self, channels: int, nonlinearity: Nonlinearity) -> None:
        super().__init__()
        self.activate = nonlinearity.activate
        self.first = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(2 * channels, track_running_stats=False)
        self.second = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(2 * channels, track_running_stats=False)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M 2C, ceil(H / 2), ceil(W / 2)) from (B, M C, H, W)."""
        inner = affine_norm(convolution(self.activate(x), self.first.weight, 2), self.first_norm)
        inner = affine_norm(convolution(self.activate(inner), self.second.weight), self.second_norm)
        return inner + pointwise(F.avg_pool2d(x, 2, ceil_mode=True), self.shortcut.weight)


class SearchNetwork(nn.Module):
    """Stem, 3 stages of `cells` cells with C, 2C and 4C channels, a residual block between, classifier."""

    def __init__(
        self,
        operations: Sequence[str],
        channels: int,
        cells: int,
        classes: int,
        input_channels: int,
        partial: int,
        nonlinearity: Nonlinearity,
    ) -> None:
        super().__init__()
        self.activate = nonlinearity.activate
        self.stem = Stem(input_channels, channels)
        self.layers = nn.ModuleList()
        for stage in range(STAGES):
            if stage > 0:
                self.layers.append(ResidualBlock(channels, nonlinearity))
                channels *= 2
            self.layers.extend(SearchCell(operations, channels, partial, nonlinearity) for _ in range(cells))
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor, mixing: Tree) -> Tensor:
        """Logits (B, classes) of images (B, input_channels, H, W), mixing {"cell": (E, O)}.

        With mixing {"cell": (M, E, O)}, and all weights of M members stacked along their first dimension (M
        times as long), logits (M, B, classes), of all members on the same images.
        """
        stacked = mixing[KIND].ndim == 3
        table = mixing[KIND] if stacked else mixing[KIND][None]
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x) if isinstance(layer, ResidualBlock) else layer(x, table)
        features = self.activate(affine_norm(x, self.norm)).mean(dim=(2, 3))
        if not stacked:
            return self.classifier(features)
        return classify_members(features, self.classifier, table.shape[0])


class NasBench201Space(SupernetSpace):
    """The cells of NAS-Bench-201: a supernet, its alphas, and how to read a cell out of them.

    channels: of the first stage (C), doubled twice; cells: in each of the 3 stages (N); classes;
    input_channels: of the images; generator: draws the first weights (by default a fresh one with seed 0).
    operations: those that may stand on an edge, of the benchmark's five; partial: K of partially connected
    cells, see `pc_darts`; activation: see `nonlinearity` (the benchmark's pooling is a mean, and smooth).
    Alphas are a tree {"cell": (6, 5)}, shared by all cells: edges by target, then source, operations in the
    benchmark's order; weights are the tree of the supernet's parameters. Normalisation in the cells has no
    scale and shift, that of stem, residual blocks and head has; no convolution has a bias.

    Raises InvalidValueError for a size below its minimum.
    """

    kinds = (KIND,)

    def __init__(
        self,
        *,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        input_channels: int = 3,
        operations: Sequence[str] = OPERATIONS,
        partial: int = 1,
        activation: str = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        minima = {"channels": (channels, 1), "cells": (cells, 1), "classes": (classes, 2)}
        minima |= {"input_channels": (input_channels, 1)}
        for field, (value, least) in minima.items():
            if value < least:
                raise InvalidValueError(f"{field} must be >= {least}, got {value}")
        if partial < 1 or channels % partial:
            raise InvalidValueError(f"partial_channels must divide channels {channels}, got {partial}")
        nonlinearity = Nonlinearity(activation)
        self.operations = tuple(operations)
        self.partial = partial
        self.nodes = NODES
        self.edges = EDGES
        # made without storage, then filled from our own generator: torch's global one stays untouched
        with torch.device("meta"):
            network = SearchNetwork(
                self.operations, channels, cells, classes, input_channels, partial, nonlinearity
            )
        self._adopt(network, generator)

    @property
    def rule(self) -> Rule:
        return Rule(keep=None, hollow=True)

    def strongest(self, alphas: Tree) -> list[str]:
        """The operation with the largest weight on each edge; between equals the one of the lower index.

        Raises InvalidValueError for alphas of another shape.
        """
        mixing = trees.detach(self.mixing(alphas))[KIND]
        expected = (len(self.edges), len(self.operations))
        if mixing.shape != expected:
            raise InvalidValueError(f"alphas.{KIND} must have shape {expected}, got {tuple(mixing.shape)}")
        return [self.operations[index] for index in mixing.argmax(dim=1).tolist()]

    def derive(self, alphas: Tree) -> Genotype:
        """The cell of the moment: on every edge the operation with the largest weight, `none` included.

        An edge with `none` is left out of the genotype. Raises as `strongest`.
        """
        return genotype_of(self.strongest(alphas))
