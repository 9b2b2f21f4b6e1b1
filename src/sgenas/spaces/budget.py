"""Cost models of cell spaces: the best cell whose network stays within a budget, exactly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations, product
from typing import Any

import numpy as np
from torch import Tensor

from sgenas.errors import InvalidValueError, require
from sgenas.spaces.cell_costs import CostTable, NetworkSpec, cost_table
from sgenas.spaces.cell_space import CellSpace
from sgenas.spaces.costs import Budget, CostModel
from sgenas.spaces.discretization import Rule
from sgenas.spaces.genotype import Edge, Genotype
from sgenas.spaces.knapsack import Floats, Options, Pick, best_choice, cheapest, joined, merged, single
from sgenas.spaces.latency import LatencyTable
from sgenas.tree import TensorDict


def cell_cost_model(space: CellSpace, budget: Budget, example: Any) -> "CellCostModel":
    """``CellSpace.cost_model`` for cells that stack as those of DARTS or NAS-Bench-201.

    ``example`` is a batch of images, one image (C, H, W), or the shape of one.

    Raises:
        InvalidValueError: If no cell meets the limits, or the latency table is of another network.
        DataError: If the latency table cannot be read.
    """
    shape = tuple(example.shape if isinstance(example, Tensor) else example)[-3:]
    require(len(shape) == 3, "example", "images (B, C, H, W) or the shape of one", shape)
    sizes = dict(zip(("input_channels", "height", "width"), shape, strict=True))
    spec = NetworkSpec.of(
        space.name, budget.channels, budget.layers, space.nodes, num_classes=space.num_classes, **sizes
    )
    if spec.space == "darts":
        require(spec.layers >= 3, "Budget.layers", ">= 3", spec.layers)
    return CellCostModel(space, budget, spec, {name: _table(space, budget, spec, name) for name in budget.quantities})


def _table(space: CellSpace, budget: Budget, spec: NetworkSpec, quantity: str) -> CostTable:
    rule = _rule(space)
    narrow = rule is None or rule.threshold is not None
    measured: dict[str, Any] = {}
    if quantity == "latency":
        assert budget.latency_table is not None, "checked by the budget"
        found = LatencyTable.load(budget.latency_table)
        for name, wanted in asdict(spec).items():
            got = getattr(found.network, name)
            require(got == wanted, "Budget.latency_table", f"of a network with {name} {wanted}", got)
        measured = {"milliseconds": found.milliseconds, "rest": found.rest}
    try:
        return cost_table(quantity, spec, space.edges, space.operations, narrow=narrow, **measured)
    except (RuntimeError, OverflowError):
        raise InvalidValueError(
            "Budget.channels and Budget.layers must give a network that can be counted, got"
            f" {spec.channels} and {spec.layers}",
            field="Budget.channels",
        ) from None


def _rule(space: CellSpace) -> Rule | None:
    """What the discretization maximizes; None for a custom one that does not say."""
    try:
        return space.discretization.rule
    except NotImplementedError:
        return None


class CellCostModel(CostModel):
    """Costs of cells, and the exact derivation within limits; see `cell_cost_model` for its arguments.

    Of all cells that the discretization can derive (its ``rule``) and whose network meets all limits,
    ``derive`` returns one with the largest sum of scores over all kinds together. If the unconstrained cell
    meets the limits, it is that one; also if one of its cells is empty (Fair DARTS: no operation reaches the
    threshold yet), since then there is no network to measure. With a threshold, an operation below it has
    a negative score: it is taken only where others need it, as the node that they leave or to have a network at
    all. An edge that leaves a missing node never is.
    """

    space: CellSpace

    def __init__(
        self, space: CellSpace, budget: Budget, spec: NetworkSpec | None, tables: Mapping[str, CostTable]
    ) -> None:
        super().__init__(space, budget)
        self.spec, self.tables = spec, dict(tables)
        limited = [self.tables[name] for name in budget.limits]
        if budget.penalty is not None:
            self._penalize({(kind,): table for kind, table in self.tables[budget.penalty].values.items()})
        if limited:
            rule = _rule(space)
            if rule is None:
                kind = type(space.discretization).__name__
                raise InvalidValueError(
                    f"discretization must have a rule if there are limits, got {kind}; use a penalty",
                    field="discretization",
                )
            self._rule = rule
            self._costs = {
                kind: np.stack([table.values[kind].numpy() for table in limited], axis=-1) for kind in self.space.kinds
            }
            self._fixed = {joins: np.array([table.fixed[joins] for table in limited]) for joins in limited[0].fixed}
            self._check()

    def of(self, architecture: Genotype) -> dict[str, float]:
        found = {name: table.of(architecture) for name, table in self.tables.items()}
        return {name: cost for name, cost in found.items() if cost is not None}

    def describe(self) -> dict[str, Any]:
        return {} if self.spec is None else {"budget_network": asdict(self.spec)}

    def best(self, alphas: TensorDict) -> Genotype:
        """The best cells within the limits; every kind of cell has a node."""
        mixing = self.space.mixing_to_derive(alphas)
        weights = {kind: mixing[kind].numpy() for kind in self.space.kinds}
        least = self._rule.threshold or 0.0
        pick = self._best({kind: table - least for kind, table in weights.items()})
        assert pick is not None, "checked at the start: some cell meets the limits, for any alphas"
        free = self.space.derive(alphas)
        cells = []
        for kind, cell in free.cells:
            kept = [(row, -weights[kind][row, column], column) for name, row, column in pick if name == kind]
            edges = [
                Edge(*self.space.edges[row], self.space.operations[column])
                for row, _, column in sorted(kept)
                if self.space.operations[column] != "none"
            ]
            cells.append((kind, replace(cell, edges=tuple(edges))))
        return Genotype(free.space, tuple(cells))

    def _check(self) -> None:
        alike = {kind: np.zeros(costs.shape[:2]) for kind, costs in self._costs.items()}
        totals = [self._fixed[joins] + cheapest(groups) for joins, groups in self._networks(alike)]
        self._refuse_limits(np.min(totals, axis=0).tolist(), self._best(alike) is not None)

    def _best(self, scores: Mapping[str, Floats]) -> Pick | None:
        """The operations of the best cells; None if no cells meet the limits."""
        best, floor = None, -np.inf
        # the most promising sets of nodes first, since a high floor ends the others early
        for joins, groups in sorted(self._networks(scores), key=lambda found: -sum(g.scores.max() for g in found[1])):
            found = best_choice(groups, self._allowed - self._fixed[joins], floor)
            if found is not None:
                floor, best = found
        return best

    def _networks(self, scores: Mapping[str, Floats]) -> Iterator[tuple[tuple[int, ...], list[Options]]]:
        """Every set of nodes that the cells may have: how many the outputs join, and a group for each node."""
        for cells in product(*(self._cells(kind, scores[kind]) for kind in self.space.kinds)):
            yield tuple(count for count, _ in cells), [group for _, groups in cells for group in groups]

    def _cells(self, kind: str, scores: Floats) -> list[tuple[int, list[Options]]]:
        """``_networks`` for one kind of cell."""
        computed = range(self.space.inputs, self.space.inputs + self.space.nodes)
        known: dict[tuple[int, ...], Options] = {}

        def group(target: int, existing: tuple[int, ...]) -> Options:
            sources = (*range(self.space.inputs), *(node for node in existing if node < target))
            if (target, *sources) not in known:
                known[target, *sources] = self._node(kind, scores, target, sources)
            return known[target, *sources]

        if self._rule.keeps_none:
            # all nodes exist, and the output is the last one alone
            return [(1, [group(target, tuple(computed)) for target in computed])]
        fewest = 1 if self._rule.threshold is not None else self.space.nodes
        return [
            (count, [group(target, existing) for target in existing])
            for count in range(fewest, self.space.nodes + 1)
            for existing in combinations(computed, count)
        ]

    def _node(self, kind: str, scores: Floats, target: int, sources: Sequence[int]) -> Options:
        """All undominated sets of operations that may enter a node."""
        rule = self._rule
        rows = [row for row, (source, end) in enumerate(self.space.edges) if end == target and source in sources]
        most = len(rows) if rule.edges_per_node is None else min(rule.edges_per_node, len(rows))
        # by the number of edges used
        partial = {0: single(np.zeros(len(self._allowed)))}
        for row in rows:
            edge = self._edge(kind, scores, row)
            parts: dict[int, list[Options]] = {}
            for used, options in partial.items():
                parts.setdefault(used, []).append(options)
                if used < most:
                    parts.setdefault(used + 1, []).append(merged(options, edge))
            partial = {used: joined(found) for used, found in parts.items()}
        if rule.threshold is None:
            return partial[most]
        return joined([options for used, options in partial.items() if used or rule.keeps_none])

    def _edge(self, kind: str, scores: Floats, row: int) -> Options:
        """All sets of operations that an edge may have, except none at all."""
        names = self.space.operations
        columns = [column for column, name in enumerate(names) if name != "none" or self._rule.keeps_none]
        found = []
        for count in range(1, self._rule.operations_per_edge + 1):
            for chosen in combinations(columns, count):
                picked = list(chosen)
                cost, score = self._costs[kind][row, picked].sum(axis=0), scores[row, picked].sum()
                found.append(single(cost, float(score), tuple((kind, row, column) for column in chosen)))
        return joined(found)
