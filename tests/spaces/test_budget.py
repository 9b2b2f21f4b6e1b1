"""Derivation within a budget: against every cell of a space, and against the derivation without a budget."""

import random
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch

import sgenas
from sgenas.errors import InvalidValueError
from sgenas.spaces.budget import CellCostModel
from sgenas.spaces.cell_costs import CostTable
from sgenas.spaces.cell_space import CellSpace
from sgenas.spaces.costs import Budget
from sgenas.spaces.discretization import Argmax, Rule, ThresholdEdges, TopEdges
from sgenas.spaces.genotype import Cell, Edge, Genotype, existing_nodes
from sgenas.spaces.knapsack import best_choice, joined, single
from sgenas.spaces.nasbench201_space.strings import OPERATIONS as BENCHMARK_OPERATIONS
from sgenas.spaces.relaxations import EdgeNormalizedSoftmax, Sigmoid
from sgenas.tree import TensorDict

OPERATIONS = ("skip_connect", "sep_conv_3x3", "dil_conv_5x5")
HUGE = 10**15


def darts(nodes: int = 2, **settings: Any) -> CellSpace:
    return sgenas.spaces.darts(channels=8, layers=3, nodes=nodes, operations=OPERATIONS, **settings)


def nasbench201(**settings: Any) -> CellSpace:
    return sgenas.spaces.nasbench201(channels=8, **settings)


class Strict(Argmax):
    """A rule from outside the package: no operation on an edge whose weights are all below a threshold."""

    rule = Rule(threshold=0.5, keeps_none=True)


def fair(**settings: Any) -> dict[str, Any]:
    return {"relaxation": Sigmoid(), "operations": BENCHMARK_OPERATIONS[1:]} | settings


def table_of(space: CellSpace, seed: int = 0) -> CostTable:
    """Random costs, with few values so that many cells cost the same."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(space.edges), len(space.operations))
    values = {kind: torch.randint(0, 6, shape, generator=draw).double() * (seed + 1) for kind in space.kinds}
    hollow = space.discretization.rule.keeps_none
    counts = [(1,)] if hollow else list(product(range(1, space.nodes + 1), repeat=2))
    fixed = {joins: 10.0 * sum(joins) for joins in counts}
    return CostTable(space.edges, space.operations, values, fixed, not hollow)


def model_of(space: CellSpace, tables: list[CostTable], limits: list[float]) -> CellCostModel:
    """With limits of params, macs and latency, which stand for any quantities."""
    names = ["params", "macs", "latency"][: len(tables)]
    extra = {"latency_table": "unused"} if len(tables) == 3 else {}
    budget = Budget(**{f"max_{name}": limit for name, limit in zip(names, limits, strict=True)}, **extra)
    return CellCostModel(space, budget, None, dict(zip(names, tables, strict=True)))


def alphas_of(space: CellSpace, seed: int) -> TensorDict:
    draw = torch.Generator().manual_seed(seed)
    start = space.initial_alphas(torch.Generator())
    return {name: 3 * torch.randn(table.shape, generator=draw) for name, table in start.items()}


def every_cell(space: CellSpace) -> Iterator[Cell]:
    """All cells of a DARTS space: with all nodes, or with a threshold those with some."""
    rule, names = space.discretization.rule, [name for name in space.operations if name != "none"]
    per_node = []
    for target in range(2, 2 + space.nodes):
        on_edges: list[list[tuple[Edge, ...]]] = []
        for source in range(target):
            counts = range(1, rule.operations_per_edge + 1)
            sets = [chosen for count in counts for chosen in combinations(names, count)]
            on_edges.append([(), *(tuple(Edge(source, target, name) for name in chosen) for chosen in sets)])
        choices = []
        for found in product(*on_edges):
            used, most = sum(bool(edges) for edges in found), rule.edges_per_node
            if (used == 2) if rule.threshold is None else (most is None or used <= most):
                choices.append(tuple(edge for edges in found for edge in edges))
        per_node.append(choices)
    computed = tuple(range(2, 2 + space.nodes))
    for found in product(*per_node):
        cell = Cell(tuple(edge for edges in found for edge in edges), computed, space.nodes)
        existing = {0, 1, *existing_nodes(cell)}
        if len(existing) > 2 and all(edge.source in existing for edge in cell.edges):
            yield cell


def positions(space: CellSpace, cell: Cell) -> list[tuple[int, int]]:
    return [(space.edges.index((e.source, e.target)), space.operations.index(e.operation)) for e in cell.edges]


def score_of(space: CellSpace, alphas: TensorDict, genotype: Genotype) -> float:
    mixing, least = space.mixing(alphas), space.discretization.rule.threshold or 0.0
    rows = [mixing[kind].double()[place].item() for kind, cell in genotype.cells for place in positions(space, cell)]
    return sum(weight - least for weight in rows)


def brute_force(space: CellSpace, alphas: TensorDict, tables: list[CostTable], limits: list[float]) -> float:
    """The best score of all pairs of cells within the limits."""
    cells = list(every_cell(space))
    empty = Cell((), tuple(range(2, 2 + space.nodes)), space.nodes)
    rows: dict[str, list[Any]] = {kind: [] for kind in space.kinds}
    for kind, cell in product(space.kinds, cells):
        alone = Genotype("darts", tuple((k, cell if k == kind else empty) for k in space.kinds))
        costs = [sum(table.values[kind][place].item() for place in positions(space, cell)) for table in tables]
        rows[kind].append((score_of(space, alphas, alone), len(existing_nodes(cell)), *costs))
    first, second = (np.array(rows[kind]) for kind in space.kinds)
    score = first[:, None, 0] + second[None, :, 0]
    good = np.ones(score.shape, dtype=bool)
    for index, (table, limit) in enumerate(zip(tables, limits, strict=True)):
        cost = first[:, None, 2 + index] + second[None, :, 2 + index]
        for joins, fixed in table.fixed.items():
            cost = cost + fixed * ((first[:, None, 1] == joins[0]) & (second[None, :, 1] == joins[1]))
        good &= cost <= limit
    return float(score[good].max())


SPACES: dict[str, Callable[[], CellSpace]] = {
    "darts": darts,
    "pc-darts": lambda: darts(relaxation=EdgeNormalizedSoftmax()),
    "top2": lambda: darts(relaxation=Sigmoid()),
    "threshold": lambda: darts(relaxation=Sigmoid(), discretization=TopEdges(threshold=0.6)),
    "threshold-edges": lambda: darts(1, relaxation=Sigmoid(), discretization=ThresholdEdges(threshold=0.6)),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("budgets", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_derived_cell_is_the_best_of_all_cells_within_the_budget(name: str, budgets: int) -> None:
    space = SPACES[name]()
    changed = 0
    for seed in range(4):
        alphas = alphas_of(space, seed)
        tables = [table_of(space, seed + k) for k in range(budgets)]
        free = space.derive(alphas)
        for share in (0.5, 0.65, 0.8, 0.9, 2.0):
            costs = [table.of(free) for table in tables]
            limits = [float(np.floor(share * cost)) for cost in costs if cost is not None]
            try:
                model = model_of(space, tables, limits)
            except InvalidValueError:
                continue
            found = model.derive(alphas)
            assert model.is_within(found)
            assert found == free or not model.is_within(free)
            if found != free:
                assert share < 2
                changed += 1
                best = brute_force(space, alphas, tables, limits)
                assert score_of(space, alphas, found) == pytest.approx(best, abs=1e-9)
    assert changed >= 3


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
@pytest.mark.parametrize(
    "make",
    [
        lambda: sgenas.spaces.darts(channels=8),
        lambda: sgenas.spaces.darts(channels=8, relaxation=EdgeNormalizedSoftmax()),
        lambda: sgenas.spaces.darts(
            channels=8, operations="paper", relaxation=Sigmoid(), discretization=TopEdges(threshold=0.85)
        ),
        nasbench201,
        lambda: nasbench201(**fair()),
    ],
    ids=["darts", "pc-darts", "fair-darts", "nasbench201", "fair-darts-nasbench201"],
)
def test_large_budget_changes_nothing(make: Callable[[], CellSpace], seed: int) -> None:
    space = make()
    alphas = alphas_of(space, seed)
    model = model_of(space, [table_of(space), table_of(space, 1)], [HUGE, HUGE])
    free = space.derive(alphas)
    assert model.derive(alphas) == free
    cells = []
    for kind, cell in free.cells:
        # the rule of Fair DARTS lists edges that leave missing nodes; the network does not have them
        existing = {0, 1, *existing_nodes(cell)} if cell.inputs == 2 else set(range(4))
        kept = tuple(e for e in cell.edges if e.source in existing and e.target in existing)
        cells.append((kind, Cell(kept, cell.concat, cell.nodes, cell.inputs)))
    assert model.best(alphas) == Genotype(free.space, tuple(cells))


@pytest.mark.parametrize("options", [{}, fair(discretization=Strict())])
def test_derived_nasbench201_cell_is_the_best_of_all_within_the_budget(options: dict[str, Any]) -> None:
    space = nasbench201(**options)
    table, alphas = table_of(space, 3), alphas_of(space, 0)
    costs, weights = table.values["cell"].numpy(), space.mixing(alphas)["cell"].double().numpy()
    if options:
        # a fifth column for no operation, which costs nothing and scores the threshold
        costs = np.concatenate([np.zeros((6, 1)), costs], axis=1)
        weights = np.concatenate([np.full((6, 1), 0.5), weights], axis=1)
    sums, scores = np.zeros(1), np.zeros(1)
    for row in range(6):
        sums = (sums[:, None] + costs[row]).ravel()
        scores = (scores[:, None] + weights[row]).ravel()
    assert len(sums) == 5**6
    free = table.of(space.derive(alphas))
    assert free is not None
    for limit in (free - 1, 0.7 * free, table.fixed[1,] + sums.min()):
        found = model_of(space, [table], [limit]).derive(alphas)
        cost = table.of(found)
        assert cost is not None
        assert cost <= limit
        kept = 0.0
        for row, ends in enumerate(space.edges):
            names = [e.operation for e in found["cell"].edges if (e.source, e.target) == ends]
            assert len(names) <= 1
            if options:
                kept += weights[row, 1 + space.operations.index(names[0])] if names else 0.5
            else:
                kept += weights[row, space.operations.index(names[0] if names else "none")]
        assert kept == pytest.approx(scores[sums + table.fixed[1,] <= limit].max(), abs=1e-9)


def test_impossible_budget_names_the_smallest_possible_one() -> None:
    space = darts()
    table = table_of(space)
    with pytest.raises(InvalidValueError, match=r"^Budget.max_params must be >= (\d+) .* got 3$") as caught:
        model_of(space, [table], [3])
    assert caught.value.field == "Budget.max_params"
    smallest = float(str(caught.value).split(">= ")[1].split(" ")[0])
    assert table.of(model_of(space, [table], [smallest]).derive(alphas_of(space, 0))) == smallest
    with pytest.raises(InvalidValueError, match=f">= {smallest:.0f}"):
        model_of(space, [table], [smallest - 1])


def test_budgets_that_only_different_cells_meet_raise() -> None:
    space = darts(nodes=1)
    rising = torch.tensor([[0.0, 5.0, 9.0]] * 2, dtype=torch.float64)
    tables = [
        CostTable(space.edges, space.operations, dict.fromkeys(space.kinds, values), {(1, 1): 0.0}, True)
        for values in (rising, rising.flip(1))
    ]
    with pytest.raises(InvalidValueError, match="no architecture meets Budget.max_params 10 and Budget.max_macs 10"):
        model_of(space, tables, [10, 10])
    model_of(space, tables, [20, 20])


def test_empty_cell_is_derived_despite_a_budget() -> None:
    space = darts(relaxation=Sigmoid(), discretization=TopEdges(threshold=0.85))
    start = space.initial_alphas(torch.Generator())
    derived = model_of(space, [table_of(space)], [45]).derive(start)
    assert derived == space.derive(start)
    assert derived["normal"].edges == ()


@pytest.mark.slow
def test_no_neighbor_of_a_full_size_cell_is_better_with_three_budgets() -> None:
    """Four nodes and seven operations are too many to enumerate; no cell that differs in one edge may be better."""
    space: CellSpace = sgenas.spaces.darts(channels=4, operations="paper")
    alphas = alphas_of(space, 0)
    tables = [table_of(space, seed) for seed in range(3)]
    free = space.derive(alphas)
    model = model_of(space, tables, [0.75 * (table.of(free) or 0) for table in tables])
    found = model.derive(alphas)
    assert model.is_within(found)
    best = score_of(space, alphas, found)
    draw, tried = random.Random(0), 0
    cells = dict(found.cells)
    for _ in range(1500):
        kind = draw.choice(space.kinds)
        edges = list(cells[kind].edges)
        place = draw.randrange(len(edges))
        target = edges[place].target
        edges[place] = Edge(draw.randrange(target), target, draw.choice(space.operations))
        if len({(e.source, e.target) for e in edges}) < len(edges):
            continue
        changed = cells | {kind: Cell(tuple(edges), (2, 3, 4, 5))}
        near = Genotype("darts", tuple(changed.items()))
        if model.is_within(near):
            tried += 1
            assert score_of(space, alphas, near) <= best + 1e-9
    assert tried > 50


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_knapsack_equals_enumeration(budgets: int) -> None:
    draw = np.random.default_rng(budgets)
    solved = 0
    for _ in range(60):
        sizes = draw.integers(1, 6, size=4)
        costs = [draw.integers(0, 9, size=(n, budgets)).astype(float) for n in sizes]
        scores = [draw.normal(size=n) for n in sizes]
        groups = [
            joined([single(c, float(s), (("x", g, i),)) for i, (c, s) in enumerate(zip(cs, ss, strict=True))])
            for g, (cs, ss) in enumerate(zip(costs, scores, strict=True))
        ]
        limits = draw.integers(8, 28, size=budgets).astype(float)
        best = -np.inf
        for pick in product(*map(range, sizes)):
            if (sum(c[i] for c, i in zip(costs, pick, strict=True)) <= limits).all():
                best = max(best, sum(s[i] for s, i in zip(scores, pick, strict=True)))
        found = best_choice(groups, limits)
        if found is None:
            assert best == -np.inf
            continue
        solved += 1
        assert found[0] == pytest.approx(best)
        assert sum(scores[g][i] for _, g, i in found[1]) == pytest.approx(best)
        assert best_choice(groups, limits, floor=best + 1e-6) is None
        assert best_choice(groups, limits, floor=best - 1e-6) is not None
    assert solved > 20
