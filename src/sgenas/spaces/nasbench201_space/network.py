"""The network of NAS-Bench-201 (arXiv:2001.00326, section 2.1), with one cell repeated."""

from torch import Tensor, nn

from sgenas.errors import GenotypeError
from sgenas.spaces.darts_space.operations import conv_bn, make_operation, relu_conv_bn, require_images, require_sizes
from sgenas.spaces.genotype import Cell, Genotype, only_cell
from sgenas.spaces.nasbench201_space.strings import KIND, SPACE


class SumCell(nn.Module):
    """A cell of one input: every node is the sum of its incoming edges, the last node is the output.

    (B, channels, H, W) -> the same shape. A node with no operation but ``none`` is zero. Operations that do not lead
    to the output are kept, since NAS-Bench-201 counts their parameters.
    """

    def __init__(self, cell: Cell, channels: int) -> None:
        super().__init__()
        if cell.inputs != 1:
            raise GenotypeError(f"genotype.cells.cell.inputs must be 1 in this network, got {cell.inputs}")
        if cell.concat != (cell.nodes,):
            raise GenotypeError(
                f"genotype.cells.cell.concat must be the last node, [{cell.nodes}], got {list(cell.concat)}"
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
    """Between two stages: halves the sides (rounded up) and doubles the channels.

    Two ReLU-conv3x3-BN, the first of stride 2, plus a shortcut of 2x2 average pooling and a 1x1 convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            relu_conv_bn(channels, 2 * channels, 3, stride=2), relu_conv_bn(2 * channels, 2 * channels, 3)
        )
        # ceil_mode: for odd sides the shortcut must be as large as the output of the convolutions
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convolutions(x)


class NasBench201Network(nn.Module):
    """Stem, three stages of ``layers`` cells with C, 2C and 4C channels, BN, ReLU, pooling, classifier.

    The stem is a 3x3 convolution with BN. A ``ResidualBlock`` separates two stages.

    Args:
        genotype: A cell of one input whose concat is its last node (in the benchmark: 3 nodes, one operation or
            ``none`` on each of the 6 edges), or a Genotype with this one cell, named ``cell``.
        channels: C, channels of the first stage.
        layers: Cells per stage.
        num_classes: Number of classes, at least 2.
        input_channels: Channels of the images.

    Raises:
        GenotypeError: If the genotype does not fit this network.
        InvalidValueError: If a size is below its minimum.
    """

    def __init__(
        self,
        genotype: Genotype | Cell,
        *,
        channels: int = 16,
        layers: int = 5,
        num_classes: int = 10,
        input_channels: int = 3,
    ) -> None:
        super().__init__()
        require_sizes(1, channels=channels, layers=layers, input_channels=input_channels)
        require_sizes(2, num_classes=num_classes)
        cell = genotype if isinstance(genotype, Cell) else only_cell(genotype, SPACE, KIND)
        self.input_channels = input_channels
        self.stem = conv_bn(input_channels, channels)
        blocks: list[nn.Module] = []
        for stage in range(3):
            if stage > 0:
                blocks.append(ResidualBlock(channels))
                channels *= 2
            blocks += [SumCell(cell, channels) for _ in range(layers)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, input_channels, H, W); InvalidValueError for another shape."""
        require_images(images, self.input_channels)
        return self.classifier(self.last(self.blocks(self.stem(images))).mean(dim=(2, 3)))
