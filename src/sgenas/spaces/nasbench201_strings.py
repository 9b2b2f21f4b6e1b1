"""The string form in which NAS-Bench-201 (arXiv:2001.00326) names its cells, both ways.

A cell has one input, node 0, and three computed nodes, joined in all 6 ways from an earlier to a later one,
each with one of 5 operations. The string lists the computed nodes, with + between them, and for each its
incoming edges as `operation~source`, sources in rising order, with | around and between them:

    |nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|

A genotype of ours says the same with no edge where the string says `none`.
"""

from collections.abc import Iterator, Sequence
from itertools import product

from sgenas.errors import GenotypeError
from sgenas.spaces.derivation import edges_of
from sgenas.spaces.genotype import Cell, Edge, Genotype

SPACE = "nasbench201"
KIND = "cell"
INPUTS = 1
NODES = 3
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""In the benchmark's order, which is that of the columns of the alphas."""
EDGES = edges_of(NODES, INPUTS)


def genotype_of(operations: Sequence[str]) -> Genotype:
    """The genotype with operations[e], of OPERATIONS, on edge EDGES[e]; the output is the last node.

    Raises GenotypeError for another number of operations and for an unknown one.
    """
    if len(operations) != len(EDGES):
        raise GenotypeError(f"cell must have {len(EDGES)} operations, got {len(operations)}")
    edges = []
    for (source, target), operation in zip(EDGES, operations, strict=True):
        _check_operation(operation, source, target)
        if operation != "none":
            edges.append(Edge(source, target, operation))
    return Genotype(SPACE, ((KIND, Cell(tuple(edges), concat=(NODES,), nodes=NODES, inputs=INPUTS)),))


def from_string(text: str) -> Genotype:
    """Reads the benchmark's form, inverse of `to_string`; raises GenotypeError with the place of a fault."""
    parts = text.split("+")
    if len(parts) != NODES:
        raise GenotypeError(f"cell string must have {NODES} nodes, joined by +, got {len(parts)} in {text!r}")
    operations = []
    for target, part in enumerate(parts, start=INPUTS):
        if len(part) < 2 or not part.startswith("|") or not part.endswith("|"):
            raise GenotypeError(f"cell string, node {target}: must stand between two |, got {part!r}")
        entries = part[1:-1].split("|")
        if len(entries) != target:
            raise GenotypeError(
                f"cell string, node {target}: must have {target} edges, got {len(entries)} in {part!r}"
            )
        for source, entry in enumerate(entries):
            operation, tilde, index = entry.partition("~")
            if not tilde:
                raise GenotypeError(
                    f"cell string, node {target}, edge {source}: must be operation~{source}, got {entry!r}"
                )
            if index != str(source):
                raise GenotypeError(
                    f"cell string, node {target}, edge {source}: predecessor must be {source}, got {index!r}"
                )
            operations.append(operation)
    return genotype_of(operations)


def to_string(genotype: Genotype) -> str:
    """The benchmark's form of a genotype of this space, with `none` where it has no edge.

    Raises GenotypeError for what is no cell of the benchmark: another space, other kinds or numbers of
    nodes, an output that is not the last node, an operation that it lacks, two operations on one edge.
    """
    if genotype.space != SPACE:
        raise GenotypeError(f"genotype.space must be {SPACE!r}, got {genotype.space!r}")
    names = [name for name, _ in genotype.cells]
    if names != [KIND]:
        raise GenotypeError(f"genotype.cells must be {[KIND]}, got {names}")
    cell = genotype[KIND]
    for field, expected in (("inputs", INPUTS), ("nodes", NODES), ("concat", (NODES,))):
        if getattr(cell, field) != expected:
            raise GenotypeError(f"cell.{field} must be {expected}, got {getattr(cell, field)}")
    chosen: dict[tuple[int, int], str] = {}
    for edge in cell.edges:
        place = (edge.source, edge.target)
        _check_operation(edge.operation, *place)
        if place in chosen:
            raise GenotypeError(
                f"cell, node {edge.target}, edge {edge.source}: must have one operation, got"
                f" {chosen[place]} and {edge.operation}"
            )
        chosen[place] = edge.operation
    return _joined([chosen.get(place, "none") for place in EDGES])


def all_strings() -> Iterator[str]:
    """The strings of all 5^6 = 15,625 cells, counted through with the last edge fastest."""
    return (_joined(operations) for operations in product(OPERATIONS, repeat=len(EDGES)))


def _joined(operations: Sequence[str]) -> str:
    nodes = [""] * NODES
    for (source, target), operation in zip(EDGES, operations, strict=True):
        nodes[target - INPUTS] += f"|{operation}~{source}"
    return "+".join(f"{node}|" for node in nodes)


def _check_operation(operation: str, source: int, target: int) -> None:
    if operation not in OPERATIONS:
        raise GenotypeError(
            f"cell, node {target}, edge {source}: operation must be one of {', '.join(OPERATIONS)},"
            f" got {operation!r}"
        )
