"""The searchable cell and the network that stacks it: every operation on every edge, mixed by weights.

The network takes *mixing weights* (already relaxed), never raw alphas: relaxation belongs to the space. It
holds no alphas, no running statistics and no randomness, so that its output is a pure function of
(weights, mixing, images).
"""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from sgenas.spaces.derivation import edges_of
from sgenas.spaces.kernels import (
    channels_last,
    classify_members,
    from_phases,
    join,
    shuffle_channels,
    split_channels,
)
from sgenas.spaces.normalisation import normalise, weighted_sum
from sgenas.spaces.ops import BUILDERS, FactorizedReduce, NodeState, PointwiseConv, Term
from sgenas.trees import Tree


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
    """Eq. 1: sum over operations k of m_k o_k(x) on one edge."""

    def __init__(self, operations: Sequence[str], channels: int, stride: int) -> None:
        super().__init__()
        self.columns = [column for column, name in enumerate(operations) if name != "none"]
        names = [operations[column] for column in self.columns]
        self.operations = nn.ModuleDict({name: BUILDERS[name](channels, stride) for name in names})

    def add_to(self, total: NodeSum, node: NodeState, weights: Sequence[Tensor]) -> None:
        """Adds m_k o_k(x) for every operation but `none`; weights: for each operation, (C,)."""
        for column, operation in zip(self.columns, self.operations.values(), strict=True):
            total.add(operation(node), weights[column])


class Bypass:
    """The channels of a node that go around the operations of a partially connected cell (PC-DARTS)."""

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self._pooled: Tensor | None = None

    def value(self, stride: int) -> Tensor:
        """As they are, or with stride 2 the maxima of 2 x 2 pixels (at an odd border, of those there are)."""
        if stride == 1:
            return self._value
        if self._pooled is None:
            self._pooled = F.max_pool2d(self._value, 2, ceil_mode=True)
        return self._pooled


class SearchCell(nn.Module):
    """A cell of `nodes` nodes, each the sum of its mixed incoming edges, joined along the channels.

    Its two inputs are the outputs of the two cells before, brought to `channels` channels and to one size.
    In a reduction cell the edges that leave the inputs have stride 2.

    partial = K > 1 (PC-DARTS, arXiv:1907.05737): only the first 1 / K of a node's channels go through the
    operations, the others around them, weighted by the edge's total weight (the sum of its mixing weights);
    of the two sums, joined, the channels are shuffled in K groups. All edges of a node share that.
    """

    def __init__(
        self,
        operations: Sequence[str],
        nodes: int,
        channels_before_last: int,
        channels_last: int,
        channels: int,
        *,
        reduction: bool,
        reduction_before: bool,
        partial: int = 1,
    ) -> None:
        super().__init__()
        self.partial = partial
        self.reduction = reduction
        self.nodes = nodes
        self.channels = channels
        first = FactorizedReduce if reduction_before else PointwiseConv
        self.input_before_last = first(channels_before_last, channels)
        self.input_last = PointwiseConv(channels_last, channels)
        self.edge_list = edges_of(nodes)
        self.edges = nn.ModuleList(
            MixedEdge(operations, channels // partial, self._stride(source)) for source, _ in self.edge_list
        )

    def _stride(self, source: int) -> int:
        return 2 if self.reduction and source < 2 else 1

    def forward(self, before_last: NodeState, last: NodeState, mixing: Tensor) -> Tensor:
        """(B, M nodes * channels, H, W) from two node states and mixing (M, E, O), M members."""
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
                bypasses.append(Bypass(rest))
            states.append(NodeState(value))

        for term in (self.input_before_last(before_last), self.input_last(last)):
            enter(normalise(term.value))
        for target in range(2, 2 + self.nodes):
            total = NodeSum()
            incoming = [row for row, (_, end) in enumerate(self.edge_list) if end == target]
            for row in incoming:
                source = self.edge_list[row][0]
                cast(MixedEdge, self.edges[row]).add_to(total, states[source], rows[row])
            value = total.value()
            if self.partial > 1:
                sources = [self.edge_list[row][0] for row in incoming]
                rests = [bypasses[source].value(self._stride(source)) for source in sources]
                rest = weighted_sum([around[row] for row in incoming], rests, [False] * len(rests))
                value = shuffle_channels(join([value, rest], members), members, self.partial)
            enter(value)
        return join(values[2:], members)


class SearchNetwork(nn.Module):
    """Stem, `layers` cells, global average pooling, linear classifier (arXiv:1806.09055).

    The cells at layers // 3 and 2 * layers // 3 reduce the image and double the channels; all normal cells
    share the table mixing["normal"], all reduction cells mixing["reduce"].
    """

    def __init__(
        self,
        operations: Sequence[str],
        nodes: int,
        channels: int,
        layers: int,
        classes: int,
        input_channels: int,
        stem_multiplier: int,
        partial: int = 1,
    ) -> None:
        super().__init__()
        stem_channels = stem_multiplier * channels
        self.stem = nn.Sequential(
            nn.Conv2d(input_channels, stem_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem_channels, track_running_stats=False),
        )
        self.kinds: list[str] = []
        self.cells = nn.ModuleList()
        before_last = last = stem_channels
        reduction_before = False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            cell = SearchCell(
                operations,
                nodes,
                before_last,
                last,
                channels,
                reduction=reduction,
                reduction_before=reduction_before,
                partial=partial,
            )
            self.kinds.append("reduce" if reduction else "normal")
            self.cells.append(cell)
            before_last, last, reduction_before = last, nodes * channels, reduction
        self.classifier = nn.Linear(last, classes)

    def forward(self, images: Tensor, mixing: Tree) -> Tensor:
        """Logits (B, classes) of images (B, input_channels, H, W), mixing {kind: (E, O)}.

        With mixing {kind: (M, E, O)}, and all weights of M members stacked along their first dimension (M
        times as long), logits (M, B, classes), of all members on the same images.
        """
        stacked = all(table.ndim == 3 for table in mixing.values())
        tables = mixing if stacked else {kind: table[None] for kind, table in mixing.items()}
        # oneDNN's kernels for channels-last are the faster ones on CPU (docs/speed.md).
        # Asked for after the stem too: images of one channel are in both layouts at once, and the stem's
        # convolution then chooses the slow one.
        before_last = last = NodeState(channels_last(self._stem(channels_last(images))))
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            before_last, last = last, NodeState(cell(before_last, last, tables[kind]))
        features = last.value.mean(dim=(2, 3))
        if not stacked:
            return self.classifier(features)
        return classify_members(features, self.classifier, tables["normal"].shape[0])

    def _stem(self, images: Tensor) -> Tensor:
        """The stem by its weights alone, which may be those of several members."""
        convolution, norm = cast(nn.Conv2d, self.stem[0]), cast(nn.BatchNorm2d, self.stem[1])
        x = F.conv2d(images, convolution.weight, None, padding=1)
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
