"""Plots of a laboratory's run: error against cost, against every axis, bias beside variance, both truths."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sgenas.report.figures import PALETTE
from sgenas.report.lab_panels import (
    LABELS,
    Point,
    Words,
    label_points,
    mark_one,
    panels,
    plain_ticks,
    short_names,
    styles,
    without_option,
)
from sgenas.report.lab_record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONDITION = ("moment", "inner_steps", "batch_size", "inner_lr")
FILES = {
    "moment": "error-against-moment",
    "inner_steps": "error-against-inner-steps",
    "batch_size": "error-against-batch-size",
    "inner_lr": "error-against-inner-lr",
    "q": "error-against-directions",
    "mu": "error-against-smoothing",
}
"""Axis -> what its plot is called."""
FLOOR = 1e-8
"""Squared errors below are drawn here: what is exact would leave the rest of a plot no room."""
ERROR = "squared error of the indirect part"
LEFT_OUT = "Dashed, 1: as if the indirect part were left out"


def lab_figures(record: Record) -> dict[str, "Figure"]:
    """{file name without suffix: figure} of all for which there is data."""
    problem = record["settings"]["problem"]
    rows = [row for row in record["rows"] if _measured(row)]
    found = {}
    if rows:
        found["error-against-passes"] = draw_cost(problem, rows, "passes", "forward + backward passes")
        found["error-against-seconds"] = draw_cost(problem, rows, "seconds", "seconds")
        found["bias-and-variance"] = draw_parts(problem, rows, record["truth_rows"])
    for axis, name in FILES.items():
        figure = draw_axis(problem, rows, axis)
        if figure is not None:
            found[name] = figure
    truths = [row for row in record["truth_rows"] if row["real"]]
    if truths:
        found["truths"] = draw_truths(problem, truths)
    return found


def draw_cost(problem: str, rows: Sequence[Record], cost: str, label: str) -> "Figure":
    """Squared error of every estimator against what it costs, a panel for each moment and N."""
    rows, held = _held(rows, ("batch_size", "inner_lr"))
    style, names = _looks(row["estimator"] for row in rows)

    def draw(axes: "Axes", panel: Sequence[Record]) -> None:
        axes.set(xscale="log", yscale="log")
        points: list[Point] = []
        for row in panel:
            colour, marker = style[row["estimator"]]
            _draw_line(axes, [row[cost]], [row], colour, marker)
            points.append((row[cost], _error(row), _named(row, names[row["estimator"]]), colour))
        plain_ticks(axes, [row[cost] for row in panel])
        mark_one(axes)
        label_points(axes, points)

    title = f"{problem}: error against {cost}. The lower left is best. {LEFT_OUT}{held}"
    return panels(Words(title, label, ERROR), rows, "inner_steps", "moment", draw)


def draw_axis(problem: str, rows: Sequence[Record], axis: str) -> "Figure | None":
    """Squared error along an axis, one line for each estimator; None where no line has two points."""
    others = [name for name in ("batch_size", "inner_lr") if name != axis]
    rows, held = _held([row for row in rows if row[axis] is not None], others)
    places = sorted({row[axis] for row in rows})
    if len(places) < 2:
        return None

    def line_of(row: Record) -> str:
        return without_option(row["estimator"], axis)

    style, names = _looks(line_of(row) for row in rows)

    def draw(axes: "Axes", panel: Sequence[Record]) -> None:
        axes.set(yscale="log")
        points: list[Point] = []
        for line in dict.fromkeys(line_of(row) for row in panel):
            along = sorted((row for row in panel if line_of(row) == line), key=lambda row: row[axis])
            # moments begin at 0, which a logarithmic axis does not have
            x = [places.index(row[axis]) if axis == "moment" else row[axis] for row in along]
            colour, marker = style[line]
            _draw_line(axes, x, along, colour, marker)
            points.append((x[-1], _error(along[-1]), _named(along[-1], names[line]), colour))
        if axis == "moment":
            axes.set_xticks(range(len(places)), [f"{place:,}" for place in places])
        else:
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.minorticks_off()
        mark_one(axes)
        label_points(axes, points)

    label = LABELS[axis]
    words = Words(f"{problem}: error against {label}. Lower is better. {LEFT_OUT}{held}", label, ERROR)
    if axis == "inner_steps":
        return panels(words, rows, "moment", None, draw)
    if axis == "moment":
        return panels(words, rows, "inner_steps", None, draw)
    return panels(words, rows, "inner_steps", "moment", draw)


def draw_parts(problem: str, rows: Sequence[Record], truths: Sequence[Record]) -> "Figure":
    """Bias, variance and the error against the real objective of every estimator, the best at the top."""
    rows, held = _held(rows, ("batch_size", "inner_lr"))
    names = short_names(row["estimator"] for row in rows)
    steps = {_condition(row): row["best_step"] for row in truths}

    def draw(axes: "Axes", panel: Sequence[Record]) -> None:
        axes.set(xscale="log")
        ordered = sorted(panel, key=_error, reverse=True)
        for place, row in enumerate(ordered):
            part, step = row["indirect"], steps.get(_condition(row))
            real = row["real"][step]["indirect"]["mean"] if row["real"] and step is not None else None
            axes.axhline(place, color="#EEEEEE", linewidth=0.8, zorder=0)
            # where bias² is lost in its own error, an empty square says so
            sure = part["bias"]["mean"] > 2 * (part["bias"]["error"] or 0)
            for value, marker, colour, fill in (
                (part["bias"]["mean"], "s", PALETTE[0], PALETTE[0] if sure else "none"),
                (part["variance"]["mean"], "o", PALETTE[1], PALETTE[1]),
                (real, "x", "#000000", "#000000"),
            ):
                if value is not None and value > 0:
                    axes.plot(
                        max(value, FLOOR), place, marker, color=colour, markerfacecolor=fill, markersize=6
                    )
        mark_one(axes, across=False)
        axes.set_yticks(range(len(ordered)), [names[row["estimator"]] for row in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.4)

    title = (
        f"{problem}: what the squared error is made of, left is better. Blue squares: bias² (empty: not told"
        " from 0), orange circles: variance, black crosses: error against the real objective."
        f" {LEFT_OUT}{held}"
    )
    longest = max(len(name) for name in names.values())
    size = (3.2 + 0.07 * longest, max(1.8, 0.8 + 0.24 * len(names)))
    words = Words(title, "in units of the squared length of the indirect part", "", size)
    return panels(words, rows, "inner_steps", "moment", draw)


def draw_truths(problem: str, truths: Sequence[Record]) -> "Figure":
    """How far the automatic derivative is from the slopes of the real objective, by step size."""
    rows, held = _held(truths, ("batch_size", "inner_lr"))
    moments = sorted({row["moment"] for row in rows})

    def draw(axes: "Axes", panel: Sequence[Record]) -> None:
        axes.set(xscale="log", yscale="log")
        points: list[Point] = []
        for row in panel:
            colour = PALETTE[moments.index(row["moment"]) % len(PALETTE)]
            for part, dash in (("indirect", "-"), ("whole", "--")):
                steps = [entry["step"] for entry in row["real"]]
                means = [entry[part]["distance"]["mean"] for entry in row["real"]]
                if None not in means:
                    x, y = steps, [max(mean, FLOOR) for mean in means]
                    axes.plot(x, y, dash, marker="o", color=colour, linewidth=1.4, markersize=4)
                    points.append((x[-1], y[-1], f"{part}, after {row['moment']:,} steps", colour))
        mark_one(axes)
        label_points(axes, points)

    title = (
        f"{problem}: how far is the automatic derivative from slopes of the real objective?{held} "
        "Low where the objective is as smooth as automatic differentiation takes it to be. Dashed, 1: as far"
        " as 0"
    )
    words = Words(title, "step h of the slopes, in the unit of µ", "squared distance, relative")
    return panels(words, rows, "inner_steps", None, draw)


def _draw_line(axes: "Axes", x: Sequence[float], rows: Sequence[Record], colour: str, marker: str) -> None:
    """Squared errors with bars of one standard error, of which none reaches down to 0."""
    y = [_error(row) for row in rows]
    errors = [row["indirect"]["squared_error"]["error"] or 0.0 for row in rows]
    below = [min(error, 0.9 * mean) for error, mean in zip(errors, y, strict=True)]
    axes.errorbar(
        x, y, yerr=[below, errors], marker=marker, color=colour, markersize=5, linewidth=1.4, elinewidth=1
    )


def _looks(names: Iterable[str]) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    ordered = list(dict.fromkeys(names))
    return styles(ordered), short_names(ordered)


def _held(rows: Sequence[Record], keys: Sequence[str]) -> tuple[list[Record], str]:
    """The rows at the smallest value of each of the `keys`, and a note on those that had others."""
    kept, notes = list(rows), []
    for key in keys:
        values = sorted({row[key] for row in kept})
        if len(values) > 1:
            kept = [row for row in kept if row[key] == values[0]]
            notes.append(f"{LABELS[key]}: {values[0]:g}")
    return kept, f" ({', '.join(notes)})" if notes else ""


def _measured(row: Record) -> bool:
    """Whether the row has a figure to draw: no failure, and an indirect part that is not 0."""
    return "indirect" in row and row["indirect"]["squared_error"]["mean"] is not None


def _condition(row: Record) -> tuple[object, ...]:
    return tuple(row[name] for name in CONDITION)


def _error(row: Record) -> float:
    """The mean squared error of the indirect part, but for FLOOR."""
    return max(float(row["indirect"]["squared_error"]["mean"]), FLOOR)


def _named(row: Record, name: str) -> str:
    return f"{name} (below {FLOOR:g})" if _error(row) == FLOOR else name
