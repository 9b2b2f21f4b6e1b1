"""Several runs on one page: grouped by their settings, mean and standard deviation over seeds."""

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from sgenas.errors import InvalidValueError, RunDirError, RunWarning, SgenasError
from sgenas.files import write_text
from sgenas.report.cell_figure import genotype_figure
from sgenas.report.curves import finish, whole_numbers
from sgenas.report.formatting import COSTS, NOTHING, CostPart, counted, flat_settings, is_number, setting_text
from sgenas.report.html import data_uri, render_page
from sgenas.report.pareto import COSTS as SIZES
from sgenas.report.pareto import Read, draw_pareto, pareto, result_kind
from sgenas.report.run_record import RunRecord, read_run
from sgenas.report.style import PALETTE, STYLES, house_style, image_bytes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = {
    "search": ("val_accuracy", "validation accuracy of the supernet"),
    "training": ("test_accuracy", "test accuracy"),
}
"""Kind of run -> the number whose curves are drawn, and its name."""
FIRST = ("strategy", "method", "estimator")
"""Settings that name a group before any other, by their values: most others follow from them."""
MAX_CURVES = 20
"""Groups whose curves are drawn: more lines of one plot cannot be told apart."""
MAX_VALUES = 10
"""Runs of a group whose accuracies the table has, besides their mean."""
MAX_CELLS = 8
"""Groups whose first run has its cells drawn; those of all other runs are text."""


@dataclass(frozen=True)
class RunGroup:
    """Runs whose settings differ in the seed only.

    Args:
        name: Few settings that distinguish the group from the others.
        differences: Every setting in which the groups differ.
        records: The runs.
    """

    name: str
    differences: dict[str, str]
    records: tuple[RunRecord, ...]

    def finished(self, read: Read) -> "RunGroup":
        """The finished runs alone; those whose accuracy ``read`` gives, if it does so for any of them."""
        done = [record for record in self.records if record.finished]
        return replace(self, records=tuple([each for each in done if read(each) is not None] or done))

    def values(self, read: Read) -> list[float]:
        """The accuracies that ``read`` gives for finished runs, in percent."""
        return [value for record in self.records if record.finished and (value := read(record)) is not None]

    def last(self, key: str) -> list[float]:
        """The number ``key`` of the last epoch of each finished run that has one."""
        rows = [record.epochs[-1] for record in self.records if record.finished]
        return [float(row[key]) for row in rows if is_number(row.get(key))]


def grouped(records: Sequence[RunRecord]) -> list[RunGroup]:
    """The records by their settings, in the order given, named by the settings that differ."""
    genotypes: list[Any] = []
    by_settings: dict[str, tuple[dict[str, Any], list[RunRecord]]] = {}
    for record in records:
        own = {key: value for key, value in record.config.items() if key not in ("seed", "genotype")}
        if "genotype" in record.config:
            if record.config["genotype"] not in genotypes:
                genotypes.append(record.config["genotype"])
            own["genotype"] = f"cells {genotypes.index(record.config['genotype']) + 1}"
        settings = dict(flat_settings(own))
        # a search from Python records the weights that its seed has drawn
        settings.pop("model.start_weights", None)
        by_settings.setdefault(json.dumps(settings, sort_keys=True), (settings, []))[1].append(record)
    found = list(by_settings.values())
    names = list(dict.fromkeys(name for own, _ in found for name in own))
    differ = [name for name in names if any(own.get(name) != found[0][0].get(name) for own, _ in found)]
    tables = [{name: setting_text(own.get(name)) for name in differ} for own, _ in found]
    telling = _distinguishing(tables)
    groups = []
    for table, (_, members) in zip(tables, found, strict=True):
        parts = [table[n] if _short(n) in FIRST else f"{_short(n)} {table[n]}" for n in telling]
        alone = members[0].path.resolve().name if len(members) == 1 else "all runs"
        groups.append(RunGroup(", ".join(parts) or alone, table, tuple(members)))
    return groups


def _short(name: str) -> str:
    """The last part of a dotted name; of ``estimator.name`` and its like the group."""
    return name.removesuffix(".name").rpartition(".")[2]


def _distinguishing(tables: Sequence[dict[str, str]]) -> list[str]:
    """Few settings that distinguish the tables: method and estimator before what follows from them."""
    chosen: list[str] = []
    for name in sorted(tables[0], key=lambda name: _short(name) not in FIRST):
        apart, more = (
            len({tuple(table[one] for one in ones) for table in tables}) for ones in (chosen, [*chosen, name])
        )
        if more > apart:
            chosen.append(name)
    return chosen


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, two digits; no deviation of a single value."""
    if not values:
        return NOTHING
    return f"{fmean(values):.2f}" + (f" \u00b1 {stdev(values):.2f}" if len(values) > 1 else "")


def write_comparison(run_dirs: Iterable[str | Path], out: str | Path) -> Path:
    """Writes one page about several runs and returns its path.

    A run that cannot be read hides none of the others: the page and a RunWarning name it.

    Args:
        run_dirs: Run directories, all of search runs or all of training runs.
        out: File to write or replace.

    Raises:
        InvalidValueError: If a directory is given twice, or search and training runs are mixed.
        RunDirError: If no run can be read, or ``out`` cannot be written.
    """
    records: list[RunRecord] = []
    errors: list[SgenasError] = []
    for path in run_dirs:
        try:
            records.append(read_run(path, brief=True))
        except SgenasError as error:
            errors.append(error)
    if not records:
        raise errors[0] if errors else InvalidValueError("run_dirs must not be empty", field="run_dirs")
    places = [record.path.resolve() for record in records]
    repeated = next((place for place in places if places.count(place) > 1), None)
    if repeated is not None:
        raise InvalidValueError(f"run_dirs must differ, got {repeated} twice", field="run_dirs")
    kinds = sorted({record.kind for record in records})
    if len(kinds) > 1:
        message = f"run_dirs must be all of search runs or all of training runs, got {' and '.join(kinds)}"
        raise InvalidValueError(message, field="run_dirs")
    out = Path(out)
    if out.is_dir():
        raise RunDirError(f"{out} must be a file to write, got a directory")
    page = render_comparison(records, out.stem, [*map(str, errors)])
    write_text(out, page.encode("utf-8", errors="replace").decode())
    for reason in errors:
        warnings.warn(f"left out: {reason}", RunWarning, stacklevel=2)
    return out


def render_comparison(records: Sequence[RunRecord], title: str, left_out: Sequence[str] = ()) -> str:
    """The page as text, best group first; equal records give equal text.

    Args:
        records: Runs of one kind.
        title: Heading.
        left_out: One line per run that should be here and cannot be read.
    """
    kind = records[0].kind
    accuracy, read = result_kind([record for record in records if record.finished])
    groups = sorted(grouped(records), key=lambda group: -fmean(group.values(read) or [-math.inf]))
    costs = [part for part in COSTS if any(group.last(part.key) for group in groups)]
    rows = [_row(group, read, costs) for group in groups]
    architectures = []
    for place, group in enumerate(groups):
        for record in group.records:
            drawn = place < MAX_CELLS and record is group.records[0]
            architectures.append((record.path.resolve().name, group.name, *_architecture(record, drawn)))
    return render_page(
        "comparison",
        title=title,
        kind=kind,
        runs=len(records),
        left_out=left_out,
        groups=groups,
        drawn=MAX_CURVES,
        headings=["", "runs", "their seeds", f"{accuracy}, %", "each run", *[part.heading for part in costs]],
        rows=rows,
        differences=list(groups[0].differences),
        figure=data_uri(image_bytes(draw_comparison(groups[:MAX_CURVES], *CURVES[kind]))),
        architectures=architectures,
        **_pareto(groups),
    )


def _row(group: RunGroup, read: Read, costs: Sequence[CostPart]) -> list[str]:
    """A line of the table, of the runs that are comparable."""
    used, total = group.finished(read), len(group.records)
    values = used.values(read)
    return [
        group.name,
        str(total) if len(used.records) == total else f"{len(used.records)} of {total}",
        _seeds([dict(flat_settings(record.config)).get("seed") for record in used.records]) or NOTHING,
        mean_and_deviation(values),
        ", ".join(f"{value:.2f}" for value in values[:MAX_VALUES]) + (", ..." if len(values) > MAX_VALUES else ""),
        *[part.write(fmean(found)) if (found := used.last(part.key)) else NOTHING for part in costs],
    ]


def _pareto(groups: Sequence[RunGroup]) -> dict[str, Any]:
    """Plot of accuracy against size of the finished runs, and tables of those that no other one dominates."""
    runs = [(group.name, record) for group in groups for record in group.records]
    found = pareto([(name, record) for name, record in runs if record.finished])
    if found is None:
        return {"pareto": None}
    tables = []
    for quantity, (name, *_) in SIZES.items():
        best = found.best(quantity)
        rows = [(one.run, one.group, counted(one.costs[quantity]), f"{one.accuracy:.2f}") for one in best]
        tables += [(name, rows)] if rows else []
    return {
        "pareto": data_uri(image_bytes(draw_pareto(found, [group.name for group in groups]))),
        "pareto_accuracy": found.accuracy,
        "pareto_left_out": len(runs) - len(found.points),
        "pareto_tables": tables,
    }


def _architecture(record: RunRecord, drawn: bool) -> tuple[str, str]:
    """Image of the derived cells, empty unless they are ``drawn``, and the architecture as text."""
    if record.genotype is None:
        return "", "\n".join(f"{name}  {option}" for name, option in (record.choices or {}).items())
    image = data_uri(image_bytes(genotype_figure(record.genotype))) if drawn else ""
    return image, str(record.genotype)


def _seeds(values: Sequence[Any]) -> str:
    """Seeds in one line, three or more consecutive ones as ``5 to 999``."""
    numbers = all(type(value) is int for value in values)
    found = sorted(values) if numbers else list(values)
    if numbers and len(found) > 2 and found == [*range(found[0], found[0] + len(found))]:
        return f"{found[0]} to {found[-1]}"
    return ", ".join(setting_text(value) for value in found)


def draw_comparison(groups: Sequence[RunGroup], key: str, name: str) -> "Figure":
    """The accuracy over epochs and over forward passes: mean of each group and range of its runs."""
    from matplotlib.figure import Figure

    below = 0.7 + 0.2 * len(groups)
    height = 3.6 + below
    with house_style():
        figure = Figure(figsize=(10, height))
        left = figure.add_axes((0.07, below / height, 0.42, 3.2 / height))
        right = figure.add_axes((0.56, below / height, 0.42, 3.2 / height), sharey=left)
        for group, (style, shade) in zip(groups, [*product(STYLES, PALETTE)], strict=False):
            for axes, along in ((left, "epoch"), (right, "forward")):
                # the ranges of more groups than colors would be one gray
                ranges = len(groups) <= len(PALETTE)
                _draw_group(axes, group, along, key, ranges, {"color": shade, "linestyle": style})
        whole_numbers(left.xaxis)
        finish(left, f"{name[0].upper()}{name[1:]}", "epoch", "percent")
        finish(right, "Against cost", "forward passes", "")
        handles, labels = left.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="lower left", fontsize=8, frameon=False, ncols=1)
    return figure


def _draw_group(axes: "Axes", group: RunGroup, along: str, key: str, ranges: bool, looks: dict[str, Any]) -> None:
    points: dict[int, list[tuple[float, float]]] = {}
    for record in group.records:
        for row in record.epochs:
            x = row["epoch"] + 1 if along == "epoch" else row.get(along)
            if is_number(row.get(key)) and is_number(x):
                points.setdefault(row["epoch"], []).append((x, 100 * row[key]))
    if not points:
        return
    ordered = [points[epoch] for epoch in sorted(points)]
    x = [fmean(place for place, _ in each) for each in ordered]
    values = [[value for _, value in each] for each in ordered]
    marker = "o" if len(x) <= 15 else ""
    axes.plot(x, [*map(fmean, values)], label=plain(group.name), marker=marker, markersize=4, **looks)
    if ranges:
        low, high = [*map(min, values)], [*map(max, values)]
        axes.fill_between(x, low, high, color=looks["color"], alpha=0.15, linewidth=0)
