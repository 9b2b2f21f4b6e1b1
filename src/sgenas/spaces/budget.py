"""Reading a cell out of alphas so that its network stays within a budget: the best cell that does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces.costs import CostTable
from sgenas.spaces.genotype import Edge, Genotype
from sgenas.spaces.knapsack import Floats, Options, Pick, best_choice, cheapest, joined, merged, single
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree

ROUNDING = 1e-12
"""Relative: sums of costs that are equal but for the order of their terms count as equal."""


@dataclass(frozen=True)
class Limit:
    """The cost of `table` must be at most `most`; name: what a message calls it."""

    name: str
    table: CostTable
    most: float


@dataclass(frozen=True)
class _Cell:
    """Choices of one kind of cell with a given set of nodes: how many its output joins, a group for each."""

    joins: int
    groups: tuple[Options, ...]

    @property
    def best(self) -> float:
        """The score of the best choice at any cost."""
        return float(sum(group.scores.max() for group in self.groups))


class Budget:
    """Derives the cells of a space within limits.

    Of all cells that the space's rule can read (`SupernetSpace.rule`) and whose network meets all limits,
    `derive` gives one with the largest sum of scores over all kinds together; it is exact. Where the cell
    that the rule reads without limits meets them, it is that one. So is it where one of its cells is empty
    (Fair DARTS: no operation reaches the threshold yet): there is no network to measure. With a threshold, an
    operation below it is taken only where no cell without it meets the limits, and an edge that leaves a
    missing node never.

    Raises InvalidValueError where no cell of the space meets the limits, with the least value that one can
    have.
    """

    def __init__(self, space: SupernetSpace, limits: Sequence[Limit]) -> None:
        self.space, self.limits = space, tuple(limits)
        self._rule = space.rule
        self._inputs = space.edges[0][1]
        tables = [limit.table for limit in self.limits]
        self._costs = {
            kind: np.stack([table.values[kind].numpy() for table in tables], axis=-1) for kind in space.kinds
        }
        self._fixed = {joins: np.array([table.fixed[joins] for table in tables]) for joins in tables[0].fixed}
        most = np.array([limit.most for limit in self.limits], dtype=np.float64)
        self._allowed = most * (1 + ROUNDING)
        self._check()

    def met_by(self, genotype: Genotype) -> bool:
        """Whether the network of the genotype is within all limits; True where an empty cell has none."""
        costs = [limit.table.of(genotype) for limit in self.limits]
        return all(
            cost is None or cost <= allowed for cost, allowed in zip(costs, self._allowed, strict=True)
        )

    def derive(self, alphas: Tree) -> Genotype:
        """The best cell of the moment within the limits."""
        free = self.space.derive(alphas)
        return free if self.met_by(free) else self.best(alphas)

    def best(self, alphas: Tree) -> Genotype:
        """The same, searched for even where the space's own rule would do; with a cell of every kind."""
        mixing = trees.detach(self.space.mixing(alphas))
        weights = {kind: table.double().cpu().numpy() for kind, table in mixing.items()}
        least = self._rule.least or 0.0
        pick = self._best({kind: table - least for kind, table in weights.items()})
        assert pick is not None, "checked when made: some cell meets the limits, whatever the alphas"
        cells = []
        for kind, cell in self.space.derive(alphas).cells:
            kept = [(row, -weights[kind][row, column], column) for name, row, column in pick if name == kind]
            edges = [
                Edge(*self.space.edges[row], self.space.operations[column])
                for row, _, column in sorted(kept)
                if self.space.operations[column] != "none"
            ]
            cells.append((kind, replace(cell, edges=tuple(edges))))
        return Genotype(self.space.derive(alphas).space, tuple(cells))

    def _check(self) -> None:
        alike = {kind: np.zeros(costs.shape[:2]) for kind, costs in self._costs.items()}
        smallest = np.min(
            [
                self._fixed[joins] + cheapest([group for cell in cells for group in cell.groups])
                for joins, cells in self._networks(alike)
            ],
            axis=0,
        )
        for limit, least, allowed in zip(self.limits, smallest.tolist(), self._allowed, strict=True):
            if least > allowed:
                raise InvalidValueError(
                    f"{limit.name} must be >= {least:.12g}, which the smallest cell of this space has,"
                    f" got {limit.most:.12g}"
                )
        if len(self.limits) > 1 and self._best(alike) is None:
            names = " and ".join(f"{limit.name} {limit.most:.12g}" for limit in self.limits)
            raise InvalidValueError(f"{names} must be met by one and the same cell, got none that meets all")

    def _best(self, scores: Mapping[str, Floats]) -> Pick | None:
        """The operations of the best cells; None where none meet the limits."""
        networks = sorted(self._networks(scores), key=lambda found: -sum(cell.best for cell in found[1]))
        best, floor = None, -np.inf
        for joins, cells in networks:
            groups = [group for cell in cells for group in cell.groups]
            found = best_choice(groups, self._allowed - self._fixed[joins], floor)
            if found is not None:
                floor, best = found
        return best

    def _networks(self, scores: Mapping[str, Floats]) -> Iterator[tuple[tuple[int, ...], tuple[_Cell, ...]]]:
        """Every set of nodes that the cells may have, with the choices that are left for each of them."""
        for cells in product(*(self._cells(kind, scores[kind]) for kind in self.space.kinds)):
            yield tuple(cell.joins for cell in cells), cells

    def _cells(self, kind: str, scores: Floats) -> list[_Cell]:
        computed = range(self._inputs, self._inputs + self.space.nodes)
        known: dict[tuple[int, ...], Options] = {}

        def group(target: int, there: tuple[int, ...]) -> Options:
            sources = (*range(self._inputs), *(node for node in there if node < target))
            if (target, *sources) not in known:
                known[target, *sources] = self._node(kind, scores, target, sources)
            return known[target, *sources]

        if self._rule.hollow:
            # all nodes are there, and the output is the last one alone
            return [_Cell(1, tuple(group(target, tuple(computed)) for target in computed))]
        fewest = 1 if self._rule.least is not None else self.space.nodes
        return [
            _Cell(count, tuple(group(target, there) for target in there))
            for count in range(fewest, self.space.nodes + 1)
            for there in combinations(computed, count)
        ]

    def _node(self, kind: str, scores: Floats, target: int, sources: Sequence[int]) -> Options:
        """All that may lead to a node, undominated."""
        rule = self._rule
        rows = [
            row for row, (source, end) in enumerate(self.space.edges) if end == target and source in sources
        ]
        most = len(rows) if rule.keep is None else min(rule.keep, len(rows))
        # by the number of edges that are used
        partial = {0: single(np.zeros(len(self.limits)))}
        for row in rows:
            edge = self._edge(kind, scores, row)
            parts: dict[int, list[Options]] = {}
            for used, options in partial.items():
                parts.setdefault(used, []).append(options)
                if used < most:
                    parts.setdefault(used + 1, []).append(merged(options, edge))
            partial = {used: joined(found) for used, found in parts.items()}
        if rule.least is None:
            return partial[most]
        return joined([options for used, options in partial.items() if used or rule.hollow])

    def _edge(self, kind: str, scores: Floats, row: int) -> Options:
        """All that may stand on an edge, but for nothing."""
        names = self.space.operations
        columns = [column for column, name in enumerate(names) if name != "none" or self._rule.hollow]
        found = []
        for count in range(1, self._rule.each + 1):
            for chosen in combinations(columns, count):
                picked = list(chosen)
                cost, score = self._costs[kind][row, picked].sum(axis=0), scores[row, picked].sum()
                found.append(single(cost, float(score), tuple((kind, row, column) for column in chosen)))
        return joined(found)
