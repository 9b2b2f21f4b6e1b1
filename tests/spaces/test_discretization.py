"""How cells are read out of mixing weights, against the rules in words."""

from typing import Any

import pytest
import torch

from sgenas import tree
from sgenas.errors import GenotypeError, InvalidValueError
from sgenas.spaces import (
    Argmax,
    Discretization,
    Edge,
    EdgeNormalizedSoftmax,
    Sigmoid,
    ThresholdEdges,
    TopEdges,
    darts,
    nasbench201,
)
from sgenas.spaces.discretization import edges_of
from sgenas.spaces.genotype import DARTS_OPERATIONS
from sgenas.spaces.nasbench201_space.strings import from_string, genotype_of, to_string

EDGES = edges_of(4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_edge_order_is_that_of_the_darts_code() -> None:
    assert len(EDGES) == 14
    assert [EDGES.index((0, target)) for target in range(2, 6)] == [0, 2, 5, 9]
    assert EDGES[9:] == ((0, 5), (1, 5), (2, 5), (3, 5), (4, 5))


def reference_rule(weights: list[list[float]], nodes: int) -> set[tuple[int, int, str]]:
    """The DARTS rule: score by the largest non-none weight, keep two edges, best non-none operation."""
    none = DARTS_OPERATIONS.index("none")
    found = set()
    start = 0
    for node in range(nodes):
        rows = weights[start : start + node + 2]
        start += node + 2
        scores = [max(w for k, w in enumerate(row) if k != none) for row in rows]
        order = sorted(range(len(rows)), key=lambda j: (-scores[j], j))
        for j in order[:2]:
            best = min((k for k in range(len(DARTS_OPERATIONS)) if k != none), key=lambda k: (-rows[j][k], k))
            found.add((j, node + 2, DARTS_OPERATIONS[best]))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_darts_rule_on_random_tables_with_many_ties(seed: int) -> None:
    mixing = torch.randint(0, 4, (14, 8), generator=generator(seed)) / 8
    edges = TopEdges()(mixing, EDGES, DARTS_OPERATIONS)
    assert {(edge.source, edge.target, edge.operation) for edge in edges} == reference_rule(mixing.tolist(), 4)
    assert list(edges) == sorted(edges, key=lambda edge: (edge.target, edge.source))


def test_a_space_derives_both_cells() -> None:
    space = darts(channels=2, layers=3, operations="paper")
    alphas = space.initial_alphas(generator())
    alphas["reduce"][4, 2] = 5.0
    genotype = space.derive(alphas)
    assert (genotype.space, [name for name, _ in genotype.cells]) == ("darts", ["normal", "reduce"])
    assert Edge(2, 3, space.operations[2]) in genotype["reduce"].edges
    assert genotype["normal"].concat == (2, 3, 4, 5)
    assert space.architecture_from_dict(space.architecture_to_dict(genotype)) == genotype


def test_pc_darts_scores_by_operation_times_edge() -> None:
    """An edge with a sharp operation but a small edge weight loses against two plain ones."""
    space = darts(channels=8, layers=3, relaxation=EdgeNormalizedSoftmax())
    alphas = tree.zeros_like(space.initial_alphas(generator()))
    first = [row for row, (_, target) in enumerate(space.edges) if target == 3]  # from 0, 1, 2
    alphas["normal"][first[0], 4] = 5.0
    alphas["normal_edges"][first[0]] = -5.0
    cell = space.derive(alphas)["normal"]
    assert [edge.source for edge in cell.edges if edge.target == 3] == [1, 2]
    alphas["normal_edges"][first[0]] = 0.0
    kept = [edge for edge in space.derive(alphas)["normal"].edges if edge.target == 3]
    assert (kept[0].source, kept[0].operation) == (0, "sep_conv_3x3")


def fair(discretization: Discretization) -> Any:
    return darts(channels=4, layers=3, operations="paper", relaxation=Sigmoid(), discretization=discretization)


def test_fair_darts_starts_with_an_empty_cell() -> None:
    space = fair(TopEdges(threshold=0.85))
    alphas = space.initial_alphas(generator())
    assert all((table == 0.5).all() for table in space.mixing(alphas).values())
    assert space.derive(alphas)["normal"].edges == ()
    assert space.derive(alphas).space == "fair-darts"
    assert len(fair(TopEdges()).derive(alphas)["normal"].edges) == 8


def test_fair_darts_thresholds() -> None:
    strong, weak = 3.0, 1.0  # sigmoid 0.95 and 0.73
    cells = {}
    for rule in (TopEdges(), TopEdges(threshold=0.85), ThresholdEdges()):
        space = fair(rule)
        alphas = space.initial_alphas(generator())
        table = alphas["normal"]
        rows = [row for row, (_, target) in enumerate(space.edges) if target == 4]  # from 0, 1, 2, 3
        table[rows[0], 3], table[rows[0], 5], table[rows[0], 6] = strong, strong + 1, strong + 2
        table[rows[1], 2] = strong
        table[rows[2], 0] = weak
        table[rows[3], 0] = strong + 0.5
        cells[rule] = [(e.source, e.operation) for e in space.derive(alphas)["normal"].edges if e.target == 4]
    names = space.operations
    assert cells[TopEdges(threshold=0.85)] == cells[TopEdges()] == [(0, names[6]), (3, names[0])]
    assert cells[ThresholdEdges()] == [(0, names[6]), (0, names[5]), (1, names[2]), (3, names[0])]


@pytest.mark.parametrize("make", [TopEdges, ThresholdEdges])
def test_a_weight_equal_to_the_threshold_is_enough(make: type[TopEdges | ThresholdEdges]) -> None:
    space = fair(make(threshold=torch.sigmoid(torch.tensor(2.0)).item()))
    alphas = tree.map(lambda table: torch.full_like(table, -3.0), space.initial_alphas(generator()))
    alphas[space.kinds[0]][0, 2] = 2.0
    assert [edge.source for edge in space.derive(alphas)[space.kinds[0]].edges] == [0]


def test_argmax_takes_the_largest_of_every_edge() -> None:
    space = nasbench201(channels=1, layers=1)
    assert space.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    for seed in range(20):
        table = torch.randint(0, 4, (6, 5), generator=generator(seed)).float()
        genotype = space.derive({"cell": table})
        # of equal entries numpy takes the first, and the benchmark's string lists the edges in row order
        names = [space.operations[column] for column in table.numpy().argmax(axis=1)]
        assert to_string(genotype) == to_string(genotype_of(names))
        assert len(genotype["cell"].edges) == sum(name != "none" for name in names)
        assert genotype["cell"].concat == (3,)
    assert space.derive({"cell": torch.zeros(6, 5)})["cell"].edges == ()


def test_fair_darts_in_the_benchmark() -> None:
    """Four operations without `none`; the strongest on each edge."""
    space = nasbench201(channels=2, layers=1, operations="without-none", relaxation=Sigmoid())
    alphas = space.initial_alphas(generator())
    alphas["cell"][:, 2] = torch.tensor([3.0, 1.0, 3.0, 3.0, 1.0, 3.0])
    assert to_string(space.derive(alphas)).count("nor_conv_3x3") == 6


def test_pc_darts_drops_no_edge_in_the_benchmark() -> None:
    space = nasbench201(channels=4, layers=1, partial_channels=2, relaxation=EdgeNormalizedSoftmax())
    alphas = space.initial_alphas(generator())
    assert {name: tuple(table.shape) for name, table in alphas.items()} == {"cell": (6, 5), "cell_edges": (6,)}
    alphas["cell_edges"][5] = -9.0
    alphas["cell"][:, 3] = 1.0
    assert to_string(space.derive(alphas)).count("nor_conv_3x3") == 6


def test_alphas_of_another_shape_raise_and_others_stay_as_they_are() -> None:
    space = nasbench201(channels=1, layers=1)
    alphas = tree.leaves(space.initial_alphas(generator()))
    before = tree.clone(alphas)
    space.derive(alphas)
    assert torch.equal(alphas["cell"], before["cell"])
    with pytest.raises(InvalidValueError) as error:
        space.derive({"cell": torch.zeros(6, 4)})
    assert error.value.field == "alphas.cell"


def test_one_hot_is_the_discrete_cell() -> None:
    space = nasbench201(channels=2, layers=1)
    genotype = from_string("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|")
    table = space.one_hot(genotype)["cell"]
    chosen = [space.operations[row.argmax()] if row.any() else "none" for row in table]
    assert genotype_of(chosen) == genotype
    assert table.sum() == 4
    with pytest.raises(GenotypeError, match="must be of this space"):
        nasbench201(channels=2, layers=1, operations=("skip_connect",)).one_hot(genotype)


@pytest.mark.parametrize("make", [TopEdges, ThresholdEdges])
@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan")])
def test_bad_thresholds_raise(make: type[Discretization], threshold: float) -> None:
    with pytest.raises(InvalidValueError) as error:
        make(threshold=threshold)  # type: ignore[call-arg]
    assert error.value.field == f"{make.__name__}.threshold"


def test_discretizations_of_another_kind_of_cell_raise() -> None:
    for make, rule in ((darts, Argmax()), (nasbench201, TopEdges()), (nasbench201, ThresholdEdges())):
        with pytest.raises(InvalidValueError) as error:
            make(discretization=rule)
        assert error.value.field == "discretization"
