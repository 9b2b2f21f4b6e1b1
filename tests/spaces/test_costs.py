"""Budgets as settings; costs of operations, which add up to the sizes that `network_size` counts."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import sgenas
from sgenas.errors import DataError, GenotypeError, InvalidValueError
from sgenas.spaces.budget import cell_cost_model
from sgenas.spaces.cell_costs import CostTable, NetworkSpec, cost_table, placements
from sgenas.spaces.costs import Budget, expected_cost
from sgenas.spaces.darts_space.published import published
from sgenas.spaces.discretization import Argmax, Discretization, ThresholdEdges, edges_of
from sgenas.spaces.genotype import DARTS_OPERATIONS, Cell, Edge, Genotype, existing_nodes
from sgenas.spaces.latency import LatencyTable
from sgenas.spaces.nasbench201_space.strings import EDGES, OPERATIONS, genotype_of
from sgenas.spaces.networks import Size, network_size
from sgenas.spaces.relaxations import EdgeNormalizedSoftmax, Sigmoid

SMALL = NetworkSpec("darts", 4, 5, 3, num_classes=7, input_channels=1, height=9, width=9)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_params": 0}, "max_params"),
        ({"max_macs": -3}, "max_macs"),
        ({"max_latency": 0.0, "latency_table": "x"}, "max_latency"),
        ({"max_latency": float("nan"), "latency_table": "x"}, "max_latency"),
        ({"max_latency": 1.0}, "max_latency"),
        ({"latency_table": "x"}, "latency_table"),
        ({"penalty": "energy"}, "penalty"),
        ({"penalty": "latency"}, "penalty"),
        ({"penalty": "macs", "penalty_weight": 0.0}, "penalty_weight"),
        ({"penalty_weight": 2.0}, "penalty_weight"),
        ({"channels": 8}, "channels"),
        ({"layers": 8}, "layers"),
        ({"max_params": 9, "channels": 1}, "channels"),
    ],
)
def test_budget_with_senseless_settings_raises(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Budget(**settings)
    assert caught.value.field == f"Budget.{field}"
    assert "\n" not in str(caught.value)


def sizes_of(genotype: Genotype, spec: NetworkSpec) -> Size:
    return network_size(
        genotype,
        channels=spec.channels,
        layers=spec.layers,
        num_classes=spec.num_classes,
        input_channels=spec.input_channels,
        resolution=spec.height,
    )


def tables(spec: NetworkSpec, narrow: bool = False) -> list[CostTable]:
    edges, names = (edges_of(spec.nodes), DARTS_OPERATIONS) if spec.space == "darts" else (EDGES, OPERATIONS)
    return [cost_table(quantity, spec, edges, names, narrow=narrow) for quantity in ("params", "macs")]


def random_cell(draw: random.Random, nodes: int, keep: float | None) -> Cell:
    """Two edges per node; with ``keep`` any edges and operations, so that nodes may be missing."""
    kept = []
    for target in range(2, 2 + nodes):
        if keep is None:
            sources = draw.sample(range(target), 2)
            kept += [Edge(source, target, draw.choice(DARTS_OPERATIONS[1:])) for source in sources]
        else:
            pairs = [(source, name) for source in range(target) for name in DARTS_OPERATIONS[1:]]
            kept += [Edge(source, target, name) for source, name in pairs if draw.random() < keep]
    return Cell(tuple(kept), tuple(range(2, 2 + nodes)), nodes)


@pytest.mark.parametrize("space", ["fair-darts", pytest.param("darts", marks=pytest.mark.slow)])
def test_costs_of_random_cells_are_the_sizes_of_their_networks(space: str) -> None:
    draw = random.Random(0)
    made = tables(SMALL, narrow=space == "fair-darts")
    missing = 0
    for _ in range(8):
        keep = None if space == "darts" else 0.08
        cells = [(kind, random_cell(draw, SMALL.nodes, keep)) for kind in ("normal", "reduce")]
        genotype = Genotype(space, tuple(cells))
        existing = [len(existing_nodes(cell)) for _, cell in cells]
        missing += existing != [SMALL.nodes] * 2
        if 0 in existing:
            assert [table.of(genotype) for table in made] == [None, None]
            continue
        size = sizes_of(genotype, SMALL)
        assert [table.of(genotype) for table in made] == [size.params, size.macs]
    assert (missing > 2) == (space == "fair-darts")


def test_costs_of_random_nasbench201_cells_are_the_sizes_of_their_networks() -> None:
    draw = random.Random(0)
    spec = NetworkSpec.of("nasbench201", channels=3, layers=2, height=8, width=8)
    made = tables(spec)
    # everything counts, whether it leads to the output or not, and an empty cell is a network too
    names = [[draw.choice(OPERATIONS) for _ in EDGES] for _ in range(8)] + [["none"] * 6]
    for genotype in map(genotype_of, names):
        size = sizes_of(genotype, spec)
        assert [table.of(genotype) for table in made] == [size.params, size.macs]


@pytest.mark.slow
def test_cell_cost_model_counts_the_default_network() -> None:
    genotype, size = published("darts-v2"), network_size(published("darts-v2"))
    space = sgenas.spaces.darts(channels=4)
    model = space.cost_model(Budget(max_params=10**9, penalty="macs"), torch.empty(7, 3, 32, 32))
    assert model.of(genotype) == {"params": size.params, "macs": size.macs}
    network = model.describe()["budget_network"]
    assert (network["channels"], network["layers"], network["num_classes"]) == (36, 20, 10)
    with pytest.raises(GenotypeError, match="cell normal must be of this space"):
        tables(SMALL)[0].of(genotype)


def test_latencies_are_summed_over_all_cells() -> None:
    spec = NetworkSpec("darts", 4, 4, 1, height=8, width=16)
    where = placements(spec)
    assert {(each.height, each.width) for row in where.values() for each in row} == {(8, 16), (4, 8), (2, 4)}
    # layers 1 and 2 of 4 are reductions, layers 0 and 3 normal
    assert [len(where["normal", True, name]) for name in ("skip_connect", "sep_conv_5x5")] == [2, 2]
    each = {placement: 1.0 + placement.stride for row in where.values() for placement in row}
    edges = edges_of(1)
    table = cost_table("latency", spec, edges, DARTS_OPERATIONS, milliseconds=each, rest=100.0)
    cells = (("normal", Cell((Edge(0, 2, "skip_connect"), Edge(1, 2, "dil_conv_3x3")), (2,), 1)),)
    cells += (("reduce", Cell((Edge(0, 2, "skip_connect"),), (2,), 1)),)
    assert table.of(Genotype("darts", cells)) == 100 + 2 * 2 * 2.0 + 2 * 3.0
    del each[where["normal", True, "skip_connect"][0]]
    with pytest.raises(InvalidValueError, match="skip_connect"):
        cost_table("latency", spec, edges, DARTS_OPERATIONS, milliseconds=each, rest=100.0)


def test_expected_cost_by_hand() -> None:
    costs = {("cell",): torch.tensor([[0.0, 4.0], [2.0, 6.0]], dtype=torch.float64)}
    # 0.25 * 4 + 0.9 * 2 + 0.1 * 6
    mixing = {"cell": torch.tensor([[0.75, 0.25], [0.9, 0.1]], dtype=torch.float64)}
    assert expected_cost(costs, mixing).item() == pytest.approx(3.4)


def test_penalty_is_one_for_equal_mixing_weights_and_zero_for_free_operations() -> None:
    for names, least in ((OPERATIONS, 1.0), (("skip_connect", "avg_pool_3x3"), 0.0)):
        space = sgenas.spaces.nasbench201(channels=2, layers=1, operations=names)
        model = cell_cost_model(space, Budget(penalty="params", channels=2, layers=1), (1, 8, 8))
        alphas = {"cell": torch.zeros(6, len(names))}
        for _ in range(2):
            found = model.penalty(alphas)
            assert found is not None
            assert (found.item(), found.dtype) == (pytest.approx(least), torch.float32)


@pytest.mark.parametrize("relaxation", [None, Sigmoid(), EdgeNormalizedSoftmax()])
def test_gradient_of_the_penalty_equals_finite_differences(relaxation: Any) -> None:
    space = sgenas.spaces.darts(nodes=2, operations="paper", relaxation=relaxation)
    budget = Budget(penalty="macs", penalty_weight=3.0, channels=4, layers=5)
    model = cell_cost_model(space, budget, (3, 8, 8))
    start = space.initial_alphas(torch.Generator().manual_seed(0))
    flat = [(300 * alpha.double()).requires_grad_() for alpha in start.values()]

    def penalty(*given: torch.Tensor) -> torch.Tensor:
        found = model.penalty(dict(zip(start, given, strict=True)))
        assert found is not None
        return found

    assert torch.autograd.gradcheck(penalty, flat)
    if relaxation is None:
        assert penalty(*(torch.zeros_like(alpha) for alpha in flat)).item() == pytest.approx(3.0)


class Custom(Discretization):
    """Without a rule."""

    def __call__(self, mixing: Any, edges: Any, operations: Any) -> tuple[Edge, ...]:
        return tuple(Edge(*ends, operations[0]) for ends in edges)


@pytest.mark.parametrize(
    ("settings", "budget", "field"),
    [
        ({}, {"max_params": 5}, "Budget.max_params"),
        ({}, {"max_params": 9, "channels": 10**12}, "Budget.channels"),
        ({}, {"max_params": 9, "layers": 2}, "Budget.layers"),
        ({"discretization": Custom()}, {"max_params": 10**9}, "discretization"),
    ],
)
def test_budget_that_does_not_fit_the_space_raises(settings: Any, budget: dict[str, Any], field: str) -> None:
    space = sgenas.spaces.darts(channels=4, nodes=1, **settings)
    with pytest.raises(InvalidValueError) as caught:
        cell_cost_model(space, Budget(**({"channels": 4, "layers": 3} | budget)), (1, 8, 8))
    assert caught.value.field == field


def test_penalty_works_without_a_rule() -> None:
    space = sgenas.spaces.darts(channels=4, nodes=1, discretization=Custom(), operations="paper")
    model = cell_cost_model(space, Budget(penalty="params", channels=4, layers=3), (1, 8, 8))
    alphas = space.initial_alphas(torch.Generator())
    assert model.penalty(alphas) is not None
    assert model.of(model.derive(alphas))["params"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"relaxation": EdgeNormalizedSoftmax()},
        {"relaxation": Sigmoid(), "operations": "paper", "discretization": ThresholdEdges(threshold=0.3)},
        {"space": "nasbench201"},
        {"space": "nasbench201", "operations": OPERATIONS[1:], "relaxation": Sigmoid(), "discretization": Argmax()},
    ],
)
def test_derived_cells_stay_within_a_budget(settings: dict[str, Any]) -> None:
    make = getattr(sgenas.spaces, settings.get("space", "darts"))
    nodes = {} if "space" in settings else {"nodes": 1}
    space = make(**{name: value for name, value in (settings | nodes).items() if name != "space"})
    alphas = {name: torch.randn(a.shape) for name, a in space.initial_alphas(torch.Generator()).items()}
    sizes = {"channels": 4, "layers": 3}
    free = space.derive(alphas)
    largest = cell_cost_model(space, Budget(max_params=10**9, **sizes), (1, 8, 8)).of(free)["params"]
    model = cell_cost_model(space, Budget(max_params=int(largest) - 1, **sizes), (1, 8, 8))
    found = model.derive(alphas)
    size = network_size(found, input_channels=1, resolution=8, **sizes).params
    assert size == model.of(found)["params"] < largest
    assert model.is_within(found)
    assert not model.is_within(free)


def test_latency_budget_reads_its_table(tmp_path: Path) -> None:
    spec = NetworkSpec("darts", 4, 3, 1, num_classes=10, input_channels=1, height=8, width=8)
    # made up, so that the outcome is certain: a convolution takes long
    each = {p: 100.0 if "conv" in p.operation else 1.0 for row in placements(spec).values() for p in row}
    path = tmp_path / "table.json"
    LatencyTable(spec, each, 10.0, 1, {}).save(path)
    space = sgenas.spaces.darts(nodes=1)
    alphas = space.initial_alphas(torch.Generator().manual_seed(0))

    def model(most: float, channels: int = 4) -> Any:
        budget = Budget(max_latency=most, latency_table=str(path), penalty="latency", channels=channels, layers=3)
        return cell_cost_model(space, budget, (1, 8, 8))

    found = model(50.0).derive(alphas)
    assert model(50.0).of(found) == {"latency": 16.0}
    assert "conv" not in str(found)
    for arguments, field in (((15.9,), "Budget.max_latency"), ((50.0, 6), "Budget.latency_table")):
        with pytest.raises(InvalidValueError) as caught:
            model(*arguments)
        assert caught.value.field == field
    LatencyTable(spec, dict(list(each.items())[:-1]), 10.0, 1, {}).save(path)
    with pytest.raises(InvalidValueError, match="Placement"):
        model(50.0)
    path.write_text("nothing")
    with pytest.raises(DataError, match=r"table.json cannot be read"):
        model(50.0)
