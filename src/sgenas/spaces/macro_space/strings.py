"""The digits by which NAS-Bench-Macro (arXiv:2103.11922) names its networks, both ways.

A network is a chain of 8 layers, each with one of 3 operations. Its name has a digit per layer, the index of the
operation in `OPERATIONS`: ``"22212220"``. As a `Genotype` it is one cell whose nodes 0 (the output of the stem) to 8
form a chain: layer i is the edge from node i to node i + 1.
"""

from collections.abc import Iterator
from itertools import product

from sgenas.errors import GenotypeError
from sgenas.spaces.genotype import Cell, Edge, Genotype, only_cell

SPACE, KIND = "nasbench-macro", "cell"
OPERATIONS = ("skip_connect", "mb3_k3", "mb6_k5")
"""In the order of the digits. mb<t>_k<k> is an inverted residual block with expansion t and a k x k convolution."""
STAGES = (2, 3, 3)
"""Layers per stage."""
LAYERS = sum(STAGES)
EDGES = tuple((layer, layer + 1) for layer in range(LAYERS))


def from_string(text: str) -> Genotype:
    """The genotype of a network's digits, inverse of `to_string`; GenotypeError for anything else."""
    digits = "".join(map(str, range(len(OPERATIONS))))
    if len(text) != LAYERS or not set(text) <= set(digits):
        raise GenotypeError(f"network must be {LAYERS} digits of {', '.join(digits)}, got {text[:40]!r}")
    edges = tuple(Edge(*ends, OPERATIONS[int(digit)]) for ends, digit in zip(EDGES, text, strict=True))
    return Genotype(SPACE, ((KIND, Cell(edges, concat=(LAYERS,), nodes=LAYERS, inputs=1)),))


def to_string(genotype: Genotype) -> str:
    """The digits of a genotype of this space; GenotypeError if it is not a network of the benchmark."""
    cell = only_cell(genotype, SPACE, KIND, inputs=1, nodes=LAYERS, concat=(LAYERS,))
    edges = sorted(cell.edges, key=lambda edge: edge.target)
    if tuple((edge.source, edge.target) for edge in edges) != EDGES:
        raise GenotypeError(f"cell must be a chain with one operation per layer, got {cell}")
    for edge in edges:
        if edge.operation not in OPERATIONS:
            raise GenotypeError(
                f"cell, layer {edge.source}: operation must be one of {', '.join(OPERATIONS)}, got {edge.operation!r}"
            )
    return "".join(str(OPERATIONS.index(edge.operation)) for edge in edges)


def all_strings() -> Iterator[str]:
    """The names of all 3^8 = 6,561 networks; the last layer changes fastest."""
    return map("".join, product("012", repeat=LAYERS))
