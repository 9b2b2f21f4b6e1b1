"""Draws cells as graphs: inputs on the left, computed nodes by depth, the output on the right."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sgenas.report.cell_layout import HEAD, Curve, Layout, Slot, curve, lay_out
from sgenas.report.figures import GREY, check_suffix, colour, dashes, house_style, plain, save_figure
from sgenas.spaces.genotype import Cell, Genotype

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = 8.0
MARGIN = 0.2
TITLE = 0.36
WIRE = "#BBBBBB"
FILLS = {"input": "#E8EEF4", "output": "#E8EEF4", "node": "#FFF3D6", "ghost": "#F2F2F2"}


def draw_cell(cell: Cell, title: str) -> "Figure":
    """A figure of one cell; its nodes carry the genotype's numbers, its edges the operations' names."""
    return _draw([(title, cell)])


def genotype_figure(genotype: Genotype) -> "Figure":
    """A figure of all cells of a genotype, one below the other."""
    return _draw([(f"{name} cell", cell) for name, cell in genotype.cells])


def draw_genotype(genotype: Genotype, path: str | Path) -> Path:
    """Saves `genotype_figure` as PNG or SVG by the suffix; InvalidValueError for any other suffix."""
    check_suffix(path)
    return save_figure(genotype_figure(genotype), path)


def _draw(cells: Sequence[tuple[str, Cell]]) -> "Figure":
    from matplotlib.figure import Figure

    with house_style():
        layouts = [lay_out(cell, label_size) if cell.edges else Layout(height=0.5) for _, cell in cells]
        heights = [TITLE + layout.height + (0.25 if layout.absent else 0) + MARGIN for layout in layouts]
        width = max(4.0, *(layout.width + 2 * MARGIN for layout in layouts))
        height = sum(heights) + MARGIN
        figure = Figure(figsize=(width, height))
        # one unit of the axes is one inch of the figure, so that the layout's sizes are those on paper
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        top = MARGIN
        for (title, _), layout, used in zip(cells, layouts, heights, strict=True):
            axes.text(MARGIN, top, plain(title), size=11, weight="bold", va="top")
            if layout.slots:
                _paint(axes, layout, (width - layout.width) / 2, top + TITLE)
            else:
                axes.text(
                    width / 2, top + TITLE + 0.2, "empty cell", size=FONT + 2, color="#666666", ha="center"
                )
            if layout.slots and layout.absent:
                nodes = ", ".join(map(str, layout.absent))
                note = f"nothing enters node{'s' if len(layout.absent) > 1 else ''} {nodes}"
                axes.text(MARGIN, top + used - MARGIN, note, size=FONT, color="#666666", va="bottom")
            top += used
    return figure


@cache
def label_size(text: str) -> tuple[float, float]:
    """Width and height of a label's box in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=FONT), ismath=False)
    return width / 72 + 0.16, 0.21


def _paint(axes: "Axes", layout: Layout, left: float, top: float) -> None:
    for slot in layout.slots:
        slot.x += left
        slot.left += left
        slot.right += left
        slot.y += top
    for wire in layout.wires:
        wire.ends = (wire.ends[0] + top, wire.ends[1] + top)
        _paint_wire(axes, curve(layout, wire), wire.operation)
    inputs = sum(slot.kind == "input" for slot in layout.slots)
    for slot in layout.slots:
        _paint_slot(axes, slot, inputs)


def _paint_wire(axes: "Axes", way: Curve, operation: str | None) -> None:
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path as PathOf

    points, codes = [way.start], [PathOf.MOVETO]
    for piece in way.pieces:
        points += piece
        codes += [PathOf.LINETO if len(piece) == 1 else PathOf.CURVE4] * len(piece)
    shade = WIRE if operation is None else colour(operation)
    line = PathPatch(
        PathOf(points, codes),
        fill=False,
        edgecolor=shade,
        linewidth=1.0 if operation is None else 1.5,
        linestyle="-" if operation is None else dashes(operation),
        capstyle="butt",
        zorder=1 if operation is None else 2,
    )
    # a head of its own: an arrow patch would dash the outline of its head too
    tip, y = way.tip
    head = Polygon(
        [(tip, y), (tip - HEAD, y - 0.4 * HEAD), (tip - HEAD, y + 0.4 * HEAD)],
        facecolor=shade,
        linewidth=0,
        zorder=line.zorder,
    )
    axes.add_patch(line)
    axes.add_patch(head)


def _paint_slot(axes: "Axes", slot: Slot, inputs: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    if slot.kind == "pass":
        return
    label = slot.kind == "label"
    edge = colour(slot.text) if label else GREY if slot.kind == "ghost" else "#444444"
    radius = min(0.06 if label else 0.1, slot.height / 2)
    axes.add_patch(
        FancyBboxPatch(
            (slot.x - slot.width / 2, slot.y - slot.height / 2),
            slot.width,
            slot.height,
            boxstyle=f"round,pad=0,rounding_size={radius}",
            facecolor="white" if label else FILLS[slot.kind],
            edgecolor=edge,
            linewidth=1.0,
            linestyle="--" if slot.kind == "ghost" else "-",
            zorder=3,
        )
    )
    text = plain(slot.text)
    if slot.kind == "input":
        text = f"{slot.text}: $c_{{k-{inputs - int(slot.text)}}}$"
    elif slot.kind == "output":
        text = "$c_k$"
    axes.text(
        slot.x,
        slot.y,
        text,
        size=FONT if label else FONT + 1,
        color=GREY if slot.kind == "ghost" else "#111111",
        ha="center",
        va="center_baseline",
        zorder=4,
    )
