"""Cells that a search may end with and that no textbook shows: they are drawn all the same."""

import random
from pathlib import Path

import pytest

from sgenas.report import draw_genotype
from sgenas.report.cell_layout import lay_out
from sgenas.spaces import Cell, Edge, Genotype
from sgenas.spaces.genotype import DARTS_OPERATIONS
from sgenas.spaces.nasbench201_strings import all_strings, from_string


def size_of(label: str) -> tuple[float, float]:
    return (0.1 * len(label), 0.2)


def test_cells_of_nasbench201_can_be_laid_out() -> None:
    for text in random.Random(0).sample(list(all_strings()), 800):
        lay_out(from_string(text)["cell"], size_of)
    lay_out(from_string("|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|")["cell"], size_of)


def test_cells_with_missing_nodes_can_be_laid_out() -> None:
    draw = random.Random(0)
    for _ in range(300):
        edges = {
            Edge(source, target, draw.choice(DARTS_OPERATIONS[1:]))
            for target in range(2, 6)
            for source in range(target)
            if draw.random() < 0.2
        }
        lay_out(Cell(tuple(sorted(edges, key=lambda e: (e.target, e.source))), concat=(2, 3, 4, 5)), size_of)


@pytest.mark.parametrize("edges", [(), (Edge(4, 5, "sep_conv_5x5"),)])
def test_such_cells_are_drawn(edges: tuple[Edge, ...], tmp_path: Path) -> None:
    cell = Cell(edges, concat=(2, 3, 4, 5))
    path = draw_genotype(Genotype("fair-darts", (("normal", cell), ("reduce", cell))), tmp_path / "cell.png")
    assert path.stat().st_size > 1000
