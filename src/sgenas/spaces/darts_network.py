"""The network of the DARTS search space: cells with two inputs, stacked, of a normal and a reducing kind."""

from collections.abc import Sequence

from torch import Tensor, nn

from sgenas.spaces.cells import MixedCell, Stem
from sgenas.spaces.kernels import classify_members, join
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.normalisation import normalise
from sgenas.spaces.ops import BUILDERS, FactorizedReduce, NodeState, PointwiseConv
from sgenas.trees import Tree


class SearchCell(MixedCell):
    """A cell of `nodes` nodes, joined along the channels.

    Its two inputs are the outputs of the two cells before, brought to `channels` channels and to one size.
    In a reduction cell the edges that leave the inputs have stride 2.
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
        partial: int,
        nonlinearity: Nonlinearity,
    ) -> None:
        super().__init__(nodes, 2, channels, partial, nonlinearity)
        self.reduction = reduction
        first = FactorizedReduce if reduction_before else PointwiseConv
        self.input_before_last = first(channels_before_last, channels)
        self.input_last = PointwiseConv(channels_last, channels)
        self.make_edges(operations, BUILDERS)

    def stride(self, source: int) -> int:
        return 2 if self.reduction and source < 2 else 1

    def forward(self, before_last: NodeState, last: NodeState, mixing: Tensor) -> Tensor:
        """(B, M nodes * channels, H, W) from two node states and mixing (M, E, O), M members."""
        terms = (self.input_before_last(before_last), self.input_last(last))
        values = self.node_values([normalise(term.value) for term in terms], mixing)
        return join(values[2:], mixing.shape[0])


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
        partial: int,
        nonlinearity: Nonlinearity,
    ) -> None:
        super().__init__()
        stem_channels = stem_multiplier * channels
        self.nonlinearity = nonlinearity
        self.stem = Stem(input_channels, stem_channels)
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
                nonlinearity=nonlinearity,
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
        before_last = last = NodeState(self.stem(images), self.nonlinearity)
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            value = cell(before_last, last, tables[kind])
            before_last, last = last, NodeState(value, self.nonlinearity)
        features = last.value.mean(dim=(2, 3))
        if not stacked:
            return self.classifier(features)
        return classify_members(features, self.classifier, tables["normal"].shape[0])
