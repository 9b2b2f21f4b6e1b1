"""The evaluation network of the DARTS cells (arXiv:1806.09055, and cnn/model.py of its code)."""

from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.nets.checks import at_least, image_batch
from sgenas.nets.operations import FactorizedReduce, drop_path, make_operation, path_scales, relu_conv_bn
from sgenas.spaces.genotype import Cell, Genotype, existing_nodes

SPACES = ("darts", "pc-darts", "fair-darts", "beta-darts")
"""Values of `genotype.space` whose cells this network stacks."""

AUXILIARY_SIDE = 8
"""Pixels that the auxiliary head needs each way: 5x5 pooling of stride 3, then a 2x2 convolution."""


class DiscreteCell(nn.Module):
    """A cell as its genotype lists it: a node sums its edges, the output joins the nodes of `concat`.

    Its two inputs are the outputs of the two cells before, brought to `channels` channels and to one size
    by ReLU, 1x1 convolution and BN, the first one by a FactorizedReduce if the cell before was a reduction.
    In a reduction cell the edges that leave the inputs have stride 2. Nodes that do not exist (see
    `existing_nodes`) are left out, and with them the edges that leave them.

    drop_nodes: drop path acts on the sum of every node instead of on every operation but the identity.
    channels_out: of the output, the number of its nodes times `channels`. paths: rows of `path_scales`.

    Raises GenotypeError for a cell that does not have two inputs or none of whose nodes in concat exists.
    """

    def __init__(
        self,
        cell: Cell,
        kind: str,
        channels_before_last: int,
        channels_last: int,
        channels: int,
        *,
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
                f"genotype.cells.{kind} is empty: no operation leads to any of the nodes in its concat"
                f" {list(cell.concat)}, so it has no output"
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
        # for every node, its edges: which source, which operation, which row of the scales if any
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
    """A second classifier on the output of an inner cell, for training only.

    ReLU, 5x5 average pooling of stride 3, 1x1 convolution to 128 channels, BN, ReLU, 2x2 convolution to 768,
    BN, ReLU, linear. Where more than one pixel is left before the last step (images of more than 40 pixels
    a side), their mean is classified.
    """

    def __init__(self, channels: int, classes: int) -> None:
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
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of x (B, channels, H, W), H and W at least AUXILIARY_SIDE."""
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class DartsNetwork(nn.Module):
    """Stem, `layers` cells, global average pooling, linear classifier: what a found cell is trained in.

    The stem is a 3x3 convolution to `stem_multiplier` * `channels` channels with BN. The cells at layers // 3
    and 2 * layers // 3 are reduction cells: they halve the image's sides (rounded up) and double the
    channels. A node sums whatever edges the genotype lists: any number, several operations on one edge, or
    none, in which case the node does not exist and the cell is narrower.

    genotype: the cells `normal` and `reduce`, two inputs each. Its `space`, one of SPACES, decides on drop
    path: "fair-darts" drops the sum of a node, identities included, any other space drops each operation but
    the identity, both as in the published code. The structure needs no such choice, since cells of DARTS
    happen to have all their nodes.
    channels: C of the first cell, at least 2; layers: at least 3, so that both kinds occur; classes;
    input_channels: of the images; auxiliary: adds the auxiliary head after the cell 2 * layers // 3.
    Fresh weights are PyTorch's default ones, from torch's own randomness; see `nets.build` for a generator.

    drop_path: the probability in [0, 1) with which a path is dropped in training mode, for each image on its
    own; 0 at first, and meant to be set anew every epoch. drop_path_generator: draws what is dropped; None
    (the default) stands for torch's own randomness.

    Raises GenotypeError for cells that cannot be stacked, an empty one among them, and InvalidValueError for
    sizes below their minimum.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        channels: int = 36,
        layers: int = 20,
        classes: int = 10,
        input_channels: int = 3,
        auxiliary: bool = False,
        stem_multiplier: int = 3,
    ) -> None:
        super().__init__()
        _keep_drop_path_out_of_graphs()
        at_least(2, channels=channels, classes=classes)
        at_least(3, layers=layers)
        at_least(1, input_channels=input_channels, stem_multiplier=stem_multiplier)
        if genotype.space not in SPACES:
            raise GenotypeError(f"genotype.space must be one of {', '.join(SPACES)}, got {genotype.space!r}")
        kinds = [kind for kind, _ in genotype.cells]
        if set(kinds) != {"normal", "reduce"}:
            raise GenotypeError(f"genotype.cells must be normal and reduce, got {', '.join(kinds)}")
        self.input_channels = input_channels
        stem_channels = stem_multiplier * channels
        self.stem = nn.Sequential(
            nn.Conv2d(input_channels, stem_channels, 3, padding=1, bias=False), nn.BatchNorm2d(stem_channels)
        )
        self.cells = nn.ModuleList()
        self.auxiliary_layer = 2 * layers // 3
        self.auxiliary: AuxiliaryHead | None = None
        before_last = last = stem_channels
        reduction_before = False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            kind = "reduce" if reduction else "normal"
            cell = DiscreteCell(
                genotype[kind],
                kind,
                before_last,
                last,
                channels,
                reduction=reduction,
                reduction_before=reduction_before,
                drop_nodes=genotype.space == "fair-darts",
            )
            self.cells.append(cell)
            before_last, last, reduction_before = last, cell.channels_out, reduction
            if auxiliary and layer == self.auxiliary_layer:
                self.auxiliary = AuxiliaryHead(last, classes)
        self.classifier = nn.Linear(last, classes)
        self.drop_path_generator: torch.Generator | None = None
        self._drop_path = 0.0

    @property
    def drop_path(self) -> float:
        """The probability with which a path is dropped; InvalidValueError when set outside [0, 1)."""
        return self._drop_path

    @drop_path.setter
    def drop_path(self, probability: float) -> None:
        if not 0 <= probability < 1:
            raise InvalidValueError(f"drop_path must be >= 0 and < 1, got {probability!r}")
        self._drop_path = float(probability)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, classes) of images (B, input_channels, H, W) in floats.

        With an auxiliary head, and in training mode only: (logits, logits of the auxiliary head).
        Raises InvalidValueError for another shape, and for images that are too small for the head.
        """
        image_batch(images, self.input_channels)
        auxiliary_logits = None
        # drawn first: torch.compile leaves its graph there, and has nothing to carry over yet
        drawn = self._scales(images)
        before_last = last = self.stem(images)
        for layer, (cell, scales) in enumerate(zip(self.cells, drawn, strict=True)):
            before_last, last = last, cell(before_last, last, scales)
            if layer == self.auxiliary_layer and self.training and self.auxiliary is not None:
                if min(last.shape[2:]) < AUXILIARY_SIDE:
                    # both reductions round up: the smallest side that leaves AUXILIARY_SIDE pixels
                    least = 4 * (AUXILIARY_SIDE - 1) + 1
                    raise InvalidValueError(
                        f"images must be at least {least} x {least} pixels for the auxiliary head,"
                        f" got {images.shape[2]} x {images.shape[3]}"
                    )
                auxiliary_logits = self.auxiliary(last)
        logits = self.classifier(last.mean(dim=(2, 3)))
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)

    def _scales(self, images: Tensor) -> list[Tensor | None]:
        """For every cell its rows of `path_scales`, all drawn at once; None where nothing is dropped."""
        if not self.training or self._drop_path == 0:
            return [None] * len(self.cells)
        paths = [cast(DiscreteCell, cell).paths for cell in self.cells]
        scales = path_scales(
            sum(paths),
            images.shape[0],
            self._drop_path,
            device=images.device,
            generator=self.drop_path_generator,
        )
        return list(torch.split_with_sizes(scales, paths))


@cache
def _keep_drop_path_out_of_graphs() -> None:
    """A generator, and a probability that is another one each epoch, fit no graph of torch.compile.

    Done with the first network and not as a decorator, which would load the compiler with this file: more
    than a second for each command.
    """
    DartsNetwork._scales = torch.compiler.disable(DartsNetwork._scales)  # type: ignore[method-assign, no-untyped-call]
