"""From mixing weights to a discrete cell: which operations stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from torch import Tensor

from sgenas.errors import require
from sgenas.registry import Registry
from sgenas.spaces.genotype import Edge

if TYPE_CHECKING:
    from sgenas.spaces.base import SearchSpace

THRESHOLD = 0.85
"""Of the Fair DARTS code (arXiv:1911.12126)."""


def edges_of(nodes: int, inputs: int = 2) -> tuple[tuple[int, int], ...]:
    """All edges (source, target) of a fully connected cell, ordered by target, then source.

    This is the row order of every alpha table: 4 nodes and 2 inputs give 14 rows, in groups of 2, 3, 4, 5.
    """
    return tuple((source, target) for target in range(inputs, inputs + nodes) for source in range(target))


@dataclass(frozen=True)
class Rule:
    """A discretization as an optimization problem: keep the operations with the largest sum of scores.

    Budgets need this form: they maximize the same sum subject to limits.

    Args:
        edges_per_node: Number of a node's incoming edges that keep operations; None for all.
        operations_per_edge: Largest number of operations on one edge.
        threshold: Least mixing weight of an operation that is kept. Then fewer edges will do, and the score
            of an operation is its weight minus the threshold. None: the numbers are exact, and the score is
            the weight itself.
        keeps_none: Whether ``none`` is chosen like other operations, and a node may be without operations
            and still count (NAS-Bench-201).
    """

    edges_per_node: int | None = None
    operations_per_edge: int = 1
    threshold: float | None = None
    keeps_none: bool = False


@dataclass(frozen=True)
class Discretization:
    """Base of the discretizations: `__call__` follows ``rule``.

    A subclass of your own that has no ``rule`` overrides `__call__`, and cannot be used with a hard budget.

    Attributes:
        joins_nodes: Whether it is for cells whose output joins their nodes (DARTS), or whose output is the
            last node (NAS-Bench-201).
    """

    joins_nodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            field = f"{type(self).__name__}.{name}"
            if name == "threshold":
                require(value is None or 0 < value < 1, field, "in (0, 1)", value)
            elif name in ("edges_per_node", "operations_per_edge"):
                require(value >= 1, field, ">= 1", value)

    @property
    def rule(self) -> Rule:
        """What is maximized."""
        raise NotImplementedError

    def for_space(self, space: "SearchSpace") -> Self:
        """The discretization as it is in ``space``; InvalidValueError if it makes no sense there."""
        joins = getattr(space, "joins_nodes", False)
        wanted = "TopEdges or ThresholdEdges" if joins else "Argmax"
        require(joins == self.joins_nodes, "discretization", f"{wanted} in the space {space.name}", self)
        return self

    def __call__(self, mixing: Tensor, edges: Sequence[tuple[int, int]], operations: Sequence[str]) -> tuple[Edge, ...]:
        """The edges of a cell.

        An edge scores with its largest weight. Of equal ones the lower index wins. The edges are ordered by
        target, then source, and on one edge by weight, the largest first.

        Args:
            mixing: Mixing weights (E, O).
            edges: (source, target) of each row.
            operations: Name of each column.
        """
        rule, weights = self.rule, mixing.detach().tolist()
        columns = [column for column, name in enumerate(operations) if rule.keeps_none or name != "none"]
        # sorted() is stable, which is what breaks ties
        ranked = [
            sorted(columns, key=lambda column, row=row: -row[column])[: rule.operations_per_edge]  # type: ignore[misc]
            for row in weights
        ]
        least = float("-inf") if rule.threshold is None else rule.threshold
        kept = []
        for target in dict.fromkeys(target for _, target in edges):
            rows = [row for row, (_, end) in enumerate(edges) if end == target]
            rows = sorted(rows, key=lambda row: -weights[row][ranked[row][0]])[: rule.edges_per_node]
            kept += [
                Edge(*edges[row], operations[column])
                for row in sorted(rows)
                for column in ranked[row]
                if weights[row][column] >= least and operations[column] != "none"
            ]
        return tuple(kept)


@dataclass(frozen=True)
class TopEdges(Discretization):
    """The DARTS rule (arXiv:1806.09055, section 2.4): the best operation on each node's best edges.

    ``none`` counts in the softmax and is never chosen. With a threshold it is the default rule of Fair DARTS
    (arXiv:1911.12126), by which a node may lose all its edges.

    Args:
        edges_per_node: Number of incoming edges that a node keeps.
        threshold: Least mixing weight of an edge that is kept, in (0, 1); None keeps all of them.
    """

    edges_per_node: int = 2
    threshold: float | None = None

    @property
    def rule(self) -> Rule:
        return Rule(edges_per_node=self.edges_per_node, threshold=self.threshold)


@dataclass(frozen=True)
class ThresholdEdges(Discretization):
    """On every edge the best operations with at least the weight ``threshold`` (Fair DARTS, threshold_edge).

    Args:
        operations_per_edge: Largest number of operations on one edge.
        threshold: Least mixing weight of an operation that is kept, in (0, 1).
    """

    operations_per_edge: int = 2
    threshold: float = THRESHOLD

    @property
    def rule(self) -> Rule:
        return Rule(operations_per_edge=self.operations_per_edge, threshold=self.threshold)


@dataclass(frozen=True)
class Argmax(Discretization):
    """The operation with the largest weight on every edge, or the option with the largest of every choice.

    In NAS-Bench-201 ``none`` is an operation like the others.
    """

    joins_nodes: ClassVar[bool] = False

    @property
    def rule(self) -> Rule:
        return Rule(keeps_none=True)


DISCRETIZATIONS: Registry[type[Discretization]] = Registry("discretization", "sgenas.discretizations")
DISCRETIZATIONS.register("top-edges", TopEdges)
DISCRETIZATIONS.register("threshold-edges", ThresholdEdges)
DISCRETIZATIONS.register("argmax", Argmax)
