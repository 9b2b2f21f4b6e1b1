from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.nets import NasBench201Network, count_macs
from sgenas.nets.nasbench201 import ResidualBlock, SumCell
from sgenas.spaces.genotype import Cell, Edge, Genotype

# the weights of one operation on C channels: convolution and BN
WEIGHTS = {
    "none": lambda c: 0,
    "skip_connect": lambda c: 0,
    "avg_pool_3x3": lambda c: 0,
    "nor_conv_1x1": lambda c: c * c + 2 * c,
    "nor_conv_3x3": lambda c: 9 * c * c + 2 * c,
}
KERNEL_PIXELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}


def cell_of(text: str) -> Cell:
    """The cell of a string as the benchmark writes them: |op~source|+|op~source|op~source|+..."""
    edges = []
    for node, part in enumerate(text.split("+"), start=1):
        for word in part.strip("|").split("|"):
            name, source = word.split("~")
            edges.append(Edge(int(source), node, name))
    return Cell(tuple(edges), concat=(3,), nodes=3, inputs=1)


ALL_3X3 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
ALL_SKIP = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
ONE_SKIP = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
MIXED = "|avg_pool_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|none~2|"


def by_hand(cell: Cell, c: int, n: int, classes: int, side: int) -> tuple[int, int]:
    """(parameters, multiply-adds) written out from the definition."""
    params = 27 * c + 2 * c
    macs = 27 * c * side**2
    for width, pixels in ((c, side**2), (2 * c, side**2 // 4), (4 * c, side**2 // 16)):
        params += n * sum(WEIGHTS[edge.operation](width) for edge in cell.edges)
        macs += n * pixels * width**2 * sum(KERNEL_PIXELS.get(edge.operation, 0) for edge in cell.edges)
        if width > c:
            half = width // 2
            block = 9 * half * width + 9 * width**2 + half * width
            params += block + 4 * width
            macs += block * pixels
    return params + 8 * c + 4 * c * classes + classes, macs + 4 * c * classes


@pytest.mark.parametrize(
    ("text", "params", "macs"),
    [
        (ALL_3X3, 1531546, 220119680),
        (ALL_SKIP, 73306, 7783040),
        (ONE_SKIP, None, None),
        (MIXED, None, None),
    ],
)
def test_sizes(text: str, params: int | None, macs: int | None) -> None:
    cell = cell_of(text)
    network = NasBench201Network(cell)
    counted = sum(parameter.numel() for parameter in network.parameters())
    macs_counted = count_macs(network.to("meta"), torch.empty(1, 3, 32, 32, device="meta"))
    assert (counted, macs_counted) == by_hand(cell, 16, 5, 10, 32)
    if params is not None:
        assert (counted, macs_counted) == (params, macs)


def test_cell_is_the_sum_over_its_edges() -> None:
    cell = SumCell(cell_of(MIXED), 4).eval()
    x = torch.randn(2, 4, 5, 6)
    node_1 = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    node_3 = x + cell.operations[3](node_1)
    torch.testing.assert_close(cell(x), node_3)


def test_no_operation_at_all_is_zero() -> None:
    nothing = Cell((Edge(0, 1, "nor_conv_3x3"), Edge(1, 3, "none")), concat=(3,), nodes=3, inputs=1)
    assert torch.equal(SumCell(nothing, 4)(torch.randn(2, 4, 5, 5)), torch.zeros(2, 4, 5, 5))
    network = NasBench201Network(nothing, channels=4, cells=1)
    network(torch.randn(2, 3, 8, 8)).sum().backward()


def test_residual_block_adds_pooled_pixels() -> None:
    block = ResidualBlock(3).eval()
    x = torch.randn(2, 3, 5, 7)
    # the mean of the pixels that are there: the last row and column have fewer
    ones = F.pad(torch.ones_like(x), (0, 1, 0, 1))
    mean = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2) / F.avg_pool2d(ones, 2)
    expected = F.conv2d(mean, block.shortcut[1].weight) + block.convolutions(x)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("size", [(32, 32), (7, 10), (1, 3)])
def test_shapes(size: tuple[int, int]) -> None:
    network = NasBench201Network(cell_of(MIXED), channels=3, cells=2, classes=6, input_channels=1)
    assert network(torch.randn(2, 1, *size)).shape == (2, 6)
    assert len(network.blocks) == 3 * 2 + 2


def test_gradients_reach_every_parameter() -> None:
    network = NasBench201Network(cell_of(ALL_3X3), channels=4, cells=2)
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (Cell((Edge(0, 2, "skip_connect"),), (2,), 1, 2), r"cell.inputs must be 1 in this network, got 2"),
        (Cell((Edge(0, 2, "skip_connect"),), (1, 2), 2, 1), r"the last node alone, \[2\], got \[1, 2\]"),
        (Genotype("darts", (("cell", cell_of(MIXED)),)), r"genotype.space must be nasbench201, got 'darts'"),
        (
            Genotype("nasbench201", (("normal", cell_of(MIXED)),)),
            r"must be one cell named cell, got normal",
        ),
    ],
)
def test_cells_that_do_not_fit(genotype: Any, message: str) -> None:
    with pytest.raises(GenotypeError, match=message):
        NasBench201Network(genotype)


@pytest.mark.parametrize("change", [{"channels": 0}, {"cells": 0}, {"classes": 1}, {"input_channels": 0}])
def test_bad_sizes(change: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError, match=rf"{next(iter(change))} must be an integer >= "):
        NasBench201Network(cell_of(MIXED), **change)


def test_bad_images() -> None:
    network = NasBench201Network(cell_of(MIXED), channels=3, cells=1)
    with pytest.raises(InvalidValueError, match=r"images must have shape \(B, 3, H, W\), got \(2, 1, 8, 8\)"):
        network(torch.zeros(2, 1, 8, 8))
