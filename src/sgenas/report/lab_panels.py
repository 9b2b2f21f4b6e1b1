"""How the plots of a laboratory's run look: panels for the conditions, labels beside what they name."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgenas.report.figures import GREY, PALETTE, house_style, plain
from sgenas.report.lab_record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which cannot be seen on white
MARKERS = "os^DvPX"
LABELS = {
    "moment": "training steps before",
    "inner_steps": "inner steps N",
    "batch_size": "examples in a batch",
    "inner_lr": "inner learning rate",
    "q": "directions Q",
    "mu": "smoothing µ",
}
"""Key of a row -> what an axis of it is called."""

Style = tuple[str, str]
"""(colour, marker)."""
Point = tuple[float, float, str, str]
"""x and y in data, text, colour."""


@dataclass(frozen=True)
class Words:
    """What stands around the panels; `size` of one of them in inches."""

    title: str
    x: str
    y: str
    size: tuple[float, float] = (4.6, 3.1)


def panels(
    words: Words, rows: Sequence[Record], across: str, down: str | None, draw: Callable[..., None]
) -> "Figure":
    """A grid with a panel for each value of the keys `across` and `down`; draw(axes, rows of the panel)."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = sorted({row[across] for row in rows})
    lines = [None] if down is None else sorted({row[down] for row in rows})
    width, height = words.size
    with house_style():
        figure = Figure(
            figsize=(max(8.0, width * len(columns)), height * len(lines) + 0.8),
            layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08),
        )
        grid = figure.subplots(len(lines), len(columns), squeeze=False)
        for axes_row, line in zip(grid, lines, strict=True):
            for axes, column in zip(axes_row, columns, strict=True):
                panel = [row for row in rows if row[across] == column and (down is None or row[down] == line)]
                where = [] if down is None else [f"{LABELS[down]} = {line:,}"]
                _finish(axes, ", ".join([*where, f"{LABELS[across]} = {column:,}"]))
                if panel:
                    draw(axes, panel)
        title = textwrap.fill(words.title, round(11 * figure.get_figwidth()))
        figure.suptitle(plain(title), size=11, weight="bold")
        figure.supxlabel(words.x, size=9)
        figure.supylabel(words.y, size=9)
    return figure


def _finish(axes: "Axes", title: str) -> None:
    axes.set_title(title, size=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#EEEEEE", linewidth=0.6)
    axes.set_axisbelow(True)


def mark_one(axes: "Axes", *, across: bool = True) -> None:
    """A dashed line at 1, the error of leaving the indirect part out."""
    line = axes.axhline if across else axes.axvline
    line(1, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)


def label_points(axes: "Axes", points: Iterable[Point]) -> None:
    """Names in a column at the right of a panel, each with a thin line to its point, none over another."""
    # where the points are on the page depends on limits that drawing has to settle first
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    into = axes.transData + axes.transAxes.inverted()
    placed = sorted((tuple(into.transform((x, y))), text, colour) for x, y, text, colour in points)
    placed.sort(key=lambda item: item[0][1])
    heights = spread([place[1] for place, _, _ in placed], least=0.065)
    for (place, text, colour), height in zip(placed, heights, strict=True):
        axes.annotate(
            plain(text),
            xy=place,
            xytext=(1.04, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            size=7.5,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def spread(heights: Sequence[float], least: float) -> list[float]:
    """Ascending `heights`, moved as little as need be so that neighbours are `least` apart, between 0 and 1.

    Neighbours that are too close become a group around the mean of where they wanted to be, groups that meet
    become one. More of them than fit between 0 and 1 stand closer.
    """
    least = min(least, 1 / max(len(heights) - 1, 1))
    groups: list[tuple[list[float], float]] = []
    for height in heights:
        members, centre = [height], height
        while True:
            half = least * (len(members) - 1) / 2
            centre = min(max(sum(members) / len(members), half), 1 - half)
            if not groups or centre - groups[-1][1] >= half + least + least * (len(groups[-1][0]) - 1) / 2:
                break
            members = groups.pop()[0] + members
        groups.append((members, centre))
    return [
        centre + least * (index - (len(members) - 1) / 2)
        for members, centre in groups
        for index in range(len(members))
    ]


def plain_ticks(axes: "Axes", values: Iterable[float]) -> None:
    """Ticks 1, 2, 5, 10, 20, ... around the values on a logarithmic x axis, as plain numbers."""
    shown = sorted(values)
    low, high = math.floor(math.log10(shown[0])), math.ceil(math.log10(shown[-1]))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    places = [step * 10.0**power for power in range(low - 1, high + 1) for step in steps]
    axes.set_xlim(shown[0] / 1.4, shown[-1] * 1.4)
    axes.set_xticks(
        [place for place in places if shown[0] / 1.4 <= place <= shown[-1] * 1.4],
        [f"{place:g}" for place in places if shown[0] / 1.4 <= place <= shown[-1] * 1.4],
    )
    axes.minorticks_off()


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A colour and a marker for each name, in the order given: no two alike among the first 49."""
    found: dict[str, Style] = {}
    for name in names:
        if name not in found:
            number = len(found)
            turn = number // len(PALETTE)
            found[name] = PALETTE[number % len(PALETTE)], MARKERS[(number + turn) % len(MARKERS)]
    return found


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Specifications without the options that are the same in all that have them: the rest tells apart."""
    wholes = dict.fromkeys(names)
    values: dict[str, set[str]] = {}
    for name in wholes:
        for option in _options(name):
            values.setdefault(option.partition("=")[0], set()).add(option)
    found = {}
    for name in wholes:
        kept = [part for part in _options(name) if "=" not in part or len(values[part.partition("=")[0]]) > 1]
        found[name] = ", ".join([name.partition(":")[0], *kept])
    # two that came out the same keep everything
    return {name: text if list(found.values()).count(text) == 1 else name for name, text in found.items()}


def _options(name: str) -> list[str]:
    rest = name.partition(":")[2]
    return rest.split(",") if rest else []


def without_option(name: str, option: str) -> str:
    """A specification without `option=...`."""
    kept = ",".join(part for part in _options(name) if part.partition("=")[0] != option)
    kind = name.partition(":")[0]
    return f"{kind}:{kept}" if kept else kind
