from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.spaces.genotype import Cell, Edge, Genotype
from sgenas.spaces.nasbench201_space.network import NasBench201Network, ResidualBlock, SumCell
from sgenas.spaces.networks import count_macs, count_parameters

# parameters of one operation on C channels: convolution and BN
PARAMETERS = {
    "none": lambda c: 0,
    "skip_connect": lambda c: 0,
    "avg_pool_3x3": lambda c: 0,
    "nor_conv_1x1": lambda c: c * c + 2 * c,
    "nor_conv_3x3": lambda c: 9 * c * c + 2 * c,
}
KERNEL_PIXELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}


def cell_of(text: str) -> Cell:
    """The cell of a string of the benchmark, with its ``none`` edges."""
    edges = []
    for node, part in enumerate(text.split("+"), start=1):
        for word in part.strip("|").split("|"):
            name, source = word.split("~")
            edges.append(Edge(int(source), node, name))
    return Cell(tuple(edges), concat=(3,), nodes=3, inputs=1)


ALL_3X3 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
ALL_SKIP = ALL_3X3.replace("nor_conv_3x3", "skip_connect")
ONE_SKIP = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
MIXED = "|avg_pool_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|none~2|"


def by_hand(cell: Cell, c: int, n: int, num_classes: int, side: int) -> tuple[int, int]:
    """(parameters, multiply-adds) from the definition."""
    params = 27 * c + 2 * c
    macs = 27 * c * side**2
    for width, pixels in ((c, side**2), (2 * c, side**2 // 4), (4 * c, side**2 // 16)):
        params += n * sum(PARAMETERS[edge.operation](width) for edge in cell.edges)
        macs += n * pixels * width**2 * sum(KERNEL_PIXELS.get(edge.operation, 0) for edge in cell.edges)
        if width > c:
            half = width // 2
            block = 9 * half * width + 9 * width**2 + half * width
            params += block + 4 * width
            macs += block * pixels
    return params + 8 * c + 4 * c * num_classes + num_classes, macs + 4 * c * num_classes


@pytest.mark.parametrize(
    ("text", "published"),
    [(ALL_3X3, (1531546, 220119680)), (ALL_SKIP, (73306, 7783040)), (ONE_SKIP, None), (MIXED, None)],
)
def test_sizes_equal_the_count_by_hand(text: str, published: tuple[int, int] | None) -> None:
    cell = cell_of(text)
    with torch.device("meta"):
        network = NasBench201Network(cell)
        counted = count_parameters(network), count_macs(network, torch.empty(1, 3, 32, 32))
    assert counted == by_hand(cell, 16, 5, 10, 32)
    assert published in (None, counted)


def test_cell_is_the_sum_over_its_edges() -> None:
    cell = SumCell(cell_of(MIXED), 4).eval()
    x = torch.randn(2, 4, 5, 6)
    node_1 = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(cell(x), x + cell.operations[3](node_1))


def test_output_without_operations_is_zero() -> None:
    nothing = Cell((Edge(0, 1, "nor_conv_3x3"), Edge(1, 3, "none")), concat=(3,), nodes=3, inputs=1)
    assert torch.equal(SumCell(nothing, 4)(torch.randn(2, 4, 5, 5)), torch.zeros(2, 4, 5, 5))
    NasBench201Network(nothing, channels=4, layers=1)(torch.randn(2, 3, 8, 8)).sum().backward()


def test_residual_block_averages_existing_pixels_only() -> None:
    block = ResidualBlock(3).eval()
    x = torch.randn(2, 3, 5, 7)
    # the last row and column have fewer pixels
    ones = F.pad(torch.ones_like(x), (0, 1, 0, 1))
    mean = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2) / F.avg_pool2d(ones, 2)
    expected = F.conv2d(mean, block.shortcut[1].weight) + block.convolutions(x)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("size", [(32, 32), (7, 10), (1, 3)])
def test_logits_have_one_row_per_image(size: tuple[int, int]) -> None:
    network = NasBench201Network(cell_of(MIXED), channels=3, layers=2, num_classes=6, input_channels=1)
    assert network(torch.randn(2, 1, *size)).shape == (2, 6)
    assert len(network.blocks) == 3 * 2 + 2
    with pytest.raises(InvalidValueError, match="images"):
        network(torch.zeros(2, 3, 8, 8))


def test_gradients_reach_every_parameter() -> None:
    network = NasBench201Network(cell_of(ALL_3X3), channels=4, layers=2)
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("genotype", "word"),
    [
        (Cell((Edge(0, 2, "skip_connect"),), (2,), 1, 2), "inputs must be 1"),
        (Cell((Edge(0, 2, "skip_connect"),), (1, 2), 2, 1), r"\[2\], got \[1, 2\]"),
        (Genotype("darts", (("cell", cell_of(MIXED)),)), "of the space darts"),
        (Genotype("nasbench201", (("normal", cell_of(MIXED)),)), "got normal"),
    ],
)
def test_other_cells_raise(genotype: Any, word: str) -> None:
    with pytest.raises(GenotypeError, match=word):
        NasBench201Network(genotype)


@pytest.mark.parametrize("change", [{"channels": 0}, {"layers": 0}, {"num_classes": 1}, {"input_channels": 0}])
def test_sizes_below_their_minimum_raise(change: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        NasBench201Network(cell_of(MIXED), **change)
    assert caught.value.field == next(iter(change))
