"""What supernets have in common: mixed edges, cells whose nodes sum them, the stem, the classifier.

Supernets take mixing weights, never raw alphas. They hold no alphas, no running statistics and no
randomness, so that their output is a pure function of (weights, mixing, images).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas import tree
from sgenas.spaces.discretization import edges_of
from sgenas.spaces.kernels import from_phases, join, laid_out, shuffle_channels, split_channels
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalization import affine_norm, weighted_sum
from sgenas.spaces.ops import Builder, NodeState, Term
from sgenas.tree import TensorDict


class Supernet(nn.Module):
    """Base of the supernets: features of the images, then a linear classifier."""

    classifier: nn.Linear

    def features(self, images: Tensor, mixing: TensorDict) -> Tensor:
        """(B, M F) of images (B, input_channels, H, W), for mixing {kind: (M, E, O)} and weights of M members."""
        raise NotImplementedError

    def forward(self, images: Tensor, mixing: TensorDict) -> Tensor:
        """Logits (B, classes) of images (B, input_channels, H, W) for mixing {kind: (E, O)}.

        With mixing {kind: (M, E, O)} and the weights of M members concatenated along their first dimension, logits
        (M, B, classes) of all members on the same images.
        """
        if all(table.ndim == 2 for table in mixing.values()):
            return self.classifier(self.features(images, {kind: table[None] for kind, table in mixing.items()}))
        features, classes = self.features(images, mixing), self.classifier.out_features
        members = next(iter(mixing.values())).shape[0]
        weight = self.classifier.weight.reshape(members, classes, -1)
        bias = self.classifier.bias.reshape(members, 1, classes)
        apart = features.reshape(features.shape[0], members, -1).transpose(0, 1)
        return torch.baddbmm(bias, apart, weight.mT)


def node_sum(weights: Sequence[Tensor], terms: Sequence[Term]) -> Tensor:
    """sum_k weights[k] terms[k], weights (C,) each; terms in phases are summed apart, and brought back once."""
    sums: dict[bool, Tensor] = {}
    for phased in [term.phased for term in terms]:
        if phased not in sums:
            kept = [k for k, term in enumerate(terms) if term.phased == phased]
            values, raw = [terms[k].value for k in kept], [terms[k].raw for k in kept]
            sums[phased] = weighted_sum([weights[k] for k in kept], values, raw)
    if True not in sums:
        return sums[False]
    whole = from_phases(sums[True])
    return whole if False not in sums else sums[False] + whole


class MixedEdge(nn.Module):
    """The operations of one edge, those of ``columns``: all but `none`, whose output is zero (Eq. 1)."""

    def __init__(self, operations: Sequence[str], builders: Mapping[str, Builder], channels: int, stride: int) -> None:
        super().__init__()
        self.columns = [column for column, name in enumerate(operations) if name != "none"]
        names = [operations[column] for column in self.columns]
        self.operations = nn.ModuleDict({name: builders[name](channels, stride) for name in names})

    def items(self) -> Iterator[tuple[int, nn.Module]]:
        """(column, operation) of each operation."""
        return zip(self.columns, self.operations.values(), strict=True)


class MixedCell(nn.Module):
    """A cell: each node is the sum of its mixed incoming edges, one from every earlier node.

    With partial = K > 1 (PC-DARTS, arXiv:1907.05737) only the first 1 / K of a node's channels go through
    the operations. The others bypass them, weighted by the total weight of the edge, the sum of its mixing
    weights. The two sums are joined, and their channels shuffled in K groups, once per node.
    """

    def __init__(self, nodes: int, inputs: int, channels: int, partial: int, nonlinearity: Nonlinearity) -> None:
        super().__init__()
        self.nodes, self.inputs, self.channels = nodes, inputs, channels
        self.partial, self.nonlinearity = partial, nonlinearity
        self.edge_list = edges_of(nodes, inputs)

    def make_edges(self, operations: Sequence[str], builders: Mapping[str, Builder]) -> None:
        """Registers the edges, after the modules that a cell has in front of them."""
        self.edges = nn.ModuleList(
            MixedEdge(operations, builders, self.channels // self.partial, self.stride(source))
            for source, _ in self.edge_list
        )

    def stride(self, source: int) -> int:
        """Stride of the edges that leave node ``source``."""
        return 1

    def node_values(self, entering: Sequence[Tensor], mixing: Tensor) -> list[Tensor]:
        """Values of all nodes, the entering ones included: (B, M C, H, W) for M members and mixing (M, E, O)."""
        members, used = mixing.shape[0], self.channels // self.partial
        # (E, O, M C): one weight per channel, so that each member's channels get its weight
        weights = mixing.permute(1, 2, 0).repeat_interleave(used, dim=2)
        rows = [edge.unbind() for edge in weights.unbind()]
        around = mixing.sum(dim=2).T.repeat_interleave(self.channels - used, dim=1).unbind()
        zeros = exact_zeros(mixing)
        values: list[Tensor] = []
        states: list[NodeState] = []
        # the channels around the operations
        bypasses: list[NodeState] = []

        def enter(value: Tensor) -> None:
            values.append(value)
            if self.partial > 1:
                value, rest = split_channels(value, members, used)
                bypasses.append(NodeState(rest, self.nonlinearity))
            states.append(NodeState(value, self.nonlinearity))

        for value in entering:
            enter(value)
        for target in range(self.inputs, self.inputs + self.nodes):
            incoming = [(row, source) for row, (source, end) in enumerate(self.edge_list) if end == target]
            every = [
                (row, column, source, operation)
                for row, source in incoming
                for column, operation in cast(MixedEdge, self.edges[row]).items()
            ]
            # a node without an operation has the shape of those that it could have
            kept = [each for each in every if not (zeros and zeros[each[0]][each[1]])] or every[:1]
            factors = [rows[row][column] for row, column, _, _ in kept]
            value = node_sum(factors, [operation(states[source]) for _, _, source, operation in kept])
            if self.partial > 1:
                rests = [bypasses[source].bypass(self.stride(source)) for _, source in incoming]
                rest = weighted_sum([around[row] for row, _ in incoming], rests, [False] * len(rests))
                value = shuffle_channels(join([value, rest], members), members, self.partial)
            enter(value)
        return values


def exact_zeros(mixing: Tensor) -> list[list[bool]]:
    """Which mixing weights (1, E, O) are exactly 0, and their operations need not be computed; empty if not known.

    Known on a CPU, of one member, where nothing differentiates in the mixing weights: a zero weight has a gradient. The
    sums are the same bit for bit. A GPU would have to be waited for.
    """
    known = len(mixing) == 1 and mixing.device.type == "cpu" and not mixing.requires_grad and not tree.transformed()
    return (mixing[0] == 0).tolist() if known else []


class Stem(nn.Sequential):
    """3x3 convolution and normalization with scale and shift, of images that all members share."""

    def __init__(self, input_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(input_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, track_running_stats=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, M channels, H, W), in the memory layout of the device; the weights may be those of M members."""
        convolution, norm = cast(nn.Conv2d, self[0]), cast(nn.BatchNorm2d, self[1])
        x = F.conv2d(laid_out(images), convolution.weight, None, padding=1)
        # Requested after the convolution, too: images of one channel are in both layouts at once, for which oneDNN
        # chooses the slow one.
        return laid_out(affine_norm(x, norm))
