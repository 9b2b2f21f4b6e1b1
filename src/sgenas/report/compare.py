"""Several runs side by side: grouped by their settings, mean and deviation over seeds, on one page."""

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sgenas.errors import InvalidValueError, RunFolderError, RunWarning, SgenasError
from sgenas.files import replacing
from sgenas.report.cell_svg import cell_svg
from sgenas.report.curves import finish, whole_numbers
from sgenas.report.figures import PALETTE, house_style, inline_svg, plain
from sgenas.report.html import render_page
from sgenas.report.page import COSTS, NOTHING, flat_settings, is_number, setting_text
from sgenas.report.run_folder import RunRecord, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACY = {"search": ("val_accuracy", "validation accuracy"), "training": ("test_accuracy", "test accuracy")}
STYLES = ("-", "--", "-.", ":")
SEED = "seed"
FIRST = ("method", "estimator")
"""Settings that name a group before any other, and by their values alone: most others follow from them."""
MOST_LINES = 20
"""Groups whose curves are drawn: more lines in one plot could not be told apart."""
MOST_CELLS = 40
"""Runs whose cells are drawn: 1,000 of them make a page that no browser likes."""


@dataclass(frozen=True)
class Group:
    """Runs whose settings differ in nothing but the seed.

    `name` tells it from the others by few settings; `differences` has every setting in which groups differ.
    """

    name: str
    differences: dict[str, str]
    records: tuple[RunRecord, ...]

    def last(self, key: str) -> list[float]:
        """The number `key` of the last finished epoch of each run that has it."""
        rows = [record.epochs[-1] for record in self.records if record.epochs]
        return [float(row[key]) for row in rows if is_number(row.get(key))]


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """The records by their settings, in the order given, named by the settings that differ."""
    cells: dict[Hashable, int] = {}
    by_settings: dict[Hashable, tuple[dict[str, Any], list[RunRecord]]] = {}
    for record in records:
        own = _settings(record, cells)
        by_settings.setdefault(_frozen(own), (own, []))[1].append(record)
    found = list(by_settings.values())
    names = list(dict.fromkeys(name for own, _ in found for name in own))
    differ = [name for name in names if any(own.get(name) != found[0][0].get(name) for own, _ in found)]
    tables = [{name: setting_text(own.get(name)) for name in differ} for own, _ in found]
    telling = _telling(tables)
    groups = []
    for table, (_, members) in zip(tables, found, strict=True):
        short = ", ".join(_said(name, table[name]) for name in telling)
        groups.append(Group(short or members[0].path.resolve().name, table, tuple(members)))
    return groups


def _said(name: str, text: str) -> str:
    """A setting in the name of a group; the last part of a dotted name is what the flag is called."""
    flag = name.rpartition(".")[2]
    return text if flag in FIRST else f"{flag} {text}"


def _telling(tables: Sequence[dict[str, str]]) -> list[str]:
    """Few settings that tell the tables apart: method and estimator before what follows from them."""
    names = sorted(tables[0], key=lambda name: name.rpartition(".")[2] not in FIRST)
    chosen: list[str] = []
    for name in names:
        apart = len({tuple(table[one] for one in chosen) for table in tables})
        if apart == len(tables):
            break
        if len({tuple(table[one] for one in [*chosen, name]) for table in tables}) > apart:
            chosen.append(name)
    return chosen


def _settings(record: RunRecord, cells: dict[Hashable, int]) -> dict[str, Any]:
    """The settings but for the seed; the cells that a training was given are told by their number in `cells`,
    which new ones are added to."""
    own = {name: value for name, value in record.config.items() if name not in (SEED, "genotype")}
    found = dict(flat_settings(own))
    if "genotype" in record.config:
        given = _frozen(record.config["genotype"])
        found["genotype"] = f"cells {cells.setdefault(given, len(cells) + 1)}"
    return found


def _frozen(value: Any) -> Hashable:
    """Plain data as something to look up by: equal for what is equal, whatever the order of the keys."""
    if isinstance(value, Mapping):
        return frozenset((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    found: Hashable = value
    return found


def best_first(groups: Iterable[Group], key: str) -> list[Group]:
    """By the mean of the number `key` of their last epochs; groups without one at the end."""
    return sorted(groups, key=lambda group: -fmean(group.last(key) or [-math.inf]))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None] | None:
    """Mean and sample deviation (None for a single value) of what is there; None for nothing."""
    if not values:
        return None
    return fmean(values), stdev(values) if len(values) > 1 else None


def write_comparison(paths: Iterable[str | Path], out: str | Path) -> Path:
    """Writes one page about the run folders `paths` to `out` and returns its path; an old one is replaced.

    A run that cannot be read hides none of the others: the page and a RunWarning name it. Raises what
    `read_run` raises where none can be read; InvalidValueError for a folder given twice and for searches
    beside trainings, whose accuracies are of different images; RunFolderError when `out` cannot be written.
    """
    records, left_out = _read(paths)
    seen: set[Path] = set()
    for record in records:
        place = record.path.resolve()
        if place in seen:
            raise InvalidValueError(f"runs must be given once, got {place} twice")
        seen.add(place)
    kinds = sorted({record.kind for record in records})
    if len(kinds) != 1:
        raise InvalidValueError(f"runs must be all searches or all trainings, got {' and '.join(kinds)}")
    out = Path(out)
    if out.is_dir():
        raise RunFolderError(f"{out} must be a file to write, got a folder")
    with replacing(out) as file:
        file.write(render_comparison(records, out.stem, left_out).encode("utf-8", errors="replace"))
    for reason in left_out:
        warnings.warn(f"left out: {reason}", RunWarning, stacklevel=2)
    return out


def _read(paths: Iterable[str | Path]) -> tuple[list[RunRecord], list[str]]:
    """(the runs that can be read, why the others cannot)."""
    records, errors = [], []
    for path in paths:
        try:
            records.append(read_run(path, brief=True))
        except SgenasError as error:
            errors.append(error)
    if errors and not records:
        raise errors[0]
    return records, [str(error) for error in errors]


def render_comparison(records: Sequence[RunRecord], title: str, left_out: Sequence[str] = ()) -> str:
    """The page as text; equal records give equal text. All are of one kind. left_out: a line for each run
    that should be here and cannot.

    With more than MOST_LINES groups they stand best first, and only the first have curves; of more than
    MOST_CELLS runs only the first of each of these groups has its cells drawn.
    """
    groups, kind = grouped(records), records[0].kind
    key, accuracy = ACCURACY[kind]
    if len(groups) > MOST_LINES:
        groups = best_first(groups, key)
    drawn = groups[:MOST_LINES]
    costs = [part for part in COSTS if any(group.last(part.key) for group in groups)]
    rows = []
    for group in groups:
        figures = mean_and_deviation([100 * value for value in group.last(key)])
        rows.append(
            [
                group.name,
                str(len(group.records)),
                _seeds(dict(flat_settings(one.config)).get(SEED) for one in group.records),
                _per_cent(figures),
                *[_mean(group.last(part.key), part.write) for part in costs],
            ]
        )
    figure = inline_svg(draw_comparison(drawn, key, accuracy), "accuracy", f"{accuracy} of the groups")
    few = len(records) <= MOST_CELLS
    shown = [(group, one) for group in drawn for one in (group.records if few else group.records[:1])]
    return render_page(
        "comparison",
        title=title,
        kind={"search": "searches", "training": "trainings"}[kind],
        runs=len(records),
        left_out=left_out,
        groups=groups,
        headings=["", "runs", "seeds", f"{accuracy}, %", *[part.heading for part in costs]],
        rows=rows,
        differences=list(groups[0].differences),
        drawn=len(drawn),
        shaded=shaded(drawn),
        figure=Markup(figure),
        cells=[(one.path.resolve().name, group.name, _cells(one)) for group, one in shown],
    )


def _seeds(values: Iterable[Any]) -> str:
    """Seeds in a line, in their order, those that count up as 5 to 999."""
    found = list(values)
    if all(type(value) is int for value in found):
        found.sort()
    stretches: list[list[Any]] = []
    for value in found:
        if stretches and type(value) is int and stretches[-1][-1] == value - 1:
            stretches[-1].append(value)
        else:
            stretches.append([value])
    texts = []
    for stretch in stretches:
        ends = f"{stretch[0]} to {stretch[-1]}"
        texts += [ends] if len(stretch) > 2 else [setting_text(value) for value in stretch]
    return ", ".join(texts)


def shaded(groups: Sequence[Group]) -> bool:
    """Whether the ranges of the groups are drawn: of more groups than colours they would be one grey."""
    return len(groups) <= len(PALETTE)


def draw_comparison(groups: Sequence[Group], key: str, name: str) -> "Figure":
    """The accuracy over epochs and over forward passes: the mean of each group and, where they are `shaded`,
    the range of its runs."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with house_style():
        figure = Figure(
            figsize=(10, 3.6 + 0.25 * len(groups)), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
        )
        left, right = figure.subplots(1, 2, sharey=True)
        styles = cycle([(shade, style) for style in STYLES for shade in PALETTE])
        for group, (shade, style) in zip(groups, styles, strict=False):
            for axes, along in ((left, "epoch"), (right, "forward")):
                _draw_group(axes, group, along, key, shade, style, with_range=shaded(groups))
        whole_numbers(left.xaxis)
        finish(left, f"{name[0].upper()}{name[1:]}", "epoch", "per cent")
        finish(right, "The same over what it took", "forward passes", "")
        handles, labels = left.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False, ncols=1)
    return figure


def _draw_group(
    axes: "Axes", group: Group, along: str, key: str, shade: str, style: str, *, with_range: bool
) -> None:
    runs: dict[int, list[tuple[float, float]]] = {}
    for record in group.records:
        for row in record.epochs:
            x = row["epoch"] + 1 if along == "epoch" else row.get(along)
            if is_number(row.get(key)) and is_number(x):
                runs.setdefault(row["epoch"], []).append((x, 100 * row[key]))
    if not runs:
        return
    points = [runs[epoch] for epoch in sorted(runs)]
    x = [fmean(place for place, _ in each) for each in points]
    values = [[value for _, value in each] for each in points]
    axes.plot(
        x,
        [fmean(each) for each in values],
        color=shade,
        linestyle=style,
        label=plain(group.name),
        marker="o" if len(x) <= 15 else "",
        markersize=4,
    )
    if not with_range:
        return
    axes.fill_between(
        x,
        [min(each) for each in values],
        [max(each) for each in values],
        color=shade,
        alpha=0.15,
        linewidth=0,
    )


def _per_cent(figures: tuple[float, float | None] | None) -> str:
    if figures is None:
        return NOTHING
    mean, deviation = figures
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} \u00b1 {deviation:.2f}"


def _mean(values: Sequence[float], write: Callable[[float], str]) -> str:
    return write(fmean(values)) if values else NOTHING


def _cells(record: RunRecord) -> list[tuple[str, Markup]]:
    if record.genotype is None:
        return []
    return [(name, cell_svg(cell, f"{name} cell: {cell}")) for name, cell in record.genotype.cells]
