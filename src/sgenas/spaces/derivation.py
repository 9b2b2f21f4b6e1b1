"""Reading a discrete cell out of mixing weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sgenas.errors import InvalidValueError
from sgenas.spaces.genotype import Cell, Edge


@dataclass(frozen=True)
class Rule:
    """A rule of derivation as what it maximises: the sum of the scores of the operations that are kept.

    keep: on how many of a node's incoming edges there are operations; None for all. each: how many may stand
    on one edge. least: None where the numbers are exact and the score of an operation is its mixing weight m;
    else the threshold t: fewer will do, and the score is m - t, so that what is weaker is not worth keeping.
    hollow: whether a node may be without operations and still count, and `none` is an operation like the
    others (NAS-Bench-201).
    """

    keep: int | None
    each: int = 1
    least: float | None = None
    hollow: bool = False


def edges_of(nodes: int, inputs: int = 2) -> tuple[tuple[int, int], ...]:
    """All edges (source, target) of a fully connected cell, ordered by target, then source.

    This is the row order of every alpha table: 4 nodes and 2 inputs give 14 rows, in groups of 2, 3, 4, 5.
    """
    return tuple((source, target) for target in range(inputs, inputs + nodes) for source in range(target))


def strongest_edges(
    mixing: Tensor,
    operations: Sequence[str],
    nodes: int,
    *,
    inputs: int = 2,
    keep: int = 2,
    least: float = 0.0,
) -> Cell:
    """The DARTS rule (arXiv:1806.09055, section 2.4; genotype() of its code).

    mixing: (E, O) mixing weights, rows as `edges_of`. Every edge scores with its largest weight among the
    operations that are not `none`; a node keeps its `keep` best edges, each with that best operation. `none`
    counts in the softmax but is never chosen. Between equals the lower index wins. Of the kept edges those
    below `least` are left out afterwards (Fair DARTS, arXiv:1911.12126). The cell's output joins all its
    nodes.
    """
    edges, rows, choosable = _checked(mixing, operations, nodes, inputs)
    kept = []
    for target in range(inputs, inputs + nodes):
        candidates = []
        for (source, end), row in zip(edges, rows, strict=True):
            if end == target:
                best = max(choosable, key=lambda index, row=row: row[index])  # type: ignore[misc]
                candidates.append((row[best], Edge(source, target, operations[best])))
        # sorted() is stable, so that of two equal edges the one from the earlier node is kept
        strongest = sorted(candidates, key=lambda candidate: -candidate[0])[:keep]
        kept += sorted((edge for score, edge in strongest if score >= least), key=lambda edge: edge.source)
    return Cell(tuple(kept), concat=tuple(range(inputs, inputs + nodes)), nodes=nodes, inputs=inputs)


def edges_above(
    mixing: Tensor,
    operations: Sequence[str],
    nodes: int,
    threshold: float,
    *,
    inputs: int = 2,
    most: int = 2,
) -> Cell:
    """On every edge the up to `most` best operations with at least the weight `threshold`, strongest first.

    The rule `threshold_edge` of the Fair DARTS code (arXiv:1911.12126); mixing as in `strongest_edges`.
    """
    edges, rows, choosable = _checked(mixing, operations, nodes, inputs)
    kept = []
    for (source, target), row in zip(edges, rows, strict=True):
        ranked = sorted(choosable, key=lambda index, row=row: -row[index])  # type: ignore[misc]
        strong = [index for index in ranked[:most] if row[index] >= threshold]
        kept += [Edge(source, target, operations[index]) for index in strong]
    return Cell(tuple(kept), concat=tuple(range(inputs, inputs + nodes)), nodes=nodes, inputs=inputs)


def _checked(
    mixing: Tensor, operations: Sequence[str], nodes: int, inputs: int
) -> tuple[tuple[tuple[int, int], ...], list[list[float]], list[int]]:
    """Edges, rows of weights, and the columns that may be chosen; raises InvalidValueError."""
    edges = edges_of(nodes, inputs)
    if mixing.shape != (len(edges), len(operations)):
        expected = (len(edges), len(operations))
        raise InvalidValueError(f"mixing must have shape {expected}, got {tuple(mixing.shape)}")
    choosable = [index for index, operation in enumerate(operations) if operation != "none"]
    return edges, mixing.detach().tolist(), choosable
