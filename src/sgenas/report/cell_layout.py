"""Positions of the nodes, labels and wires of a cell: lengths in inches, y grows downwards.

A layered graph drawing (Sugiyama, Tagawa and Toda 1981). Columns alternate between nodes and labels. Each
label, and each wire that passes through a column, has its own slot there, so nothing can overlap.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from sgenas.spaces.genotype import Cell

ROW_GAP, COLUMN_GAP, PORT_GAP = 0.09, 0.3, 0.1
HEAD = 0.11
"""Length of an arrowhead."""
Point = tuple[float, float]


@dataclass
class Slot:
    """A position in a column.

    ``kind`` is input, node, orphan (a node without incoming edges), label, pass or output; (``x``, ``y``) is
    the center. Wires are level between ``left`` and ``right``, the borders of the column.
    """

    kind: str
    text: str
    column: int
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    left: float = 0.0
    right: float = 0.0


@dataclass
class Wire:
    """A path with one slot per column; ``operation`` is None for the concatenation.

    ``ends`` are the heights y at which it leaves its first slot and enters its last.
    """

    operation: str | None
    slots: list[int]
    ends: tuple[float, float] = (0.0, 0.0)


@dataclass
class CellLayout:
    """Slots, wires between them, the overall size, and the nodes without incoming edges."""

    slots: list[Slot] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0
    absent: tuple[int, ...] = ()

    def add(self, kind: str, text: str, column: int, size: tuple[float, float]) -> int:
        """Appends a slot and returns its index."""
        self.slots.append(Slot(kind, text, column, *size))
        return len(self.slots) - 1


def lay_out(cell: Cell, label_size: Callable[[str], tuple[float, float]]) -> CellLayout:
    """Places ``cell``; ``label_size`` returns the width and height of an operation's label."""
    layout = CellLayout()
    entered = {edge.target for edge in cell.edges}
    used = {edge.source for edge in cell.edges}
    computed = range(cell.inputs, cell.inputs + cell.nodes)
    layout.absent = tuple(node for node in computed if node not in entered)
    depth = dict.fromkeys(range(cell.inputs), 0)
    for node in computed:
        if node in entered or node in used:
            depth[node] = 1 + max((depth[e.source] for e in cell.edges if e.target == node), default=0)
    last = max(depth.values())

    places = {}
    for node, level in depth.items():
        kind = "input" if level == 0 else "node" if node in entered else "orphan"
        size = (0.62, 0.3) if level == 0 else (0.32, 0.32)
        places[node] = layout.add(kind, str(node), 2 * level, size)
    output = layout.add("output", "", 2 * last + 1, (0.4, 0.3))

    occupied = [0] * (2 * last + 2)
    # short edges have only one column for their label, so they choose first
    for edge in sorted(cell.edges, key=lambda edge: depth[edge.target] - depth[edge.source]):
        start, end = 2 * depth[edge.source], 2 * depth[edge.target]
        column = min(range(end - 1, start, -2), key=lambda column: occupied[column])
        occupied[column] += 1
        chain = [places[edge.source]]
        for between in range(start + 1, end):
            if between == column:
                chain.append(layout.add("label", edge.operation, between, label_size(edge.operation)))
            else:
                chain.append(layout.add("pass", "", between, (0.0, 0.04)))
        layout.wires.append(Wire(edge.operation, [*chain, places[edge.target]]))
    for node in cell.concat:
        if node in entered:
            passed = range(2 * depth[node] + 1, 2 * last + 1)
            passes = [layout.add("pass", "", column, (0.0, 0.04)) for column in passed]
            layout.wires.append(Wire(None, [places[node], *passes, output]))

    left, right = _neighbors(layout)
    for slot, before, after in zip(layout.slots, left, right, strict=True):
        if slot.kind not in ("label", "pass"):
            slot.height = max(slot.height, 0.2 + PORT_GAP * (max(len(before), len(after)) - 1))
    columns = _order(layout)
    _set_y(layout, columns)
    _set_ends(layout)
    _set_x(layout, columns)
    return layout


def _neighbors(layout: CellLayout) -> tuple[list[list[int]], list[list[int]]]:
    left: list[list[int]] = [[] for _ in layout.slots]
    right: list[list[int]] = [[] for _ in layout.slots]
    for wire in layout.wires:
        for one, two in pairwise(wire.slots):
            right[one].append(two)
            left[two].append(one)
    return left, right


def _set_ends(layout: CellLayout) -> None:
    """Spreads the wires of each node over its side, in the order of their other slots."""
    slots = layout.slots
    ends: dict[tuple[int, int], float] = {}
    for end, beside in ((0, 1), (-1, -2)):
        for node in {wire.slots[end] for wire in layout.wires}:
            wires = [(slots[w.slots[beside]].y, k) for k, w in enumerate(layout.wires) if w.slots[end] == node]
            for place, (_, k) in enumerate(sorted(wires)):
                ends[k, end] = slots[node].y + PORT_GAP * (place - (len(wires) - 1) / 2)
    for k, wire in enumerate(layout.wires):
        wire.ends = (ends[k, 0], ends[k, -1])


def _order(layout: CellLayout) -> list[list[int]]:
    """The slots of each column from top to bottom, each near the mean of its neighbors, so that few wires cross;
    the inputs keep their order."""
    count = max(slot.column for slot in layout.slots) + 1
    columns = [[i for i, slot in enumerate(layout.slots) if slot.column == c] for c in range(count)]
    left, right = _neighbors(layout)
    rank = {i: place for column in columns for place, i in enumerate(column)}
    for sweep in range(12):
        side = left if sweep % 2 == 0 else right
        for column in columns[1:] if sweep % 2 == 0 else columns[:0:-1]:
            middle = {i: fmean(rank[n] for n in side[i]) if side[i] else rank[i] for i in column}
            column.sort(key=middle.__getitem__)
            rank.update({i: place for place, i in enumerate(column)})
    return columns


def _set_y(layout: CellLayout, columns: list[list[int]]) -> None:
    """Spreads the slots of each column over the height that the fullest column needs."""
    tallest = [max((layout.slots[i].height for i in column), default=0.0) + ROW_GAP for column in columns]
    layout.height = max(len(column) * height for column, height in zip(columns, tallest, strict=True))
    for column in columns:
        for place, i in enumerate(column):
            layout.slots[i].y = layout.height * (place + 0.5) / len(column)


def _set_x(layout: CellLayout, columns: list[list[int]]) -> None:
    """Columns from left to right, further apart where wires climb."""
    slots = layout.slots
    climbs = [0.0] * len(columns)
    for wire in layout.wires:
        for one, two in pairwise(wire.slots):
            at = slots[one].column
            climbs[at] = max(climbs[at], abs(slots[one].y - slots[two].y))
    x = 0.0
    for column, climb in zip(columns, climbs, strict=True):
        width = max((slots[i].width for i in column), default=0.0)
        for i in column:
            slots[i].x, slots[i].left, slots[i].right = x + width / 2, x, x + width
        layout.width = x + width
        x += width + max(COLUMN_GAP, min(0.7, 0.45 * climb))


def curve(layout: CellLayout, wire: Wire) -> tuple[list[tuple[Point, ...]], Point]:
    """The pieces of a wire and the tip of its arrowhead.

    A piece of one point is a straight line to it (the first one: the start), one of three points a Bezier
    curve. The wire is level inside columns and bends between them; its head covers its end.
    """
    slots = [layout.slots[i] for i in wire.slots]
    leaves, enters = wire.ends
    heights = [leaves, *(slot.y for slot in slots[1:-1]), enters]
    pieces: list[tuple[Point, ...]] = [
        ((slots[0].x + slots[0].width / 2, leaves),),
        ((slots[0].right, leaves),),
    ]
    for slot, height in zip(slots[1:], heights[1:], strict=True):
        last = slot is slots[-1]
        x, y = pieces[-1][-1]
        entry = slot.left - HEAD if last else slot.left
        bend = (x + entry) / 2
        pieces.append(((bend, y), (bend, height), (entry, height)))
        pieces.append(((slot.x - slot.width / 2 - HEAD / 2 if last else slot.right, height),))
    return pieces, (slots[-1].x - slots[-1].width / 2, enters)
