"""Derivation within a budget: against every cell there is, and against the rules without a budget."""

import random
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch

from sgenas.errors import InvalidValueError
from sgenas.spaces import space as make_space
from sgenas.spaces.budget import Budget, Limit
from sgenas.spaces.costs import CostTable
from sgenas.spaces.genotype import Cell, Edge, Genotype, existing_nodes
from sgenas.spaces.knapsack import best_choice, joined, single
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree

OPERATIONS = ("skip_connect", "sep_conv_3x3", "dil_conv_5x5")
HUGE = 1e15


def darts(name: str = "darts", nodes: int = 2, **settings: Any) -> SupernetSpace:
    found: SupernetSpace = make_space(
        name, channels=8, layers=3, nodes=nodes, operations=OPERATIONS, **settings
    )
    return found


def table_of(space: SupernetSpace, seed: int = 0, quantity: str = "params") -> CostTable:
    """Costs at random, most of them of few values so that many cells cost the same."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(space.edges), len(space.operations))
    values = {kind: torch.randint(0, 6, shape, generator=draw).double() * (seed + 1) for kind in space.kinds}
    hollow = space.rule.hollow
    counts = [(1,)] if hollow else list(product(range(1, space.nodes + 1), repeat=2))
    fixed = {joins: 10.0 * sum(joins) for joins in counts}
    return CostTable(quantity, space.edges, space.operations, values, fixed, not hollow)


def alphas_of(space: SupernetSpace, seed: int) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: 3 * torch.randn(table.shape, generator=draw)
        for name, table in space.initial_alphas(torch.Generator()).items()
    }


def every_cell(space: SupernetSpace) -> Iterator[Cell]:
    """All cells of a DARTS-like space: with all nodes, or with a threshold those with some."""
    rule, names = space.rule, [name for name in space.operations if name != "none"]
    per_node = []
    for target in range(2, 2 + space.nodes):
        on_edges: list[list[tuple[Edge, ...]]] = []
        for source in range(target):
            sets = [chosen for count in range(1, rule.each + 1) for chosen in combinations(names, count)]
            on_edges.append([(), *(tuple(Edge(source, target, name) for name in chosen) for chosen in sets)])
        choices = []
        for found in product(*on_edges):
            used = sum(bool(edges) for edges in found)
            if (used == 2) if rule.least is None else (rule.keep is None or used <= rule.keep):
                choices.append(tuple(edge for edges in found for edge in edges))
        per_node.append(choices)
    computed = tuple(range(2, 2 + space.nodes))
    for found in product(*per_node):
        cell = Cell(tuple(edge for edges in found for edge in edges), computed, space.nodes)
        there = {0, 1, *existing_nodes(cell)}
        if len(there) > 2 and all(edge.source in there for edge in cell.edges):
            yield cell


def score_of(space: SupernetSpace, alphas: Tree, genotype: Genotype) -> float:
    mixing, total = space.mixing(alphas), 0.0
    for kind, cell in genotype.cells:
        for edge in cell.edges:
            place = space.edges.index((edge.source, edge.target)), space.operations.index(edge.operation)
            total += mixing[kind].double()[place].item() - (space.rule.least or 0.0)
    return total


def brute_force(space: SupernetSpace, alphas: Tree, limits: list[Limit]) -> float:
    """The best score of all pairs of cells within the limits."""
    cells = list(every_cell(space))
    empty = Cell((), tuple(range(2, 2 + space.nodes)), space.nodes)
    rows: dict[str, list[Any]] = {}
    for kind in space.kinds:
        rows[kind] = []
        for cell in cells:
            alone = Genotype("darts", tuple((k, cell if k == kind else empty) for k in space.kinds))
            costs = []
            for limit in limits:
                values = limit.table.values[kind]
                place = [
                    (space.edges.index((e.source, e.target)), space.operations.index(e.operation))
                    for e in cell.edges
                ]
                costs.append(sum(values[p].item() for p in place))
            rows[kind].append((score_of(space, alphas, alone), len(existing_nodes(cell)), *costs))
    first, second = (np.array(rows[kind]) for kind in space.kinds)
    score = first[:, None, 0] + second[None, :, 0]
    good = np.ones(score.shape, dtype=bool)
    for index, limit in enumerate(limits):
        cost = first[:, None, 2 + index] + second[None, :, 2 + index]
        for joins, fixed in limit.table.fixed.items():
            here = (first[:, None, 1] == joins[0]) & (second[None, :, 1] == joins[1])
            cost = cost + here * fixed
        good &= cost <= limit.most
    return float(score[good].max())


RULES: list[Callable[[], SupernetSpace]] = [
    darts,
    lambda: darts("pc-darts"),
    lambda: darts("fair-darts", derivation="top2"),
    lambda: darts("fair-darts", derivation="threshold", threshold=0.6),
    lambda: darts("fair-darts", nodes=1, derivation="threshold-edges", threshold=0.6),
]


@pytest.mark.parametrize("make", RULES, ids=["darts", "pc-darts", "top2", "threshold", "threshold-edges"])
@pytest.mark.parametrize("budgets", [1, 2])
def test_the_best_of_all_cells_within_the_budget(make: Callable[[], SupernetSpace], budgets: int) -> None:
    space = make()
    changed = 0
    for seed in range(4):
        alphas = alphas_of(space, seed)
        tables = [table_of(space, seed + k, f"quantity {k}") for k in range(budgets)]
        free = space.derive(alphas)
        for share in (0.5, 0.65, 0.8, 0.9, 2.0):
            limits = []
            for table in tables:
                cost = table.of(free)
                assert cost is not None, "the seeds give no empty cell"
                limits.append(Limit("max", table, np.floor(share * cost)))
            try:
                budget = Budget(space, limits)
            except InvalidValueError:
                continue
            found = budget.derive(alphas)
            assert budget.met_by(found)
            if share == 2.0:
                assert found == free
                continue
            changed += found != free
            assert not budget.met_by(free) or found == free
            if found != free:
                assert score_of(space, alphas, found) == pytest.approx(
                    brute_force(space, alphas, limits), abs=1e-9
                )
    assert changed >= 3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["darts", "pc-darts", "fair-darts", "nasbench201", "fair-darts-nasbench201"])
def test_without_a_budget_it_is_the_rule_of_the_space(name: str, seed: int) -> None:
    space: SupernetSpace = make_space(name, channels=8)
    alphas = alphas_of(space, seed)
    budget = Budget(space, [Limit("max", table_of(space), HUGE), Limit("max", table_of(space, 1), HUGE)])
    free = space.derive(alphas)
    assert budget.derive(alphas) == free
    if name == "fair-darts":
        # the published rule lists edges that leave missing nodes; the network does not have them
        cells = []
        for kind, cell in free.cells:
            there = {0, 1, *existing_nodes(cell)}
            kept = tuple(e for e in cell.edges if e.source in there and e.target in there)
            cells.append((kind, Cell(kept, cell.concat, cell.nodes)))
        free = Genotype(free.space, tuple(cells))
    assert budget.best(alphas) == free


@pytest.mark.parametrize(
    "settings",
    [("nasbench201", {}), ("fair-darts-nasbench201", {"derivation": "threshold", "threshold": 0.5})],
)
def test_the_best_cell_of_the_benchmark(settings: tuple[str, dict[str, Any]]) -> None:
    name, options = settings
    space: SupernetSpace = make_space(name, channels=8, **options)
    table, alphas = table_of(space, 3), alphas_of(space, 0)
    costs, weights = table.values["cell"].numpy(), space.mixing(alphas)["cell"].double().numpy()
    if options:
        # a fifth column for nothing at all, which costs nothing and is worth the threshold
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
        budget = Budget(space, [Limit("max", table, limit)])
        found = budget.derive(alphas)
        cost = table.of(found)
        assert cost is not None
        assert cost <= limit
        kept = 0.0
        for row, place in enumerate(space.edges):
            names = [e.operation for e in found["cell"].edges if (e.source, e.target) == place]
            assert len(names) <= 1
            if options:
                kept += weights[row, 1 + space.operations.index(names[0])] if names else 0.5
            else:
                kept += weights[row, space.operations.index(names[0] if names else "none")]
        assert kept == pytest.approx(scores[sums + table.fixed[1,] <= limit].max(), abs=1e-9)


def test_a_budget_that_no_cell_can_meet_says_what_one_can() -> None:
    space = darts()
    table = table_of(space)
    cells = list(every_cell(space))
    least = min(
        cost
        for normal, reduce in product(cells[::7], cells[::7])
        if (cost := table.of(Genotype("darts", (("normal", normal), ("reduce", reduce))))) is not None
    )
    with pytest.raises(InvalidValueError, match=r"^--max-params must be >= (\d+), which .* got 3$") as caught:
        Budget(space, [Limit("--max-params", table, 3)])
    smallest = float(str(caught.value).split(">= ")[1].split(",")[0])
    assert smallest <= least
    budget = Budget(space, [Limit("--max-params", table, smallest)])
    assert table.of(budget.derive(alphas_of(space, 0))) == smallest
    with pytest.raises(InvalidValueError, match=f"must be >= {smallest:.0f}"):
        Budget(space, [Limit("--max-params", table, smallest - 1)])


def test_two_budgets_that_only_different_cells_meet() -> None:
    space = darts(nodes=1)
    rising = torch.tensor([[0.0, 5.0, 9.0]] * 2, dtype=torch.float64)
    fixed = {(1, 1): 0.0}
    one, other = (
        CostTable(name, space.edges, space.operations, dict.fromkeys(space.kinds, values), fixed, True)
        for name, values in (("params", rising), ("macs", rising.flip(1)))
    )
    with pytest.raises(InvalidValueError, match="^--a 10 and --b 10 must be met by one and the same cell"):
        Budget(space, [Limit("--a", one, 10), Limit("--b", other, 10)])
    assert Budget(space, [Limit("--a", one, 20), Limit("--b", other, 20)]).limits[0].most == 20


def test_an_empty_cell_of_fair_darts_is_given_as_it_is() -> None:
    space = darts("fair-darts", threshold=0.85)
    start = space.initial_alphas(torch.Generator())
    budget = Budget(space, [Limit("max", table_of(space), 45)])
    assert budget.derive(start) == space.derive(start)
    assert budget.derive(start)["normal"].edges == ()


def test_no_near_cell_of_full_size_is_better_with_three_budgets() -> None:
    """Four nodes and seven operations cannot be counted through; no cell one edge away may be better."""
    space: SupernetSpace = make_space("darts", channels=4, operations="paper")
    alphas = alphas_of(space, 0)
    tables = [table_of(space, seed, str(seed)) for seed in range(3)]
    free = space.derive(alphas)
    limits = [Limit("max", table, 0.75 * (table.of(free) or 0)) for table in tables]
    budget = Budget(space, limits)
    found = budget.derive(alphas)
    assert budget.met_by(found)
    best = score_of(space, alphas, found)
    draw, tried = random.Random(0), 0
    cells = dict(found.cells)
    for _ in range(3000):
        kind = draw.choice(space.kinds)
        edges = list(cells[kind].edges)
        place = draw.randrange(len(edges))
        target = edges[place].target
        edges[place] = Edge(draw.randrange(target), target, draw.choice(space.operations))
        if len({(e.source, e.target) for e in edges}) < len(edges):
            continue
        near = Genotype(
            "darts",
            tuple((k, Cell(tuple(edges), (2, 3, 4, 5)) if k == kind else c) for k, c in cells.items()),
        )
        if budget.met_by(near):
            tried += 1
            assert score_of(space, alphas, near) <= best + 1e-9
    assert tried > 100


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_the_knapsack_against_all_choices(budgets: int) -> None:
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
