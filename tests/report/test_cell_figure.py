"""Drawn cells: complete, and nothing overlaps."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sgenas.errors import InvalidValueError, RunDirError
from sgenas.report import draw_genotype
from sgenas.report.cell_figure import genotype_figure
from sgenas.report.cell_layout import Slot, lay_out
from sgenas.spaces.genotype import OPERATIONS, Cell, Edge, Genotype

ROWS = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
Box = tuple[str, tuple[float, float, float, float]]


def one(cell: Cell, name: str = "cell", space: str = "darts") -> Figure:
    return genotype_figure(Genotype(space, ((name, cell),)))


def random_cell(seed: int) -> Cell:
    """1 to 7 nodes with 0 to 3 edges into each, sometimes two operations between the same nodes."""
    rng = np.random.default_rng(seed)
    nodes = 1 + seed % 7
    edges = set()
    for target in range(2, 2 + nodes):
        for _ in range(rng.integers(0, 4)):
            edges.add(Edge(int(rng.integers(0, target)), target, OPERATIONS[rng.integers(len(OPERATIONS))]))
    ordered = tuple(sorted(edges, key=lambda edge: (edge.target, edge.source)))
    return Cell(ordered, tuple(range(2, 2 + nodes)), nodes)


def random_benchmark_cell(seed: int) -> Cell:
    """A cell of NAS-Bench-201, often without some edges or nodes."""
    rng = np.random.default_rng(seed)
    chosen = [("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")[k] for k in rng.integers(0, 4, 6)]
    edges = [Edge(*row, operation) for row, operation in zip(ROWS, chosen, strict=True) if operation != "none"]
    return Cell(tuple(edges), (3,), nodes=3, inputs=1)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def boxes(figure: Figure) -> list[Box]:
    """Each text of the figure and its borders in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return [(text.get_text(), text.get_window_extent(renderer).extents) for text in figure.axes[0].texts]


def overlapping(found: list[Box]) -> list[tuple[str, str]]:
    return [
        (one, two)
        for (one, (left, low, right, high)), (two, (l2, b2, r2, t2)) in itertools.combinations(found, 2)
        if left < r2 and l2 < right and low < t2 and b2 < high
    ]


def crosses(wire: list[Slot], slots: list[Slot]) -> bool:
    """Whether a wire runs through another slot: it is level between the borders of each column it passes."""
    return any(
        slot.column == here.column and abs(slot.y - here.y) < slot.height / 2
        for here in wire[1:-1]
        for slot in slots
        if slot is not here and slot.kind != "pass"
    )


def test_overlap_check_can_fail() -> None:
    axes = Figure().add_subplot()
    for y, text in ((0.5, "one"), (0.51, "two"), (0.9, "three")):
        axes.text(0.5, y, text)
    assert overlapping(boxes(axes.figure)) == [("one", "two")]  # type: ignore[arg-type]


def test_no_two_texts_overlap_and_all_are_inside(genotype: Genotype) -> None:
    figure = genotype_figure(genotype)
    found = boxes(figure)
    labels = [text for text, _ in found if text in OPERATIONS]
    assert sorted(labels) == sorted(edge.operation for _, cell in genotype.cells for edge in cell.edges)
    assert overlapping(found) == []
    width, height = figure.get_size_inches() * figure.dpi
    assert all(x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height for _, (x0, y0, x1, y1) in found)


@pytest.mark.parametrize("make", [random_cell, random_benchmark_cell])
def test_layout_keeps_slots_and_wires_apart(make: Callable[[int], Cell]) -> None:
    for seed in range(60):
        cell = make(seed)
        layout = lay_out(cell, lambda text: (0.1 * len(text), 0.2))
        assert sum(slot.kind == "label" for slot in layout.slots) == len(cell.edges)
        for first, second in itertools.combinations(sorted(layout.slots, key=lambda slot: slot.column), 2):
            if first.column == second.column:
                assert abs(first.y - second.y) >= (first.height + second.height) / 2 - 1e-9
            else:
                assert first.right < second.left
        for slot in layout.slots:
            assert slot.left - 1e-9 <= slot.x - slot.width / 2 <= slot.x + slot.width / 2 <= slot.right + 1e-9
        for wire in layout.wires:
            slots = [layout.slots[i] for i in wire.slots]
            assert [slot.column for slot in slots] == list(range(slots[0].column, slots[-1].column + 1))
            assert not crosses(slots, layout.slots)
            for slot, end in zip((slots[0], slots[-1]), wire.ends, strict=True):
                assert abs(end - slot.y) < slot.height / 2


@pytest.mark.parametrize("seed", range(7))
def test_texts_of_random_cells_do_not_overlap(seed: int) -> None:
    assert overlapping(boxes(one(random_cell(seed), "random"))) == []


def test_nodes_are_ordered_to_avoid_crossings() -> None:
    cell = Cell((Edge(1, 2, "skip_connect"), Edge(0, 3, "skip_connect")), (2, 3), nodes=2)
    layout = lay_out(cell, lambda text: (0.8, 0.2))
    heights = {slot.text: slot.y for slot in layout.slots if slot.kind in ("input", "node")}
    assert heights["0"] < heights["1"]
    assert heights["3"] < heights["2"]


def test_two_operations_between_the_same_nodes_are_both_drawn() -> None:
    figure = one(Cell((Edge(0, 2, "sep_conv_3x3"), Edge(0, 2, "skip_connect")), (2,), nodes=1))
    assert {"sep_conv_3x3", "skip_connect"} < set(texts(figure))
    assert overlapping(boxes(figure)) == []


def test_nodes_without_edges_are_named() -> None:
    edges = (Edge(0, 2, "skip_connect"), Edge(4, 5, "sep_conv_5x5"))
    found = texts(one(Cell(edges, (2, 3, 4, 5))))
    assert "3" not in found
    assert {"2", "4", "5", "no edge enters nodes 3, 4"} < set(found)


def test_empty_cell_says_so() -> None:
    assert texts(one(Cell((), (2, 3, 4, 5)), "normal")) == ["normal cell", "empty cell"]


def test_inputs_are_numbered_from_the_previous_cell() -> None:
    assert "0: cₖ₋₁" in texts(one(Cell((Edge(0, 1, "skip_connect"),), (1,), nodes=1, inputs=1)))


def test_svg_has_names_as_text_and_is_reproducible(tmp_path: Path, genotype: Genotype) -> None:
    first = draw_genotype(genotype, tmp_path / "cell.svg")
    text = first.read_text(encoding="utf-8")
    for operation in ("sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "skip_connect"):
        count = sum(edge.operation == operation for _, cell in genotype.cells for edge in cell.edges)
        assert text.count(f">{operation}</text>") == count
    assert draw_genotype(genotype, tmp_path / "again.svg").read_bytes() == first.read_bytes()


def test_png_is_written_without_leftovers(tmp_path: Path, genotype: Genotype) -> None:
    path = draw_genotype(genotype, tmp_path / "cell.PNG")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["cell.PNG"]


def test_unwritable_paths_are_refused(tmp_path: Path, genotype: Genotype) -> None:
    for name in ("cell.pdf", "cell"):
        with pytest.raises(InvalidValueError) as caught:
            draw_genotype(genotype, tmp_path / name)
        assert caught.value.field == "path"
    with pytest.raises(RunDirError):
        draw_genotype(genotype, tmp_path / "nowhere" / "cell.png")


def test_names_are_not_read_as_mathematics(tmp_path: Path) -> None:
    cell = Cell((Edge(0, 2, "skip_connect"),), (2,), nodes=1)
    path = draw_genotype(Genotype("darts", (("$\\frac$ <b>", cell),)), tmp_path / "cell.svg")
    assert "$\\frac$ &lt;b&gt; cell" in path.read_text(encoding="utf-8")
