"""Draws cells as graphs: inputs on the left, computed nodes by depth, the output on the right."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sgenas.report.cell_layout import HEAD, CellLayout, Slot, Wire, curve, lay_out
from sgenas.report.style import GRAY, check_suffix, color, dashes, house_style, plain, save_figure
from sgenas.spaces.genotype import Genotype

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = 8.0
"""Points; lengths below are inches."""
MARGIN, TITLE, NOTE = 0.2, 0.36, 0.25
WIRE, SOFT = "#BBBBBB", "#666666"
FILLS = {"input": "#E8EEF4", "output": "#E8EEF4", "node": "#FFF3D6", "orphan": "#F2F2F2"}


def draw_genotype(genotype: Genotype, path: str | Path) -> Path:
    """Saves `genotype_figure` as PNG or SVG, by the suffix of ``path``.

    Raises:
        InvalidValueError: If the suffix is neither.
        RunDirError: If the file cannot be written.
    """
    check_suffix(path)
    save_figure(genotype_figure(genotype), path)
    return Path(path)


def genotype_figure(genotype: Genotype) -> "Figure":
    """A figure of all cells of a genotype, one below the other.

    Nodes have the numbers of the genotype, edges the names of their operations.
    """
    from matplotlib.figure import Figure

    cells = [(name if name == "cell" else f"{name} cell", cell) for name, cell in genotype.cells]
    with house_style():
        layouts = [lay_out(cell, label_size) if cell.edges else CellLayout(height=0.3) for _, cell in cells]
        heights = [TITLE + one.height + (NOTE if one.absent else 0) + MARGIN for one in layouts]
        width = max(4.0, *(layout.width + 2 * MARGIN for layout in layouts))
        height = sum(heights) + MARGIN
        figure = Figure(figsize=(width, height))
        # one unit of the axes is one inch of the figure, so the layout's lengths are those on paper
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        top = MARGIN
        for (title, _), layout, used in zip(cells, layouts, heights, strict=True):
            axes.text(MARGIN, top, plain(title), size=11, weight="bold", va="top")
            if not layout.slots:
                axes.text(MARGIN, top + TITLE + 0.1, "empty cell", size=FONT + 1, color=SOFT, va="center")
            else:
                _paint(axes, layout, (width - layout.width) / 2, top + TITLE)
                if layout.absent:
                    nodes = ", ".join(map(str, layout.absent))
                    note = f"no edge enters node{'s' if len(layout.absent) > 1 else ''} {nodes}"
                    axes.text(MARGIN, top + used - MARGIN, note, size=FONT, color=SOFT, va="bottom")
            top += used
    return figure


@cache
def label_size(text: str) -> tuple[float, float]:
    """Width and height of a label's box in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=FONT), ismath=False)
    return width / 72 + 0.16, 0.21


def _paint(axes: "Axes", layout: CellLayout, left: float, top: float) -> None:
    for slot in layout.slots:
        slot.x += left
        slot.left += left
        slot.right += left
        slot.y += top
    for wire in layout.wires:
        wire.ends = (wire.ends[0] + top, wire.ends[1] + top)
        _paint_wire(axes, layout, wire)
    inputs = sum(slot.kind == "input" for slot in layout.slots)
    for slot in layout.slots:
        _paint_slot(axes, slot, inputs)


def _paint_wire(axes: "Axes", layout: CellLayout, wire: Wire) -> None:
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path as Outline

    pieces, (tip, y) = curve(layout, wire)
    codes = [Outline.MOVETO]
    for piece in pieces[1:]:
        codes += [Outline.LINETO if len(piece) == 1 else Outline.CURVE4] * len(piece)
    joins = wire.operation is None
    shade = WIRE if wire.operation is None else color(wire.operation)
    line = PathPatch(
        Outline([point for piece in pieces for point in piece], codes),
        fill=False,
        edgecolor=shade,
        linewidth=1.0 if joins else 1.5,
        linestyle="-" if wire.operation is None else dashes(wire.operation),
        capstyle="butt",
        zorder=1 if joins else 2,
    )
    # a separate head: an arrow patch would dash the outline of its head too
    corners = [(tip, y), (tip - HEAD, y - 0.4 * HEAD), (tip - HEAD, y + 0.4 * HEAD)]
    axes.add_patch(line)
    axes.add_patch(Polygon(corners, facecolor=shade, linewidth=0, zorder=line.zorder))


def _paint_slot(axes: "Axes", slot: Slot, inputs: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    if slot.kind == "pass":
        return
    label, orphan = slot.kind == "label", slot.kind == "orphan"
    radius = min(0.06 if label else 0.1, slot.height / 2)
    axes.add_patch(
        FancyBboxPatch(
            (slot.x - slot.width / 2, slot.y - slot.height / 2),
            slot.width,
            slot.height,
            boxstyle=f"round,pad=0,rounding_size={radius}",
            facecolor="white" if label else FILLS[slot.kind],
            edgecolor=color(slot.text) if label else GRAY if orphan else "#444444",
            linewidth=1.0,
            linestyle="--" if orphan else "-",
            zorder=3,
        )
    )
    text = plain(slot.text)
    if slot.kind == "input":
        # subscripts as letters: parsing mathematics takes longer than all the rest of the drawing
        text = f"{slot.text}: cₖ₋{'₀₁₂₃₄₅₆₇₈₉'[min(inputs - int(slot.text), 9)]}"
    elif slot.kind == "output":
        text = "cₖ"
    axes.text(
        slot.x,
        slot.y,
        text,
        size=FONT if label else FONT + 1,
        color=GRAY if orphan else "#111111",
        ha="center",
        va="center_baseline",
        zorder=4,
    )
