"""A cell as a small SVG written by hand, for pages with a cell for every epoch, where figures are too large.

The layout, the colours and the line styles are those of `cell_plot`.
"""

from markupsafe import Markup

from sgenas.report.cell_layout import HEAD, Curve, Layout, Slot, curve, lay_out
from sgenas.report.cell_plot import FILLS, FONT, WIRE, label_size
from sgenas.report.figures import GREY, colour, dashes
from sgenas.spaces.genotype import Cell

POINTS = 72
"""Units of the drawing in an inch."""
MARGIN = 0.06


def cell_svg(cell: Cell, description: str) -> Markup:
    """One <svg> element without ids, scripts or anything outside; its texts are escaped."""
    layout = lay_out(cell, label_size) if cell.edges else Layout(width=2.0, height=0.5)
    width, height = (POINTS * (length + 2 * MARGIN) for length in (layout.width, layout.height))
    parts = [_wire(curve(layout, wire), wire.operation) for wire in layout.wires]
    inputs = sum(slot.kind == "input" for slot in layout.slots)
    parts += [_slot(slot, inputs) for slot in layout.slots if slot.kind != "pass"]
    if not cell.edges:
        parts.append(_text("empty cell", layout.width / 2, layout.height / 2, FONT + 2, GREY))
    head = Markup(
        '<svg role="img" aria-label="{}" width="{:.1f}pt" height="{:.1f}pt" viewBox="0 0 {:.1f} {:.1f}"'
        ' xmlns="http://www.w3.org/2000/svg" font-family="DejaVu Sans, Verdana, sans-serif">'
    ).format(description, width, height, width, height)
    return head + Markup("").join(parts) + Markup("</svg>")


def _at(value: float) -> str:
    return f"{POINTS * (value + MARGIN):.1f}"


def _wire(way: Curve, operation: str | None) -> Markup:
    path = f"M{_at(way.start[0])} {_at(way.start[1])}"
    for piece in way.pieces:
        path += ("L" if len(piece) == 1 else "C") + " ".join(f"{_at(x)} {_at(y)}" for x, y in piece)
    shade = WIRE if operation is None else colour(operation)
    width = 1.0 if operation is None else 1.5
    # lengths of dashes are in line widths, as matplotlib takes them
    pattern = "" if operation is None else " ".join(f"{width * part:g}" for part in dashes(operation)[1])
    dashed = Markup(' stroke-dasharray="{}"').format(pattern) if pattern else ""
    (tip, y), half = way.tip, 0.4 * HEAD
    corners = " ".join(
        f"{_at(x)},{_at(z)}" for x, z in ((tip, y), (tip - HEAD, y - half), (tip - HEAD, y + half))
    )
    return Markup(
        '<path d="{}" fill="none" stroke="{}" stroke-width="{:g}"{}/><polygon points="{}" fill="{}"/>'
    ).format(path, shade, width, dashed, corners, shade)


def _slot(slot: Slot, inputs: int) -> Markup:
    label, ghost = slot.kind == "label", slot.kind == "ghost"
    box = Markup(
        '<rect x="{}" y="{}" width="{:.1f}" height="{:.1f}" rx="{:.1f}" fill="{}" stroke="{}"{}/>'
    ).format(
        _at(slot.x - slot.width / 2),
        _at(slot.y - slot.height / 2),
        POINTS * slot.width,
        POINTS * slot.height,
        POINTS * min(0.06 if label else 0.1, slot.height / 2),
        "#fff" if label else FILLS[slot.kind],
        colour(slot.text) if label else GREY if ghost else "#444444",
        Markup(' stroke-dasharray="4 2"') if ghost else "",
    )
    text, ink = slot.text, GREY if ghost else "#111111"
    if slot.kind == "input":
        text = f"{slot.text}: c[k-{inputs - int(slot.text)}]"
    elif slot.kind == "output":
        text = "c[k]"
    # a font of another width than the one that was measured is squeezed into the label
    length = POINTS * (label_size(slot.text)[0] - 0.16) if label else None
    return box + _text(text, slot.x, slot.y, FONT if label else FONT + 1, ink, length)


def _text(text: str, x: float, y: float, size: float, ink: str, length: float | None = None) -> Markup:
    squeezed = (
        ""
        if length is None
        else Markup(' textLength="{:.1f}" lengthAdjust="spacingAndGlyphs"').format(length)
    )
    return Markup(
        '<text x="{}" y="{}" font-size="{:g}" fill="{}" text-anchor="middle" dominant-baseline="central"{}>'
        "{}</text>"
    ).format(_at(x), _at(y), size, ink, squeezed, text)
