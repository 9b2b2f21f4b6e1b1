"""Drawn cells: everything is there, and nothing lies on top of anything else."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sgenas.errors import InvalidValueError, RunFolderError
from sgenas.report import draw_cell, draw_genotype
from sgenas.report.cell_layout import Layout, Slot, lay_out
from sgenas.report.cell_plot import genotype_figure
from sgenas.spaces.genotype import OPERATIONS, Cell, Edge, Genotype


def random_cell(seed: int) -> Cell:
    """1 to 7 nodes, 0 to 3 edges into each, now and then two operations between the same nodes."""
    rng = np.random.default_rng(seed)
    nodes = 1 + seed % 7
    edges = set()
    for target in range(2, 2 + nodes):
        for _ in range(rng.integers(0, 4)):
            edges.add(Edge(int(rng.integers(0, target)), target, OPERATIONS[rng.integers(len(OPERATIONS))]))
    return Cell(
        tuple(sorted(edges, key=lambda edge: (edge.target, edge.source))), tuple(range(2, 2 + nodes)), nodes
    )


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def text_boxes(figure: Figure) -> list[tuple[str, tuple[float, float, float, float]]]:
    """The text and the borders, in pixels, of every text of the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return [(text.get_text(), text.get_window_extent(renderer).extents) for text in figure.axes[0].texts]


def overlapping(boxes: list[tuple[str, tuple[float, float, float, float]]]) -> list[tuple[str, str]]:
    return [
        (one, two)
        for (one, (left, low, right, high)), (two, (l2, b2, r2, t2)) in itertools.combinations(boxes, 2)
        if left < r2 and l2 < right and low < t2 and b2 < high
    ]


def crossing(wire_slots: list[Slot], slots: list[Slot]) -> bool:
    """Whether a wire runs through another slot: it is level between the borders of each column it passes."""
    return any(
        slot.column == here.column and abs(slot.y - here.y) < slot.height / 2
        for here in wire_slots[1:-1]
        for slot in slots
        if slot is not here and slot.kind != "pass"
    )


def test_overlap_check_can_fail() -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.text(0.5, 0.5, "one")
    axes.text(0.5, 0.51, "two")
    axes.text(0.5, 0.9, "three")
    assert overlapping(text_boxes(figure)) == [("one", "two")]


def test_no_two_texts_overlap(genotype: Genotype) -> None:
    figure = genotype_figure(genotype)
    boxes = text_boxes(figure)
    labels = [text for text, _ in boxes if text in OPERATIONS]
    assert sorted(labels) == sorted(edge.operation for _, cell in genotype.cells for edge in cell.edges)
    assert overlapping(boxes) == []
    width, height = figure.get_size_inches() * figure.dpi
    assert all(x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height for _, (x0, y0, x1, y1) in boxes)


@pytest.mark.parametrize("seed", range(21))
def test_layout_keeps_everything_apart(seed: int) -> None:
    cell = random_cell(seed)
    layout: Layout = lay_out(cell, lambda text: (0.1 * len(text), 0.2))
    assert sum(slot.kind == "label" for slot in layout.slots) == len(cell.edges)
    for one, two in itertools.combinations(layout.slots, 2):
        if one.column == two.column:
            assert abs(one.y - two.y) >= (one.height + two.height) / 2
        else:
            first, second = sorted((one, two), key=lambda slot: slot.column)
            assert first.right < second.left
    for slot in layout.slots:
        assert slot.left <= slot.x - slot.width / 2 + 1e-9
        assert slot.x + slot.width / 2 <= slot.right + 1e-9
    for wire in layout.wires:
        slots = [layout.slots[i] for i in wire.slots]
        assert [slot.column for slot in slots] == list(range(slots[0].column, slots[-1].column + 1))
        assert not crossing(slots, layout.slots)
        for slot, end in zip((slots[0], slots[-1]), wire.ends, strict=True):
            assert abs(end - slot.y) < slot.height / 2


@pytest.mark.parametrize("seed", range(7))
def test_random_cells_draw_without_overlap(seed: int) -> None:
    assert overlapping(text_boxes(draw_cell(random_cell(seed), "a cell"))) == []


def test_two_operations_between_the_same_nodes() -> None:
    cell = Cell((Edge(0, 2, "sep_conv_3x3"), Edge(0, 2, "skip_connect")), (2,), nodes=1)
    figure = draw_cell(cell, "double")
    assert {"sep_conv_3x3", "skip_connect"} < set(texts(figure))
    assert overlapping(text_boxes(figure)) == []


def test_nodes_that_nothing_enters() -> None:
    edges = (Edge(0, 2, "skip_connect"), Edge(4, 5, "sep_conv_5x5"))
    found = texts(draw_cell(Cell(edges, (2, 3, 4, 5)), "holes"))
    assert "3" not in found
    assert {"2", "4", "5"} < set(found)
    assert "nothing enters nodes 3, 4" in found


def test_empty_cell() -> None:
    assert texts(draw_cell(Cell((), (2, 3, 4, 5)), "nothing")) == ["nothing", "empty cell"]


def test_one_input() -> None:
    found = texts(draw_cell(Cell((Edge(0, 1, "skip_connect"),), (1,), nodes=1, inputs=1), "one"))
    assert "0: $c_{k-1}$" in found


def test_saves_svg_with_names_as_text(tmp_path: Path, genotype: Genotype) -> None:
    first = draw_genotype(genotype, tmp_path / "cell.svg")
    text = first.read_text(encoding="utf-8")
    for operation in ("sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "skip_connect"):
        count = sum(edge.operation == operation for _, cell in genotype.cells for edge in cell.edges)
        assert text.count(f">{operation}</text>") == count
    assert "normal cell" in text
    second = draw_genotype(genotype, tmp_path / "again.svg")
    assert second.read_bytes() == first.read_bytes()


def test_saves_png(tmp_path: Path, genotype: Genotype) -> None:
    path = draw_genotype(genotype, tmp_path / "cell.PNG")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
    assert [file.name for file in tmp_path.iterdir()] == ["cell.PNG"]


@pytest.mark.parametrize("name", ["cell.pdf", "cell"])
def test_other_suffixes_are_refused(tmp_path: Path, genotype: Genotype, name: str) -> None:
    with pytest.raises(InvalidValueError, match=r"must end in one of \.png, \.svg, got .*cell"):
        draw_genotype(genotype, tmp_path / name)


def test_missing_folder_is_one_line(tmp_path: Path, genotype: Genotype) -> None:
    with pytest.raises(RunFolderError, match=r"cannot be written"):
        draw_genotype(genotype, tmp_path / "nowhere" / "cell.png")


def test_names_are_not_read_as_mathematics(tmp_path: Path) -> None:
    cell = Cell((Edge(0, 2, "skip_connect"),), (2,), nodes=1)
    path = draw_genotype(Genotype("darts", (("$\\frac$ <b>", cell),)), tmp_path / "cell.svg")
    assert "$\\frac$ &lt;b&gt; cell" in path.read_text(encoding="utf-8")


def test_nodes_are_ordered_to_avoid_crossings() -> None:
    cell = Cell((Edge(1, 2, "skip_connect"), Edge(0, 3, "skip_connect")), (2, 3), nodes=2)
    layout = lay_out(cell, lambda text: (0.8, 0.2))
    heights = {slot.text: slot.y for slot in layout.slots if slot.kind in ("input", "node")}
    assert heights["0"] < heights["1"]
    assert heights["3"] < heights["2"]
