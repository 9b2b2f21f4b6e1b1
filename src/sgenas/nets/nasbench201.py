"""The macro skeleton of NAS-Bench-201 (arXiv:2001.00326, section 2.1) around any of its cells."""

from torch import Tensor, nn

from sgenas.errors import GenotypeError
from sgenas.nets.checks import at_least, image_batch
from sgenas.nets.operations import make_operation, relu_conv_bn
from sgenas.spaces.genotype import Cell, Genotype

SPACES = ("nasbench201",)
"""Values of `genotype.space` whose cell this network stacks."""


class SumCell(nn.Module):
    """A cell of one input: every node is the sum of its incoming edges, the last node is the output.

    (B, channels, H, W) -> the same shape. A node without edges, or with `none` alone, is zero. Operations on
    edges that do not lead to the output are kept, since NAS-Bench-201 counts them among the parameters.

    Raises GenotypeError for a cell with more inputs, or whose concat is not its last node.
    """

    def __init__(self, cell: Cell, channels: int) -> None:
        super().__init__()
        if cell.inputs != 1:
            raise GenotypeError(f"genotype.cells.cell.inputs must be 1 in this network, got {cell.inputs}")
        if cell.concat != (cell.nodes,):
            raise GenotypeError(
                f"genotype.cells.cell.concat must be the last node alone, [{cell.nodes}],"
                f" got {list(cell.concat)}"
            )
        self.nodes = cell.nodes
        self.edges = [edge for edge in cell.edges if edge.operation != "none"]
        self.operations = nn.ModuleList(make_operation(edge.operation, channels) for edge in self.edges)

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for node in range(1, 1 + self.nodes):
            terms = [
                operation(states[edge.source])
                for edge, operation in zip(self.edges, self.operations, strict=True)
                if edge.target == node
            ]
            states.append(sum(terms[1:], start=terms[0]) if terms else x.new_zeros(x.shape))
        return states[-1]


class ResidualBlock(nn.Module):
    """Between two stages: half the sides (rounded up), twice the channels.

    Two ReLU-conv3x3-BN, the first of stride 2, plus a shortcut of 2x2 average pooling and a 1x1 convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            relu_conv_bn(channels, 2 * channels, 3, stride=2), relu_conv_bn(2 * channels, 2 * channels, 3)
        )
        # ceil_mode matters to odd sides alone: the shortcut then is as large as the convolutions' output
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, 2 * channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convolutions(x)


class NasBench201Network(nn.Module):
    """Stem, three stages of `cells` cells at C, 2C and 4C channels, BN, ReLU, pooling, linear classifier.

    The stem is a 3x3 convolution with BN; a `ResidualBlock` stands between two stages.

    genotype: a cell of one input whose concat is its last node (in the benchmark 3 nodes, an operation or
    `none` on each of the 6 edges), or a Genotype that holds one, named `cell`. channels: C of the first
    stage; cells: of each stage; classes; input_channels: of the images. Fresh weights are PyTorch's default
    ones, from torch's own randomness; see `nets.build` for a generator.

    Raises GenotypeError for another cell, InvalidValueError for sizes below their minimum.
    """

    def __init__(
        self,
        genotype: Genotype | Cell,
        *,
        channels: int = 16,
        cells: int = 5,
        classes: int = 10,
        input_channels: int = 3,
    ) -> None:
        super().__init__()
        at_least(1, channels=channels, cells=cells, input_channels=input_channels)
        at_least(2, classes=classes)
        cell = genotype if isinstance(genotype, Cell) else _only_cell(genotype)
        self.input_channels = input_channels
        self.stem = nn.Sequential(
            nn.Conv2d(input_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        blocks: list[nn.Module] = []
        for stage in range(3):
            if stage > 0:
                blocks.append(ResidualBlock(channels))
                channels *= 2
            blocks += [SumCell(cell, channels) for _ in range(cells)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, input_channels, H, W) in floats.

        Raises InvalidValueError for another shape.
        """
        image_batch(images, self.input_channels)
        return self.classifier(self.last(self.blocks(self.stem(images))).mean(dim=(2, 3)))


def _only_cell(genotype: Genotype) -> Cell:
    if genotype.space not in SPACES:
        raise GenotypeError(f"genotype.space must be {' or '.join(SPACES)}, got {genotype.space!r}")
    kinds = [kind for kind, _ in genotype.cells]
    if kinds != ["cell"]:
        raise GenotypeError(f"genotype.cells must be one cell named cell, got {', '.join(kinds)}")
    return genotype["cell"]
