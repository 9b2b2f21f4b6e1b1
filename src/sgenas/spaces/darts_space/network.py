"""The network in which derived DARTS cells are trained (arXiv:1806.09055; cnn/model.py of its code)."""

from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from sgenas.errors import GenotypeError, InvalidValueError, require
from sgenas.spaces.darts_space.operations import (
    FactorizedReduce,
    conv_bn,
    drop_path,
    make_operation,
    path_scales,
    relu_conv_bn,
    require_images,
    require_sizes,
)
from sgenas.spaces.genotype import Cell, Genotype, existing_nodes

GENOTYPE_SPACES = ("darts", "pc-darts", "fair-darts", "beta-darts")
"""Values of ``genotype.space`` that this network accepts."""

AUXILIARY_SIDE = 8
"""Smallest side in pixels of the auxiliary head's input: 5x5 pooling of stride 3, then a 2x2 convolution."""

STEM = 3
"""Channels of the stem in units of the first cell's."""


class DiscreteCell(nn.Module):
    """A cell: each node sums its edges, and the output concatenates the nodes of ``concat``.

    ReLU, 1x1 convolution and BN (a FactorizedReduce for the first input if the previous cell was a reduction) bring
    the two inputs, the outputs of the two previous cells, to ``channels`` channels and one size. In a reduction cell
    the edges from the inputs have stride 2. Nodes that do not exist (see ``existing_nodes``) are left out, and so are
    their outgoing edges.

    ``kind`` is the name of the cell, for messages. With ``drop_nodes`` drop path acts on the sum of each node instead
    of on each operation but the identity; ``paths`` is the number of rows of ``path_scales`` that ``forward`` takes.
    """

    def __init__(
        self,
        cell: Cell,
        kind: str,
        channels_before_last: int,
        channels_last: int,
        channels: int,
        reduction: bool,
        reduction_before: bool,
        drop_nodes: bool,
    ) -> None:
        super().__init__()
        if cell.inputs != 2:
            raise GenotypeError(f"genotype.cells.{kind}.inputs must be 2 in this network, got {cell.inputs}")
        self.nodes = existing_nodes(cell)
        self.concat = [node for node in cell.concat if node in self.nodes]
        if not self.concat:
            raise GenotypeError(
                f"genotype.cells.{kind} is empty: no operation leads to any node of its concat {list(cell.concat)}, so"
                " it has no output; search for more epochs, or with a discretization without a threshold"
            )
        self.channels_out = len(self.concat) * channels
        self.reduction = reduction
        self.drop_nodes = drop_nodes
        if reduction_before:
            self.input_before_last: nn.Module = FactorizedReduce(channels_before_last, channels)
        else:
            self.input_before_last = relu_conv_bn(channels_before_last, channels, 1)
        self.input_last = relu_conv_bn(channels_last, channels, 1)
        self.edges = [
            edge
            for edge in cell.edges
            if edge.operation != "none" and edge.target in self.nodes and edge.source in {0, 1, *self.nodes}
        ]
        self.operations = nn.ModuleList(
            make_operation(edge.operation, channels, stride=2 if reduction and edge.source < 2 else 1)
            for edge in self.edges
        )
        dropped = [not isinstance(operation, nn.Identity) for operation in self.operations]
        self.paths = len(self.nodes) if drop_nodes else sum(dropped)
        # for each node its edges: source, index of the operation, row of the scales or None
        self.incoming = {
            node: [
                (edge.source, index, sum(dropped[:index]) if dropped[index] and not drop_nodes else None)
                for index, edge in enumerate(self.edges)
                if edge.target == node
            ]
            for node in self.nodes
        }

    def forward(self, before_last: Tensor, last: Tensor, scales: Tensor | None = None) -> Tensor:
        """(B, channels_out, H', W') from the outputs of the two cells before; scales: (paths, B, 1, 1, 1)."""
        states = {0: self.input_before_last(before_last), 1: self.input_last(last)}
        for row, (node, incoming) in enumerate(self.incoming.items()):
            terms = []
            for source, index, path in incoming:
                value = self.operations[index](states[source])
                terms.append(drop_path(value, None if scales is None or path is None else scales[path]))
            total = sum(terms[1:], start=terms[0])
            states[node] = drop_path(total, scales[row] if scales is not None and self.drop_nodes else None)
        return torch.cat([states[node] for node in self.concat], dim=1)


class AuxiliaryHead(nn.Module):
    """A second classifier on the output of an inner cell, for training only; sides of at least AUXILIARY_SIDE."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # one pixel for images of 32 pixels
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class DartsNetwork(nn.Module):
    """Stem, ``layers`` cells, global average pooling, linear classifier.

    The stem is a 3x3 convolution to 3C channels with BN. The cells at layers // 3 and 2 * layers // 3 are reduction
    cells: they halve the sides of the image (rounded up) and double the channels. A node may have any number of edges,
    several operations on one edge, or no edge: then it does not exist and the cell is narrower. Weights are
    initialized as PyTorch does, from its global generator; see ``networks.build``.

    Args:
        genotype: The cells ``normal`` and ``reduce`` with two inputs each. Its ``space`` decides what drop path
            drops, as in the published code: the sum of a node, identities included, for ``"fair-darts"``; each
            operation but the identity for the others.
        channels: C, channels of the first cell, at least 2.
        layers: Number of cells, at least 3 so that both kinds occur.
        num_classes: Number of classes, at least 2.
        input_channels: Channels of the images.
        auxiliary: Whether to add the auxiliary head after the cell 2 * layers // 3.

    Attributes:
        drop_path: Probability in [0, 1) that a path is dropped in training mode, for each image separately. It starts
            at 0 and is set again every epoch.
        drop_path_generator: Generator of drop path; None for PyTorch's global one.

    Raises:
        GenotypeError: If the cells cannot be stacked, for example an empty one.
        InvalidValueError: If a size is below its minimum.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        channels: int = 36,
        layers: int = 20,
        num_classes: int = 10,
        input_channels: int = 3,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        _keep_drop_path_out_of_graphs()
        require_sizes(2, channels=channels, num_classes=num_classes)
        require_sizes(3, layers=layers)
        require_sizes(1, input_channels=input_channels)
        if genotype.space not in GENOTYPE_SPACES:
            raise GenotypeError(f"genotype.space must be one of {', '.join(GENOTYPE_SPACES)}, got {genotype.space!r}")
        kinds = [kind for kind, _ in genotype.cells]
        if set(kinds) != {"normal", "reduce"}:
            raise GenotypeError(f"genotype.cells must be normal and reduce, got {', '.join(kinds)}")
        self.input_channels = input_channels
        before_last = last = STEM * channels
        self.stem = conv_bn(input_channels, last)
        self.cells = nn.ModuleList()
        self.auxiliary_layer = 2 * layers // 3
        self.auxiliary: AuxiliaryHead | None = None
        reduction_before, drop_nodes = False, genotype.space == "fair-darts"
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            kind = "reduce" if reduction else "normal"
            cell = DiscreteCell(
                genotype[kind], kind, before_last, last, channels, reduction, reduction_before, drop_nodes
            )
            self.cells.append(cell)
            before_last, last, reduction_before = last, cell.channels_out, reduction
            if auxiliary and layer == self.auxiliary_layer:
                self.auxiliary = AuxiliaryHead(last, num_classes)
        self.classifier = nn.Linear(last, num_classes)
        self.drop_path_generator: torch.Generator | None = None
        self._drop_path = 0.0

    @property
    def drop_path(self) -> float:
        """Probability that a path is dropped; InvalidValueError when set outside [0, 1)."""
        return self._drop_path

    @drop_path.setter
    def drop_path(self, probability: float) -> None:
        require(0 <= probability < 1, "drop_path", ">= 0 and < 1", probability)
        self._drop_path = float(probability)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, num_classes) of images (B, input_channels, H, W).

        With an auxiliary head and in training mode: (logits, logits of the auxiliary head).

        Raises:
            InvalidValueError: If the images have another shape, or are too small for the auxiliary head.
        """
        require_images(images, self.input_channels)
        auxiliary_logits = None
        # first, so that the graph break of torch.compile carries no activations over
        drawn = self._scales(images)
        before_last = last = self.stem(images)
        for layer, (cell, scales) in enumerate(zip(self.cells, drawn, strict=True)):
            before_last, last = last, cell(before_last, last, scales)
            if layer == self.auxiliary_layer and self.training and self.auxiliary is not None:
                if min(last.shape[2:]) < AUXILIARY_SIDE:
                    # both reductions round up: this is the smallest side that leaves AUXILIARY_SIDE pixels
                    least = 4 * (AUXILIARY_SIDE - 1) + 1
                    raise InvalidValueError(
                        f"images must be at least {least} x {least} pixels for the auxiliary head,"
                        f" got {images.shape[2]} x {images.shape[3]}",
                        field="images",
                    )
                auxiliary_logits = self.auxiliary(last)
        logits = self.classifier(last.mean(dim=(2, 3)))
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)

    def _scales(self, images: Tensor) -> list[Tensor | None]:
        """The rows of ``path_scales`` of each cell, all drawn at once; None if nothing is dropped."""
        if not self.training or self._drop_path == 0:
            return [None] * len(self.cells)
        paths = [cast(DiscreteCell, cell).paths for cell in self.cells]
        scales = path_scales(sum(paths), len(images), self._drop_path, images.device, self.drop_path_generator)
        return list(torch.split_with_sizes(scales, paths))


@cache
def _keep_drop_path_out_of_graphs() -> None:
    """Excludes ``_scales`` from graphs: a generator and a probability that changes do not fit into one.

    Done with the first network instead of by a decorator, which would import the compiler with this file:
    more than a second for each command.
    """
    DartsNetwork._scales = torch.compiler.disable(DartsNetwork._scales)  # type: ignore[method-assign, no-untyped-call]
