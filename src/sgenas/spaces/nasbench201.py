"""The search space of NAS-Bench-201 (arXiv:2001.00326): one small cell, stacked in three stages.

Shapes as in `ops`: B images, C channels, H x W pixels, M members side by side along the channels. The search
network is that of AutoDL's NAS-Bench-201 searches, with batch statistics and no running buffers.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.kernels import channels_last, classify_members, pointwise
from sgenas.spaces.nasbench201_strings import EDGES, INPUTS, KIND, NODES, OPERATIONS, genotype_of
from sgenas.spaces.normalisation import weighted_sum
from sgenas.spaces.ops import NodeState, Skip, Term
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree

STAGES = 3


def convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """3x3 convolution, weight (M O, C, 3, 3) for x (B, M C, H, W): one group for each of M members."""
    return F.conv2d(x, weight, None, stride, padding=1, groups=x.shape[1] // weight.shape[1])


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Normalisation by the batch with the scale and shift of `norm`, which may be those of M members."""
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


class CellState(NodeState):
    """A node of this cell: it pools without normalisation."""

    def mean_pool(self) -> Tensor:
        """Mean over the 3x3 pixels around each, those outside the image not counted."""
        return self._once("mean", lambda: F.avg_pool2d(self.value, 3, 1, padding=1, count_include_pad=False))


class NormalConv(nn.Module):
    """ReLU, k x k convolution, normalisation without scale and shift; k = 1 or 3."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, node: CellState) -> Term:
        weight = self.conv.weight
        convolve = pointwise if weight.shape[-1] == 1 else convolution
        return Term(convolve(node.relu(), weight), raw=True)


class MeanPool(nn.Module):
    """3x3 average pooling."""

    def forward(self, node: CellState) -> Term:
        return Term(node.mean_pool())


class MixedEdge(nn.Module):
    """All operations of one edge but `none`, whose output is zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(
            {
                "skip_connect": Skip(),
                "nor_conv_1x1": NormalConv(channels, 1),
                "nor_conv_3x3": NormalConv(channels, 3),
                "avg_pool_3x3": MeanPool(),
            }
        )

    def forward(self, node: CellState) -> list[tuple[int, Term]]:
        """For each operation its column in the mixing weights and what it makes of the node."""
        return [(OPERATIONS.index(name), operation(node)) for name, operation in self.operations.items()]


class SearchCell(nn.Module):
    """Three nodes, each the sum of m_k o_k(x) over all earlier nodes x and operations; gives the last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.edges = nn.ModuleList(MixedEdge(channels) for _ in EDGES)

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, M C, H, W) from x of the same shape and mixing (M, E, O)."""
        # (E, O, M C): one weight for each channel, so that a member's channels get the member's weight
        weights = mixing.permute(1, 2, 0).repeat_interleave(self.channels, dim=2)
        rows = [edge.unbind() for edge in weights.unbind()]
        states = [CellState(x)]
        for target in range(INPUTS, INPUTS + NODES):
            factors, terms = [], []
            for (source, end), edge, row in zip(EDGES, self.edges, rows, strict=True):
                if end == target:
                    for column, term in edge(states[source]):
                        factors.append(row[column])
                        terms.append(term)
            total = weighted_sum(factors, [term.value for term in terms], [term.raw for term in terms])
            states.append(CellState(total))
        return states[-1].value


class ResidualBlock(nn.Module):
    """Between two stages: halves the image, twice as many channels, nothing to search.

    (ReLU, 3x3 convolution, normalisation with scale and shift) twice, the first of stride 2, plus the mean of
    2x2 pixels through a 1x1 convolution. With odd sides the last row or column is the mean of what is there,
    where the published block, made for 32 x 32 images, does not fit together.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(2 * channels, track_running_stats=False)
        self.second = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(2 * channels, track_running_stats=False)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M 2C, ceil(H / 2), ceil(W / 2)) from (B, M C, H, W)."""
        inner = batch_norm(convolution(F.relu(x), self.first.weight, 2), self.first_norm)
        inner = batch_norm(convolution(F.relu(inner), self.second.weight), self.second_norm)
        return inner + pointwise(F.avg_pool2d(x, 2, ceil_mode=True), self.shortcut.weight)


class SearchNetwork(nn.Module):
    """Stem, 3 stages of `cells` cells with C, 2C and 4C channels, a residual block between, classifier."""

    def __init__(self, channels: int, cells: int, classes: int, input_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(input_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, track_running_stats=False),
        )
        self.layers = nn.ModuleList()
        for stage in range(STAGES):
            if stage > 0:
                self.layers.append(ResidualBlock(channels))
                channels *= 2
            self.layers.extend(SearchCell(channels) for _ in range(cells))
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor, mixing: Tree) -> Tensor:
        """Logits (B, classes) of images (B, input_channels, H, W), mixing {"cell": (E, O)}.

        With mixing {"cell": (M, E, O)}, and all weights of M members stacked along their first dimension (M
        times as long), logits (M, B, classes), of all members on the same images.
        """
        stacked = mixing[KIND].ndim == 3
        table = mixing[KIND] if stacked else mixing[KIND][None]
        # every member convolves the same images, so that the stem has one group, however many there are
        stem, stem_norm = cast(nn.Conv2d, self.stem[0]), cast(nn.BatchNorm2d, self.stem[1])
        x = batch_norm(F.conv2d(channels_last(images), stem.weight, None, padding=1), stem_norm)
        # after the stem too: images of one channel are in both layouts at once (see cells.SearchNetwork)
        x = channels_last(x)
        for layer in self.layers:
            x = layer(x) if isinstance(layer, ResidualBlock) else layer(x, table)
        features = F.relu(batch_norm(x, self.norm)).mean(dim=(2, 3))
        if not stacked:
            return self.classifier(features)
        return classify_members(features, self.classifier, table.shape[0])


class NasBench201Space(SupernetSpace):
    """The cells of NAS-Bench-201: a supernet, its alphas, and how to read a cell out of them.

    channels: of the first stage (C), doubled twice; cells: in each of the 3 stages (N); classes;
    input_channels: of the images; generator: draws the first weights (by default a fresh one with seed 0).
    Alphas are a tree {"cell": (6, 5)}, shared by all cells: edges by target, then source, operations in the
    benchmark's order; weights are the tree of the supernet's parameters. Normalisation in the cells has no
    scale and shift, that of stem, residual blocks and head has; no convolution has a bias.

    Raises InvalidValueError for a size below its minimum.
    """

    def __init__(
        self,
        *,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        input_channels: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        minima = {"channels": (channels, 1), "cells": (cells, 1), "classes": (classes, 2)}
        minima |= {"input_channels": (input_channels, 1)}
        for field, (value, least) in minima.items():
            if value < least:
                raise InvalidValueError(f"{field} must be >= {least}, got {value}")
        self.operations: tuple[str, ...] = OPERATIONS
        self.nodes = NODES
        self.edges = EDGES
        # made without storage, then filled from our own generator: torch's global one stays untouched
        with torch.device("meta"):
            network = SearchNetwork(channels, cells, classes, input_channels)
        self._adopt(network, generator)

    def initial_alphas(self, generator: torch.Generator) -> Tree:
        """1e-3 N(0, 1) for every entry, as in the DARTS code and AutoDL's; on the CPU."""
        return {KIND: 1e-3 * torch.randn((len(self.edges), len(self.operations)), generator=generator)}

    def derive(self, alphas: Tree) -> Genotype:
        """The cell of the moment: on every edge the operation with the largest weight, `none` included.

        An edge with `none` is left out of the genotype. Between equals the lower index wins. Raises
        InvalidValueError for alphas of another shape.
        """
        mixing = trees.detach(self.mixing(alphas))[KIND]
        expected = (len(self.edges), len(self.operations))
        if mixing.shape != expected:
            raise InvalidValueError(f"alphas.{KIND} must have shape {expected}, got {tuple(mixing.shape)}")
        return genotype_of([self.operations[_first_largest(row)] for row in mixing.tolist()])


def _first_largest(row: Sequence[float]) -> int:
    return max(range(len(row)), key=lambda index: row[index])
