"""The strings by which NAS-Bench-201 (arXiv:2001.00326) names its cells, both ways.

A cell has one input, node 0, and three computed nodes, connected by all 6 edges from an earlier to a later node, each
with one of 5 operations. The string lists the computed nodes, joined by +, and for each its incoming edges as
``operation~source`` in the order of the sources, with | around and between them:

    |nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|

A `Genotype` has no edge where the string has `none`.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import product

from sgenas.errors import GenotypeError
from sgenas.spaces.discretization import edges_of
from sgenas.spaces.genotype import Cell, Edge, Genotype, only_cell

SPACE, KIND = "nasbench201", "cell"
INPUTS, NODES = 1, 3
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""In the benchmark's order, which is that of the columns of the alphas."""
EDGES = edges_of(NODES, INPUTS)


def genotype_of(operations: Sequence[str]) -> Genotype:
    """The genotype with ``operations[e]`` on edge ``EDGES[e]``; GenotypeError for a wrong number or name."""
    if len(operations) != len(EDGES):
        raise GenotypeError(f"cell must have {len(EDGES)} operations, got {len(operations)}")
    named = [Edge(*ends, operation) for ends, operation in zip(EDGES, operations, strict=True)]
    _check_operations(named)
    edges = tuple(edge for edge in named if edge.operation != "none")
    return Genotype(SPACE, ((KIND, Cell(edges, concat=(NODES,), nodes=NODES, inputs=INPUTS)),))


def from_string(text: str) -> Genotype:
    """The genotype of a string, inverse of `to_string`; GenotypeError, which names the node, if it is malformed."""
    parts = text.split("+")
    if len(parts) != NODES:
        raise GenotypeError(f"cell string must have {NODES} nodes, joined by +, got {len(parts)} in {text!r}")
    operations: list[str] = []
    for target, part in enumerate(parts, start=INPUTS):
        form = "".join(rf"\|([^|~]+)~{source}" for source in range(target)) + r"\|"
        found = re.fullmatch(form, part)
        if found is None:
            wanted = "".join(f"|operation~{source}" for source in range(target)) + "|"
            raise GenotypeError(f"cell string, node {target}: must have the form {wanted}, got {part!r}")
        operations += found.groups()
    return genotype_of(operations)


def to_string(genotype: Genotype) -> str:
    """The string of a genotype of this space, with `none` where it has no edge.

    Raises:
        GenotypeError: If it is not a cell of the benchmark: another space, other kinds or numbers of nodes, an output
            other than the last node, an unknown operation, or two operations on one edge.
    """
    cell = only_cell(genotype, SPACE, KIND, inputs=INPUTS, nodes=NODES, concat=(NODES,))
    _check_operations(cell.edges)
    chosen = {(edge.source, edge.target): edge.operation for edge in cell.edges}
    if len(chosen) < len(cell.edges):
        raise GenotypeError(f"cell must have one operation on an edge, got {cell}")
    return _joined([chosen.get(ends, "none") for ends in EDGES])


def all_strings() -> Iterator[str]:
    """The strings of all 5^6 = 15,625 cells; the last edge changes fastest."""
    return (_joined(operations) for operations in product(OPERATIONS, repeat=len(EDGES)))


def _joined(operations: Sequence[str]) -> str:
    nodes = [""] * NODES
    for (source, target), operation in zip(EDGES, operations, strict=True):
        nodes[target - INPUTS] += f"|{operation}~{source}"
    return "+".join(f"{node}|" for node in nodes)


def _check_operations(edges: Sequence[Edge]) -> None:
    for edge in edges:
        if edge.operation not in OPERATIONS:
            raise GenotypeError(
                f"cell, node {edge.target}, edge {edge.source}: operation must be one of {', '.join(OPERATIONS)},"
                f" got {edge.operation!r}"
            )
