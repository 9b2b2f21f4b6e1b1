"""Random cells of about the size of a given one, which a search must beat."""

import torch

from sgenas.spaces import SPACES, CellSpace, DartsSettings
from sgenas.spaces.cell_costs import NetworkSpec, cost_table
from sgenas.spaces.darts_space.network import GENOTYPE_SPACES
from sgenas.spaces.genotype import Genotype

CANDIDATES = 1000
"""Random cells among which the nearest in size are chosen."""


def random_cells(
    cell: Genotype, count: int, generator: torch.Generator, *, channels: int | None = None, layers: int | None = None
) -> list[Genotype]:
    """Of `CANDIDATES` random cells, the ``count`` whose networks have most nearly the parameters of that of ``cell``.

    A random cell is of the space of ``cell``, with as many nodes, and derived from alphas ~ N(0, 1): a node of the
    DARTS space gets two random edges with random operations.

    Args:
        cell: The cell to compare with; it is not among the result.
        count: Number of cells; at most as many as differ from each other and from ``cell``.
        generator: Draws the alphas, on the CPU.
        channels: Channels of the networks; None for their default.
        layers: Layers of the networks; None for their default.

    Returns:
        The cells, the nearest first.
    """
    space = _space_of(cell)
    spec = NetworkSpec.of(space.name, channels, layers, space.nodes)
    size = cost_table("params", spec, space.edges, space.operations, narrow=cell.space == "fair-darts").of
    drawn = []
    for _ in range(CANDIDATES):
        alphas = {name: torch.randn(shape, generator=generator) for name, shape in space.shapes.items()}
        drawn.append(space.derive(alphas))
    # an empty cell has no network, and counts as 0
    target = size(cell) or 0.0
    # many cells of NAS-Bench-201 are equal in size: of these the first that were drawn, as sorted() is stable
    different = [each for each in dict.fromkeys(drawn) if each != cell]
    return sorted(different, key=lambda each: abs((size(each) or 0.0) - target))[:count]


def _space_of(cell: Genotype) -> CellSpace:
    if cell.space in GENOTYPE_SPACES:
        return DartsSettings(nodes=cell.cells[0][1].nodes).build()
    space: CellSpace = SPACES.get(cell.space)().build()
    return space
