"""What the searchable cells of all spaces are made of: mixed edges, nodes that sum them, the stem.

Networks take *mixing weights* (already relaxed), never raw alphas: relaxation belongs to the space. They
hold no alphas, no running statistics and no randomness, so that their output is a pure function of
(weights, mixing, images).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from sgenas.spaces.derivation import edges_of
from sgenas.spaces.kernels import (
    channels_last,
    from_phases,
    join,
    shuffle_channels,
    split_channels,
)
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalisation import affine_norm, weighted_sum
from sgenas.spaces.ops import NodeState, Term

Builder = Callable[[int, int], nn.Module]
"""(channels, stride) -> an operation that takes a NodeState and gives a Term."""


class NodeSum:
    """sum over terms of weight * term, for terms as they are and, undone once at the end, in phases."""

    def __init__(self) -> None:
        self._parts: dict[bool, tuple[list[Tensor], list[Tensor], list[bool]]] = {}

    def add(self, term: Term, weight: Tensor) -> None:
        """Adds weight * term, normalised if it is still to be; weight: (C,), one for each channel."""
        weights, values, raw = self._parts.setdefault(term.phased, ([], [], []))
        weights.append(weight)
        values.append(term.value)
        raw.append(term.raw)

    def value(self) -> Tensor:
        """The sum of all terms; there must be one."""
        sums = {phased: weighted_sum(*part) for phased, part in self._parts.items()}
        if True not in sums:
            return sums[False]
        whole = from_phases(sums[True])
        return whole if False not in sums else sums[False] + whole


class MixedEdge(nn.Module):
    """Eq. 1: sum over operations k of m_k o_k(x) on one edge; `builders` makes them, by name."""

    def __init__(
        self, operations: Sequence[str], builders: Mapping[str, Builder], channels: int, stride: int
    ) -> None:
        super().__init__()
        self.columns = [column for column, name in enumerate(operations) if name != "none"]
        names = [operations[column] for column in self.columns]
        self.operations = nn.ModuleDict({name: builders[name](channels, stride) for name in names})

    def add_to(self, total: NodeSum, node: NodeState, weights: Sequence[Tensor]) -> None:
        """Adds m_k o_k(x) for every operation but `none`; weights: for each operation, (C,)."""
        for column, operation in zip(self.columns, self.operations.values(), strict=True):
            total.add(operation(node), weights[column])


class Bypass:
    """The channels of a node that go around the operations of a partially connected cell (PC-DARTS)."""

    def __init__(self, value: Tensor, nonlinearity: Nonlinearity) -> None:
        self._value = value
        self._nonlinearity = nonlinearity
        self._pooled: Tensor | None = None

    def value(self, stride: int) -> Tensor:
        """As they are, or with stride 2 the maxima of 2 x 2 pixels (at an odd border, of those there are)."""
        if stride == 1:
            return self._value
        if self._pooled is None:
            self._pooled = self._nonlinearity.max_pool(self._value, 2, 2)
        return self._pooled


class MixedCell(nn.Module):
    """Nodes that are each the sum of their mixed incoming edges, one from every earlier node.

    partial = K > 1 (PC-DARTS, arXiv:1907.05737): only the first 1 / K of a node's channels go through the
    operations, the others around them, weighted by the edge's total weight (the sum of its mixing weights);
    of the two sums, joined, the channels are shuffled in K groups. All edges of a node share that.
    """

    def __init__(
        self, nodes: int, inputs: int, channels: int, partial: int, nonlinearity: Nonlinearity
    ) -> None:
        super().__init__()
        self.nodes, self.inputs, self.channels = nodes, inputs, channels
        self.partial, self.nonlinearity = partial, nonlinearity
        self.edge_list = edges_of(nodes, inputs)

    def make_edges(self, operations: Sequence[str], builders: Mapping[str, Builder]) -> None:
        """Registers the edges, after what a cell has in front of them."""
        self.edges = nn.ModuleList(
            MixedEdge(operations, builders, self.channels // self.partial, self.stride(source))
            for source, _ in self.edge_list
        )

    def stride(self, source: int) -> int:  # noqa: ARG002
        """Of the edges that leave node `source`."""
        return 1

    def node_values(self, entering: Sequence[Tensor], mixing: Tensor) -> list[Tensor]:
        """All nodes, the inputs (B, M C, H, W) among them, from mixing (M, E, O), M members."""
        members, used = mixing.shape[0], self.channels // self.partial
        # (E, O, M C): one weight for each channel, so that a member's channels get the member's weight
        weights = mixing.permute(1, 2, 0).repeat_interleave(used, dim=2)
        rows = [edge.unbind() for edge in weights.unbind()]
        around = mixing.sum(dim=2).T.repeat_interleave(self.channels - used, dim=1).unbind()
        states: list[NodeState] = []
        bypasses: list[Bypass] = []
        values: list[Tensor] = []

        def enter(value: Tensor) -> None:
            values.append(value)
            if self.partial > 1:
                value, rest = split_channels(value, members, used)
                bypasses.append(Bypass(rest, self.nonlinearity))
            states.append(NodeState(value, self.nonlinearity))

        for value in entering:
            enter(value)
        for target in range(self.inputs, self.inputs + self.nodes):
            total = NodeSum()
            incoming = [row for row, (_, end) in enumerate(self.edge_list) if end == target]
            for row in incoming:
                source = self.edge_list[row][0]
                cast(MixedEdge, self.edges[row]).add_to(total, states[source], rows[row])
            value = total.value()
            if self.partial > 1:
                sources = [self.edge_list[row][0] for row in incoming]
                rests = [bypasses[source].value(self.stride(source)) for source in sources]
                rest = weighted_sum([around[row] for row in incoming], rests, [False] * len(rests))
                value = shuffle_channels(join([value, rest], members), members, self.partial)
            enter(value)
        return values


class Stem(nn.Sequential):
    """3x3 convolution and normalisation with scale and shift, of the images that all members share."""

    def __init__(self, input_channels: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(input_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, track_running_stats=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, M channels, H, W), channels-last, by weights that may be those of M members."""
        convolution, norm = cast(nn.Conv2d, self[0]), cast(nn.BatchNorm2d, self[1])
        x = F.conv2d(channels_last(images), convolution.weight, None, padding=1)
        # oneDNN's kernels for channels-last are the faster ones on CPU (docs/speed.md).
        # Asked for after the stem too: images of one channel are in both layouts at once, and the stem's
        # convolution then chooses the slow one.
        return channels_last(affine_norm(x, norm))
