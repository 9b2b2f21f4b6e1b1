"""Draws the course of a run: losses, accuracy, mixing weights, entropy, gradient norms and the rest."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgenas.report.formatting import is_number
from sgenas.report.run_record import AlphaHistory, MixingTable, RunRecord
from sgenas.report.style import GRAY, PALETTE, STYLES, color, dashes, house_style, plain
from sgenas.spaces.genotype import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MAX_POINTS = 1000
MAX_NAMED = 6
"""Lines of a panel that have a color and a name; of more, all are gray and their mean is drawn."""
WIDTH, LEFT, GAP, RIGHT, ABOVE, BELOW = 10.0, 0.85, 0.95, 0.15, 0.38, 0.55
"""Inches: of the figure, and around the panels. Fixed margins take a fraction of a layout engine's time."""
Series = tuple[NDArray[Any], NDArray[np.float64]]


@dataclass(frozen=True)
class Panel:
    """A plot of a few lines.

    Args:
        lines: (x, y) by name.
        faint: Thin lines behind those of the same name.
        scale: ``"linear"`` or ``"log"``.
        extent: Values of y that the axis always includes.
        level: A horizontal line and its name.
        operations: Whether the lines are operations, which have fixed colors and a common legend.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Mapping[str, Series]
    faint: Mapping[str, Series] = field(default_factory=dict)
    scale: str = "linear"
    extent: tuple[float, ...] = ()
    level: tuple[float, str] | None = None
    operations: bool = False

    def draw(self, axes: "Axes") -> None:
        """Draws the lines, a point on each value of short ones; of many lines, gray ones and their mean."""
        lines, many = dict(self.lines), len(self.lines) > MAX_NAMED and not self.operations
        if many:
            for x, y in lines.values():
                axes.plot(x, y, color=GRAY, linewidth=0.8, alpha=0.6)
            x, same = next(iter(lines.values()))[0], [y for _, y in lines.values()]
            lines = {f"mean of {len(lines)}": (x, np.mean(same, axis=0))} if len({*map(len, same)}) == 1 else {}
        names = list(dict.fromkeys([*self.faint, *lines]))
        for number, name in enumerate(names):
            shade, style = PALETTE[number % len(PALETTE)], STYLES[number % len(STYLES)]
            looks: dict[str, Any] = {"color": shade, "linestyle": style}
            if self.operations:
                looks = {"color": color(name), "linestyle": dashes(name)}
            if name in self.faint:
                axes.plot(*_thin(*self.faint[name]), color=looks["color"], alpha=0.3, linewidth=0.8)
            if name in lines:
                x, y = lines[name]
                marker: dict[str, Any] = {"marker": "o", "markersize": 4} if len(x) <= 15 else {}
                axes.plot(x, y, label=plain(name), linewidth=1.8, **looks, **marker)
        if axes.has_data():
            axes.set_yscale(self.scale)
            if self.xlabel != "step":
                whole_numbers(axes.xaxis)
            if self.level is not None:
                self._draw_level(axes, *self.level)
            values = (*axes.get_ylim(), *self.extent)
            axes.set_ylim(min(values), max(values))
            if not self.operations and (many or len(self.lines) > 1):
                _legend(axes, self.title)
        finish(axes, self.title, self.xlabel, self.ylabel)

    @staticmethod
    def _draw_level(axes: "Axes", y: float, name: str) -> None:
        axes.axhline(y, color="#666666", linestyle="--", linewidth=0.8, zorder=0)
        axes.text(0.99, y, name, transform=axes.get_yaxis_transform(), ha="right", va="bottom", size=8)


def draw_curves(record: RunRecord) -> "Figure":
    """One figure of everything that ``record`` has data for."""
    from matplotlib.figure import Figure

    if record.config.get("strategy", "gradient") != "gradient":
        record = replace(record, alphas=None)  # nothing has trained them
    tables = {} if record.alphas is None else record.alphas.tables
    cells = {name: table for name, table in tables.items() if table.edges is not None}
    rows: list[tuple[float, list[Callable[[Axes], None]]]] = [(2.2, [_losses(record).draw, _accuracies(record).draw])]
    for name, table in cells.items():
        assert record.alphas is not None
        epoch = record.alphas.epoch
        cell = dict(record.genotype.cells).get(name) if record.genotype is not None else None
        leaders = partial(_draw_leaders, name=name, table=table, epoch=epoch, cell=cell)
        # high enough to keep the names of the edges apart
        rows.append((max(2.2, 0.17 * len(table.edges or ())), [_means(name, table, epoch).draw, leaders]))
    panels = [panel for panel in _optional(record) if panel.lines]
    rows += [(1.8, [one.draw for one in panels[at : at + 2]]) for at in range(0, len(panels), 2)]
    bottom = 0.8 if cells else 0.0
    height = bottom + sum(inches + ABOVE + BELOW for inches, _ in rows)
    width = (WIDTH - LEFT - GAP - RIGHT) / 2
    with house_style():
        figure = Figure(figsize=(WIDTH, height))
        top = height
        for inches, draws in rows:
            top -= ABOVE + inches
            for column, draw in enumerate(draws):
                left = LEFT + column * (width + GAP)
                draw(figure.add_axes((left / WIDTH, top / height, width / WIDTH, inches / height)))
            top -= BELOW
        if cells:
            _add_legend(figure, next(iter(cells.values())).options)
    return figure


def _lines(rows: Sequence[Mapping[str, Any]], x: str, keys: Mapping[str, str], unit: float = 1.0) -> dict[str, Series]:
    """For each of ``keys``, by name, the points (x, unit y) of the rows with a finite number y; none without points."""
    found = {}
    for name, key in keys.items():
        points = [(row[x], unit * row[key]) for row in rows if is_number(row.get(key))]
        if points:
            array = np.array(points, dtype=float)
            # the first epoch ends at 1
            found[name] = array[:, 0] + (x == "epoch"), array[:, 1]
    return found


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> Series:
    """At most MAX_POINTS points: the lowest and the highest of each stretch, so that every spike stays."""
    if len(x) <= MAX_POINTS:
        return x, y
    keep: set[int] = set()
    for stretch in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        keep |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
    index = sorted(keep)
    return x[index], y[index]


def finish(axes: "Axes", title: str, xlabel: str, ylabel: str) -> None:
    """Title, labels and grid of every panel; a panel without data says so."""
    # fixed positions: matplotlib would measure every tick label, which takes half of the drawing's time
    axes.set_title(title, size=10, loc="left", weight="bold", y=1.0)
    axes.set_xlabel(xlabel, size=9)
    axes.set_ylabel(ylabel, size=9)
    width, height = axes.bbox.transformed(axes.figure.dpi_scale_trans.inverted()).size
    axes.xaxis.set_label_coords(0.5, -0.27 / height)
    axes.yaxis.set_label_coords(-0.5 / width, 0.5)
    axes.tick_params(labelsize=8)
    if axes.get_yscale() == "linear":
        # 0.999991 instead of 1 with an offset in the corner
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.locator_params(axis="y", nbins=5)
    else:
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    if not axes.has_data():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", color="#666666")


def _legend(axes: "Axes", title: str) -> None:
    """A legend beside the title, where it covers no data, if there is room; else inside."""
    where: dict[str, Any] = {"loc": "best", "ncols": 2, "framealpha": 0.7, "edgecolor": "none"}
    # in letters: a line in front of a label is as wide as 4, a panel as 55
    if len(title) + sum(4 + len(label) for label in axes.get_legend_handles_labels()[1]) <= 55:
        where = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "borderaxespad": 0, "ncols": 3, "frameon": False}
    axes.legend(fontsize=8, columnspacing=0.8, handlelength=1.4, **where)


def whole_numbers(axis: "Axis") -> None:
    """Ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _losses(record: RunRecord) -> Panel:
    means = {"inner": "inner_loss", "outer": "outer_loss"}
    steps = means
    if record.kind == "training":
        means, steps = {"training": "train_loss", "test": "test_loss"}, {"training": "loss"}
    lines, faint = _lines(record.epochs, "step", means), _lines(record.steps, "step", steps)
    return Panel("Losses, epoch means", "step", "loss", lines, faint)


def _accuracies(record: RunRecord) -> Panel:
    title, keys = "Validation accuracy", {"supernet": "val_accuracy", "derived": "derived_accuracy"}
    if record.kind == "training":
        title, keys = "Accuracy", {"test": "test_accuracy", "training": "train_accuracy"}
    classes = record.environment.get("classes")
    level = None
    if isinstance(classes, list) and len(classes) > 1:
        level = 100 / len(classes), f"chance, {100 / len(classes):.3g} %"
    return Panel(title, "epoch", "percent", _lines(record.epochs, "epoch", keys, 100), level=level)


def _means(name: str, table: MixingTable, epoch: NDArray[np.int64]) -> Panel:
    lines = {option: (epoch, y) for option, y in zip(table.options, table.weights.mean(axis=1).T, strict=True)}
    equal = 1 / len(table.options)
    title = f"{plain(name)}: mean mixing weight per option"
    # a tiny change must look tiny: the axis has 0.5 to 1.5 times the weight of an undecided option
    extent = (0.5 * equal, 1.5 * equal)
    return Panel(title, "finished epochs", "mean over edges", lines, extent=extent, operations=True)


def _draw_leaders(axes: "Axes", name: str, table: MixingTable, epoch: NDArray[np.int64], cell: Cell | None) -> None:
    """A band per edge: its color is the leading operation, its thickness the lead as a share of the weight.

    ``none`` is left out: a derived cell of DARTS cannot have it, however large its weight.
    """
    from matplotlib.collections import PolyCollection

    assert table.edges is not None
    kept = [k for k, option in enumerate(table.options) if option != "none"] or [0]
    weights = table.weights[:, :, kept]
    ordered = np.sort(weights, axis=2)
    largest = ordered[:, :, -1]
    lead = largest - (ordered[:, :, -2] if len(kept) > 1 else 0)
    share = np.divide(lead, largest, out=np.zeros_like(lead), where=largest > 0)
    bands, colors = [], []
    for time, edge in zip(*np.nonzero(np.isfinite(lead)), strict=True):
        half, x = 0.06 + 0.38 * share[time, edge], epoch[time]
        bands.append([(x - 0.5, edge - half), (x + 0.5, edge - half), (x + 0.5, edge + half), (x - 0.5, edge + half)])
        colors.append(color(table.options[kept[int(weights[time, edge].argmax())]]))
    axes.add_collection(PolyCollection(bands, facecolors=colors, edgecolors="white", linewidths=0.3))
    axes.set_xlim(epoch[0] - 0.5, epoch[-1] + 0.5)
    axes.set_ylim(len(table.edges) - 0.5, -0.5)
    finish(axes, f"{plain(name)}: leading option per edge", "finished epochs", "")
    axes.grid(visible=False)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    whole_numbers(axes.xaxis)
    derived = set() if cell is None else {(edge.source, edge.target) for edge in cell.edges}
    # texts instead of tick labels: a tick also has two marks and a grid line, each made at a cost
    for row, (source, target) in enumerate(table.edges):
        weight = "bold" if (source, target) in derived else "normal"
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
        axes.text(-0.01, row, f"{source}→{target}", weight=weight, size=7.5, **place)


def _optional(record: RunRecord) -> list[Panel]:
    """Panels of what only some runs have; the others have no lines."""
    keys = sorted({key for row in record.epochs for key in row})

    def found(prefix: str) -> dict[str, Series]:
        chosen = [key for key in keys if key.startswith(prefix)]
        names = {key.removeprefix(prefix).removesuffix("16_120") or key: key for key in chosen}
        return _lines(record.epochs, "epoch", names)

    ranking = _lines(record.epochs, "epoch", {"Kendall's tau": "kendall_tau", "Spearman's rho": "spearman"})
    ranks = {name: (x, np.maximum(y, 1)) for name, (x, y) in found("rank_").items()}
    return [
        *_choices(record.alphas),
        Panel("Tabulated accuracy", "epoch", "percent", found("tabulated_")),
        Panel("Tabulated rank (1 is best)", "epoch", "rank", ranks, scale="log"),
        Panel("Supernet's ranking of architectures", "epoch", "rank correlation", ranking, extent=(0,)),
        Panel("Candidates, best so far", "candidate", "percent", *_candidates(record)),
        Panel("Entropy of the mixing weights", "epoch", "share of the maximum", found("entropy_"), extent=(0.9, 1.005)),
        Panel("Skip connections", "epoch", "number", found("skips_"), extent=(-0.1, 1.1)),
        Panel("Largest eigenvalue in alpha", "epoch", "eigenvalue", found("eigenvalue")),
        Panel("Gradient norms", "step", "norm, epoch mean", _norms(record), scale="log"),
        *_indirect(record),
    ]


def _candidates(record: RunRecord) -> tuple[dict[str, Series], dict[str, Series]]:
    """Validation accuracy of the best architecture that the selection had measured so far, and of each."""
    rows = [row["accuracy"] for row in record.candidates if "architecture" in row and is_number(row.get("accuracy"))]
    x, y = np.arange(1, len(rows) + 1), 100 * np.array(rows, dtype=float)
    return ({"best": (x, np.maximum.accumulate(y))}, {"best": (x, y)}) if rows else ({}, {})


def _indirect(record: RunRecord) -> list[Panel]:
    """How the indirect gradient compares with the direct one, and what its noise adds to that of the batches."""
    compared = _lines(record.epochs, "epoch", {"norm": "hypergradient_share", "cosine": "cosine"})
    added = _lines(record.steps, "step", {"added": "added_variance_share"})
    count = _lines(record.steps, "step", {"directions": "num_directions"})
    estimator = record.config.get("estimator")
    limit = estimator.get("max_added_variance") if isinstance(estimator, dict) and count else None
    level = (limit, "limit") if is_number(limit) else None
    share = "share of the batches' variance"
    return [
        Panel("Indirect gradient", "epoch", "relative to direct", compared, extent=(0,)),
        Panel("Variance added by directions", "step", share, added, extent=(0,), level=level),
        Panel("Chosen directions", "step", "number", count, extent=(0,)),
    ]


def _choices(alphas: AlphaHistory | None) -> list[Panel]:
    """Largest mixing weight of each choice of a module, and its lead over the next option."""
    tables = {} if alphas is None else alphas.tables
    choices = {name: np.sort(table.weights[:, 0]) for name, table in tables.items() if table.edges is None}
    if alphas is None or not choices:
        return []
    largest = {name: (alphas.epoch, weights[:, -1]) for name, weights in choices.items()}
    leads = {name: (alphas.epoch, w[:, -1] - w[:, -2]) for name, w in choices.items() if w.shape[1] > 1}
    return [
        Panel("Largest weight per choice", "finished epochs", "mixing weight", largest, extent=(0, 1)),
        Panel("Lead per choice", "finished epochs", "difference of weights", leads, extent=(0, 1)),
    ]


def _norms(record: RunRecord) -> dict[str, Series]:
    """Means over each epoch's steps of positive norms, at its last step."""
    lines = {}
    for name, key in (("direct", "direct_norm"), ("indirect", "indirect_norm"), ("weights", "weight_grad_norm")):
        by_epoch: dict[int, list[tuple[int, float]]] = {}
        for row in record.steps:
            if is_number(row.get(key)) and row[key] > 0:
                by_epoch.setdefault(row["epoch"], []).append((row["step"], row[key]))
        if by_epoch:
            means = np.array([(points[-1][0], fmean(norm for _, norm in points)) for points in by_epoch.values()])
            lines[name] = means[:, 0], means[:, 1]
    return lines


def _add_legend(figure: "Figure", options: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    looks = [(name, color(name), dashes(name)) for name in options]
    figure.legend(
        handles=[Line2D([], [], color=c, linestyle=d, linewidth=3, label=plain(n)) for n, c, d in looks],
        loc="lower center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
        handlelength=4,
        title="Leading option: the thicker the band, the larger its lead; bold edges are derived.",
        title_fontsize=8.5,
    )
