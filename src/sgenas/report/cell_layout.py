"""Where the nodes, labels and wires of a cell go, by plain geometry: lengths in inches, y grows downwards.

The layout is that of layered graph drawing (Sugiyama, Tagawa and Toda 1981). Columns alternate between nodes
and labels. A wire that has to go through a column gets a slot of its own in it, and so does every label: that
labels and nodes cannot overlap follows from the construction, for any cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

from sgenas.spaces.genotype import Cell

ROW_GAP = 0.09
COLUMN_GAP = 0.3
HEAD = 0.11
"""Length of an arrow's head."""
PORT_GAP = 0.1


@dataclass
class Slot:
    """A place in a column: `kind` is input, node, ghost (a node that nothing enters), label, pass or output.

    `x` and `y` are its centre; wires run level from `left` to `right`, its column's borders.
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
    """A way from slot to slot, one per column; `operation` is None for the concatenation.

    `ends` are the heights y at which it leaves its first and enters its last slot, none shared by two wires.
    """

    operation: str | None
    slots: list[int]
    ends: tuple[float, float] = (0.0, 0.0)


@dataclass
class Layout:
    """Slots with their centres, wires between them, the size of it all, and the nodes that are not drawn."""

    slots: list[Slot] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0
    absent: tuple[int, ...] = ()

    def add(self, kind: str, text: str, column: int, size: tuple[float, float]) -> int:
        """Appends a slot; its index."""
        self.slots.append(Slot(kind, text, column, *size))
        return len(self.slots) - 1


def lay_out(cell: Cell, label_size: Callable[[str], tuple[float, float]]) -> Layout:
    """Places `cell`; `label_size` gives the width and height of an operation's label."""
    layout = Layout()
    entered = {edge.target for edge in cell.edges}
    used = {edge.source for edge in cell.edges}
    computed = range(cell.inputs, cell.inputs + cell.nodes)
    layout.absent = tuple(node for node in computed if node not in entered)
    depth = dict.fromkeys(range(cell.inputs), 0)
    for node in computed:
        if node in entered or node in used:
            sources = [depth[edge.source] for edge in cell.edges if edge.target == node]
            depth[node] = 1 + max(sources, default=0)
    last = max(depth.values())

    places = {}
    for node, level in depth.items():
        if level == 0:
            places[node] = layout.add("input", str(node), 0, (0.62, 0.3))
        else:
            kind = "node" if node in entered else "ghost"
            places[node] = layout.add(kind, str(node), 2 * level, (0.32, 0.32))
    output = layout.add("output", "", 2 * last + 1, (0.4, 0.3))

    crowd = [0] * (2 * last + 2)
    # short edges have one label column to choose from, so they choose first
    for edge in sorted(cell.edges, key=lambda edge: depth[edge.target] - depth[edge.source]):
        start, end = 2 * depth[edge.source], 2 * depth[edge.target]
        column = min(range(end - 1, start, -2), key=lambda column: crowd[column])
        crowd[column] += 1
        chain = [places[edge.source]]
        for between in range(start + 1, end):
            if between == column:
                chain.append(layout.add("label", edge.operation, between, label_size(edge.operation)))
            else:
                chain.append(layout.add("pass", "", between, (0.0, 0.04)))
        layout.wires.append(Wire(edge.operation, [*chain, places[edge.target]]))
    for node in cell.concat:
        if node in entered:
            passes = [
                layout.add("pass", "", column, (0.0, 0.04))
                for column in range(2 * depth[node] + 1, 2 * last + 1)
            ]
            layout.wires.append(Wire(None, [places[node], *passes, output]))

    _stretch(layout)
    columns = _order(layout)
    _set_y(layout, columns)
    _set_ends(layout)
    _set_x(layout, columns)
    return layout


def _neighbours(layout: Layout) -> tuple[list[list[int]], list[list[int]]]:
    left: list[list[int]] = [[] for _ in layout.slots]
    right: list[list[int]] = [[] for _ in layout.slots]
    for wire in layout.wires:
        for one, two in pairwise(wire.slots):
            right[one].append(two)
            left[two].append(one)
    return left, right


def _stretch(layout: Layout) -> None:
    """Makes room for the wires on both sides of a node."""
    left, right = _neighbours(layout)
    for slot, before, after in zip(layout.slots, left, right, strict=True):
        if slot.kind not in ("label", "pass"):
            slot.height = max(slot.height, 0.2 + PORT_GAP * (max(len(before), len(after)) - 1))


def _set_ends(layout: Layout) -> None:
    """Spreads the wires of each node over its side, in the order of where they come from or go to."""
    slots = layout.slots
    ends: dict[tuple[int, int], float] = {}
    for end, beside in ((0, 1), (-1, -2)):
        for node in {wire.slots[end] for wire in layout.wires}:
            there = [
                (slots[wire.slots[beside]].y, k)
                for k, wire in enumerate(layout.wires)
                if wire.slots[end] == node
            ]
            for place, (_, k) in enumerate(sorted(there)):
                ends[k, end] = slots[node].y + PORT_GAP * (place - (len(there) - 1) / 2)
    for k, wire in enumerate(layout.wires):
        wire.ends = (ends[k, 0], ends[k, -1])


def _order(layout: Layout) -> list[list[int]]:
    """The slots of each column from top to bottom, with few crossings; the inputs keep their order."""
    count = max(slot.column for slot in layout.slots) + 1
    columns = [[i for i, slot in enumerate(layout.slots) if slot.column == c] for c in range(count)]
    left, right = _neighbours(layout)

    def crossings(upper: int, lower: int) -> tuple[int, int]:
        """Crossings of the wires of two slots of one column: as they stand, and with the two swapped."""
        now = swapped = 0
        for side in (left, right):
            for one in side[upper]:
                for two in side[lower]:
                    now += rank[one] > rank[two]
                    swapped += rank[one] < rank[two]
        return now, swapped

    rank = {i: place for column in columns for place, i in enumerate(column)}
    best, fewest = columns, None
    for sweep in range(12):
        sides = (left, right) if sweep % 2 == 0 else (right, left)
        for column in columns[1:] if sweep % 2 == 0 else columns[:0:-1]:
            middle = {i: fmean(rank[n] for n in sides[0][i]) if sides[0][i] else rank[i] for i in column}
            column.sort(key=middle.__getitem__)
            rank.update({i: place for place, i in enumerate(column)})
        for column in columns[1:]:
            for place in range(len(column) - 1):
                now, swapped = crossings(column[place], column[place + 1])
                if swapped < now:
                    column[place], column[place + 1] = column[place + 1], column[place]
                    rank.update({i: place for place, i in enumerate(column)})
        total = sum(
            crossings(one, two)[0]
            for column in columns
            for k, one in enumerate(column)
            for two in column[k + 1 :]
        )
        if fewest is None or total < fewest:
            best, fewest = [list(column) for column in columns], total
    return best


def _set_y(layout: Layout, columns: list[list[int]]) -> None:
    """Moves every slot towards its neighbours, keeping the order and the gaps; then the top to y = 0."""
    slots = layout.slots
    left, right = _neighbours(layout)
    # where no operation leaves the inputs, the column of their labels is empty
    columns = [column for column in columns if column]
    offsets = {}
    for index, column in enumerate(columns):
        places = [0.0]
        for one, two in pairwise(column):
            places.append(places[-1] + (slots[one].height + slots[two].height) / 2 + ROW_GAP)
        offsets[index] = places
        for i, place in zip(column, places, strict=True):
            slots[i].y = place - places[-1] / 2
    for sweep in range(40):
        order = range(len(columns)) if sweep % 2 == 0 else reversed(range(len(columns)))
        for index in order:
            column = columns[index]
            wanted = [fmean([slots[n].y for n in left[i] + right[i]] or [slots[i].y]) for i in column]
            for i, y in zip(column, _spread(wanted, offsets[index]), strict=True):
                slots[i].y = y
    top = min(slot.y - slot.height / 2 for slot in slots)
    for slot in slots:
        slot.y -= top
    layout.height = max(slot.y + slot.height / 2 for slot in slots)


def _spread(wanted: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """The positions closest to `wanted` (least squares) that are at least as far apart as `offsets`.

    By pooling adjacent violators: neighbours that want to be closer than allowed move as one block.
    """
    blocks: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _set_x(layout: Layout, columns: list[list[int]]) -> None:
    """Columns from left to right, further apart where wires climb."""
    slots = layout.slots
    x = 0.0
    for index, column in enumerate(columns):
        width = max(slots[i].width for i in column) if column else 0.0
        for i in column:
            slots[i].x, slots[i].left, slots[i].right = x + width / 2, x, x + width
        climb = [
            abs(slots[one].y - slots[two].y)
            for wire in layout.wires
            for one, two in pairwise(wire.slots)
            if slots[one].column == index
        ]
        layout.width = x + width
        x += width + max(COLUMN_GAP, min(0.7, 0.45 * max(climb, default=0.0)))


Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """How a wire runs: from `start` over pieces, (end,) a straight one, (control, control, end) a Bezier's
    curve, to the head of its arrow, whose tip is `tip`."""

    start: Point
    pieces: tuple[tuple[Point, ...], ...]
    tip: Point


def curve(layout: Layout, wire: Wire) -> Curve:
    """Level through the columns, bent between them; it ends inside its head, which hides the end."""
    slots = [layout.slots[i] for i in wire.slots]
    leaves, enters = wire.ends
    heights = [leaves, *(slot.y for slot in slots[1:-1]), enters]
    start = (slots[0].x + slots[0].width / 2, leaves)
    pieces: list[tuple[Point, ...]] = [((slots[0].right, leaves),)]
    for slot, height in zip(slots[1:], heights[1:], strict=True):
        last = slot is slots[-1]
        x, y = pieces[-1][-1]
        entry = slot.left - HEAD if last else slot.left
        bend = (x + entry) / 2
        pieces.append(((bend, y), (bend, height), (entry, height)))
        pieces.append(((slot.x - slot.width / 2 - HEAD / 2 if last else slot.right, height),))
    return Curve(start, tuple(pieces), (slots[-1].x - slots[-1].width / 2, enters))
