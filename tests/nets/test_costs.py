"""Costs of operations: together with the fixed part they are the sizes that `network_size` counts."""

import random
from typing import Any

import pytest
import torch

from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.nets import network_size, published
from sgenas.nets.costs import NetworkSpec, counted_table, measured_table, places
from sgenas.nets.sizes import Size
from sgenas.spaces.costs import CostTable, expected_cost
from sgenas.spaces.derivation import edges_of
from sgenas.spaces.genotype import DARTS_OPERATIONS, Cell, Edge, Genotype, existing_nodes
from sgenas.spaces.nasbench201_strings import EDGES, OPERATIONS, from_string, genotype_of

SMALL = NetworkSpec("darts", 4, 5, 3, classes=7, input_channels=1, height=9, width=9)
SIZES = {"channels": 4, "layers": 5, "classes": 7, "input_channels": 1, "resolution": 9}


def sizes_of(genotype: Genotype, spec: NetworkSpec) -> Size:
    return network_size(
        genotype,
        channels=spec.channels,
        layers=spec.layers,
        classes=spec.classes,
        input_channels=spec.input_channels,
        resolution=spec.height,
    )


def tables(spec: NetworkSpec, narrow: bool = False) -> list[CostTable]:
    edges, names = (edges_of(spec.nodes), DARTS_OPERATIONS) if spec.space == "darts" else (EDGES, OPERATIONS)
    return [counted_table(quantity, spec, edges, names, narrow=narrow) for quantity in ("params", "macs")]


def random_cell(draw: random.Random, nodes: int, keep: float | None) -> Cell:
    """Two edges a node; with `keep` every edge and operation by chance, so that nodes may be missing."""
    kept = []
    for target in range(2, 2 + nodes):
        if keep is None:
            sources = draw.sample(range(target), 2)
            kept += [Edge(source, target, draw.choice(DARTS_OPERATIONS[1:])) for source in sources]
        else:
            pairs = [(source, name) for source in range(target) for name in DARTS_OPERATIONS[1:]]
            kept += [Edge(source, target, name) for source, name in pairs if draw.random() < keep]
    return Cell(tuple(kept), tuple(range(2, 2 + nodes)), nodes)


@pytest.mark.parametrize("space", ["darts", "fair-darts"])
def test_costs_of_random_cells_are_the_sizes_of_their_networks(space: str) -> None:
    draw = random.Random(0)
    made = tables(SMALL, narrow=space == "fair-darts")
    missing = 0
    for _ in range(12):
        keep = None if space == "darts" else 0.08
        cells = [(kind, random_cell(draw, SMALL.nodes, keep)) for kind in ("normal", "reduce")]
        genotype = Genotype(space, tuple(cells))
        there = [len(existing_nodes(cell)) for _, cell in cells]
        missing += there != [SMALL.nodes] * 2
        if 0 in there:
            assert [table.of(genotype) for table in made] == [None, None]
            continue
        size = sizes_of(genotype, SMALL)
        assert [table.of(genotype) for table in made] == [size.params, size.macs]
    assert (missing > 3) == (space == "fair-darts")


def test_costs_of_a_published_cell_at_the_usual_size() -> None:
    genotype = published("darts-v2")
    spec = NetworkSpec.of("darts")
    size = network_size(genotype)
    assert [table.of(genotype) for table in tables(spec)] == [size.params, size.macs]


def test_costs_of_random_nasbench201_cells() -> None:
    draw = random.Random(0)
    spec = NetworkSpec.of("nasbench201", channels=3, layers=2, height=8, width=8)
    made = tables(spec)
    for _ in range(8):
        genotype = genotype_of([draw.choice(OPERATIONS) for _ in EDGES])
        size = sizes_of(genotype, spec)
        assert [table.of(genotype) for table in made] == [size.params, size.macs]
    # everything counts, whether it leads to the output or not, and an empty cell is a network too
    nothing = genotype_of(["none"] * 6)
    assert made[0].of(nothing) == sizes_of(nothing, spec).params


def test_images_need_not_be_square() -> None:
    flat = NetworkSpec("darts", 4, 5, 1, height=8, width=16)
    sides = {(place.height, place.width) for stand in places(flat).values() for place in stand}
    assert sides == {(8, 16), (4, 8), (2, 4)}


def test_measured_milliseconds_are_summed_over_all_cells() -> None:
    spec = NetworkSpec("darts", 4, 4, 1, height=8, width=8)
    where = places(spec)
    # layers 1 and 2 of 4 are reductions, layers 0 and 3 normal
    assert [len(where["normal", True, name]) for name in ("skip_connect", "sep_conv_5x5")] == [2, 2]
    each = {place: 1.0 + place.stride for stand in where.values() for place in stand}
    edges = edges_of(1)
    table = measured_table(spec, edges, DARTS_OPERATIONS, each, rest=100.0)
    cells = (("normal", Cell((Edge(0, 2, "skip_connect"), Edge(1, 2, "dil_conv_3x3")), (2,), 1)),)
    cells += (("reduce", Cell((Edge(0, 2, "skip_connect"),), (2,), 1)),)
    assert table.of(Genotype("darts", cells)) == 100 + 2 * 2 * 2.0 + 2 * 3.0
    place = where["normal", True, "skip_connect"][0]
    del each[place]
    with pytest.raises(InvalidValueError, match="latency table must have Place.operation='skip_connect'"):
        measured_table(spec, edges, DARTS_OPERATIONS, each, rest=100.0)


def test_a_cell_of_another_space_has_no_cost() -> None:
    table = tables(SMALL)[0]
    with pytest.raises(GenotypeError, match="cell normal must be of this space"):
        table.of(published("darts-v2"))
    with pytest.raises(InvalidValueError, match="space must be one of darts, nasbench201, got 'rnn'"):
        NetworkSpec.of("rnn")


def test_expected_cost_by_hand() -> None:
    values = {"cell": torch.tensor([[0.0, 4.0], [2.0, 6.0]], dtype=torch.float64)}
    table = CostTable("params", ((0, 1), (0, 2)), ("none", "skip_connect"), values, {(3,): 9.0}, False)
    half = {"cell": torch.full((2, 2), 0.5, dtype=torch.float64)}
    assert expected_cost(table, half).item() == 1.0
    # (0.25 * 4 + 0.9 * 2 + 0.1 * 6) / (2 + 4)
    mixing = {"cell": torch.tensor([[0.75, 0.25], [0.9, 0.1]], dtype=torch.float64)}
    assert expected_cost(table, mixing).item() == pytest.approx(3.4 / 6)
    assert expected_cost(table, {"cell": mixing["cell"].float()}).dtype == torch.float32
    free = CostTable("params", table.edges, table.operations, {"cell": torch.zeros(2, 2)}, {}, False)
    assert expected_cost(free, mixing).item() == 0


@pytest.mark.parametrize("relax", [torch.softmax, lambda alphas, dim: alphas.sigmoid()])
def test_gradient_of_the_expected_cost_is_that_of_finite_differences(relax: Any) -> None:
    table = tables(NetworkSpec("darts", 4, 5, 2, height=8, width=8))[1]
    draw = torch.Generator().manual_seed(0)
    alphas = [torch.randn(5, 8, dtype=torch.float64, generator=draw).requires_grad_() for _ in table.values]

    def cost(*given: torch.Tensor) -> torch.Tensor:
        mixing = {kind: relax(alpha, dim=-1) for kind, alpha in zip(table.values, given, strict=True)}
        return expected_cost(table, mixing)

    assert torch.autograd.gradcheck(cost, alphas)


def test_a_string_and_its_genotype_cost_the_same() -> None:
    spec = NetworkSpec.of("nasbench201")
    genotype = from_string(
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
    )
    assert tables(spec)[0].of(genotype) == network_size(genotype).params
