"""Accuracy of several runs against the size of their networks, with the runs that no other one dominates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sgenas.errors import SgenasError
from sgenas.report.curves import finish
from sgenas.report.formatting import is_number
from sgenas.report.run_record import RunRecord
from sgenas.report.style import PALETTE, house_style, plain
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.nasbench201_space.table import CLASSES, COLUMNS
from sgenas.spaces.networks import network_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = {"params": ("parameters", 1e6, "million parameters"), "macs": ("multiply-adds", 1e6, "million multiply-adds")}
"""Quantity -> its name, the unit of the axis, and the axis' label."""
Read = Callable[[RunRecord], float | None]
"""Reads an accuracy in percent from a run; None if it has none."""
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Point:
    """A run in the plot: the names of its directory and group, its accuracy in percent, and its known ``COSTS``."""

    run: str
    group: str
    accuracy: float
    costs: dict[str, float]


@dataclass(frozen=True)
class Pareto:
    """Points of the runs that have one kind of accuracy, named by ``accuracy``, and a cost."""

    accuracy: str
    points: tuple[Point, ...]

    def best(self, quantity: str) -> list[Point]:
        """The points that no other one dominates: none costs less without being less accurate, or costs as much
        and is more accurate. Cheapest first."""
        known = [point for point in self.points if quantity in point.costs]
        known.sort(key=lambda point: (point.costs[quantity], -point.accuracy))
        found: list[Point] = []
        for point in known:
            equal = found and (point.costs[quantity], point.accuracy) == (found[-1].costs[quantity], found[-1].accuracy)
            if not found or point.accuracy > found[-1].accuracy or equal:
                found.append(point)
        return found


def pareto(runs: Sequence[tuple[str, RunRecord]]) -> Pareto | None:
    """The points of runs (group, record) by the first kind of accuracy that most of them have; None below two points.

    The kinds are, for searches: test accuracy of the trained derived network, tabulated accuracy, accuracy of the
    derived network with the supernet's weights; for trainings the test accuracy.
    """
    known = [(group, record, found) for group, record in runs if (found := _costs(record))]
    name, read = result_kind([record for _, record, _ in known], KINDS)
    points = tuple(
        Point(record.path.resolve().name, group, accuracy, found)
        for group, record, found in known
        if (accuracy := read(record)) is not None
    )
    return Pareto(name, points) if len(points) > 1 else None


def _last(record: RunRecord) -> dict[str, Any]:
    """The row of the epoch whose architecture is the run's result: the last one, or that of an early stop."""
    last = record.epochs[-1] if record.epochs else {}
    chosen = last.get("stopped_early_with_epoch")
    return next((row for row in record.epochs if row["epoch"] == chosen), last)


def _number(row: dict[str, Any], key: str, unit: float = 1.0) -> float | None:
    return unit * row[key] if is_number(row.get(key)) else None


def _percent(key: str) -> Read:
    return lambda record: _number(_last(record), key, 100.0)


def _trained(record: RunRecord) -> float | None:
    return _number((record.evaluation or {}).get("derived", {}), "test_accuracy", 100.0)


def _tabulated(record: RunRecord) -> float | None:
    count = len(record.environment.get("classes") or ())
    columns = [COLUMNS[name].removesuffix("_test") for name, classes in CLASSES.items() if classes == count]
    return _number(_last(record), f"tabulated_{columns[0]}") if columns else None


KINDS: dict[str, Read] = {
    "test accuracy after training": _trained,
    "tabulated accuracy": _tabulated,
    "accuracy with the supernet's weights": _percent("derived_accuracy"),
    "test accuracy": _percent("test_accuracy"),
}
"""Kind of accuracy of a result -> how it is read from a run."""
SUPERNET = {"validation accuracy of the supernet": _percent("val_accuracy")}
"""What stands in for it in searches that have measured no result."""


def result_kind(records: Sequence[RunRecord], kinds: Mapping[str, Read] = KINDS | SUPERNET) -> tuple[str, Read]:
    """The first kind of accuracy that most of the runs have."""
    name = max(kinds, key=lambda name: sum(kinds[name](record) is not None for record in records))
    return name, kinds[name]


def _costs(record: RunRecord) -> dict[str, float]:
    """Parameters and multiply-adds of the derived network for the run's images, in the size of a budget or training."""
    last = _last(record)
    found = {name: last[f"derived_{name}"] for name in COSTS if is_number(last.get(f"derived_{name}"))}
    if len(found) < len(COSTS) and record.genotype is not None:
        given = record.config if record.kind == "training" else record.config.get("budget")
        sizes = [given.get(name) if isinstance(given, dict) else None for name in ("channels", "layers")]
        classes = len(record.environment.get("classes") or ()) or 10
        images: Any = record.environment.get("input")
        good = isinstance(images, list) and [type(each) for each in images] == [int] * 3
        shape = images if good else (3, 32, 32)
        channels, layers = (size if type(size) is int else None for size in sizes)
        found = _counted(record.genotype, channels, layers, classes, *shape) | found
    return found


@lru_cache(maxsize=256)
def _counted(
    genotype: Genotype,
    channels: int | None,
    layers: int | None,
    classes: int,
    input_channels: int,
    height: int,
    width: int,
) -> dict[str, float]:
    sizes = {"channels": channels, "layers": layers, "num_classes": classes}
    try:
        size = network_size(genotype, resolution=(height, width), input_channels=input_channels, **sizes)
    except SgenasError:
        # an empty cell has no network
        return {}
    return {"params": size.params, "macs": size.macs}


def draw_pareto(found: Pareto, groups: Sequence[str]) -> "Figure":
    """Accuracy against each known cost: a color and marker per group, rings and a line for the non-dominated runs."""
    from matplotlib.figure import Figure

    quantities = [name for name in COSTS if any(name in point.costs for point in found.points)]
    named = [group for group in groups if any(point.group == group for point in found.points)]
    below = 0.8 + 0.2 * len(named)
    height = 3.6 + below
    with house_style():
        figure = Figure(figsize=(10, height))
        for place, quantity in enumerate(quantities):
            _, unit, label = COSTS[quantity]
            axes = figure.add_axes((0.07 + 0.49 * place, below / height, 0.42, 3.2 / height))
            for number, group in enumerate(named):
                marker, shade = MARKERS[number % len(MARKERS)], PALETTE[number % len(PALETTE)]
                own = [point for point in found.points if point.group == group and quantity in point.costs]
                x, y = [point.costs[quantity] / unit for point in own], [point.accuracy for point in own]
                axes.plot(x, y, marker, color=shade, markersize=6, alpha=0.8, label=plain(group))
            best = found.best(quantity)
            x, y = [point.costs[quantity] / unit for point in best], [point.accuracy for point in best]
            looks: dict[str, Any] = {"markerfacecolor": "none", "markersize": 11, "drawstyle": "steps-post"}
            axes.plot(x, y, "o-", color="#333333", linewidth=0.8, label="not dominated", zorder=1, **looks)
            title = f"{found.accuracy[0].upper()}{found.accuracy[1:]}"
            finish(axes, title if place == 0 else "", label, "percent" if place == 0 else "")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower left", fontsize=8, frameon=False, ncols=1)
    return figure
