"""Draws what happened during a run: losses, accuracy, mixing weights and the estimator's two parts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgenas.report.figures import PALETTE, check_suffix, colour, dashes, house_style, plain, save_figure
from sgenas.report.run_folder import AlphaHistory, AlphaTable, RunRecord
from sgenas.spaces.genotype import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INNER, OUTER = "#0072B2", "#D55E00"
MOST_POINTS = 1000


def draw_curves(record: RunRecord) -> "Figure":
    """One figure of everything that `record` has data for; a panel without data says so."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    alphas = record.alphas
    tables = {} if alphas is None else alphas.tables
    estimator = any(
        len(_series(record.steps, "step", key, positive=True)[0]) for key in ("direct_norm", "indirect_norm")
    )
    known = sorted({key for row in record.epochs for key in row if key.startswith("true_")})
    signs = any(key.startswith(("skips_", "entropy_")) for row in record.epochs for key in row)
    rows = 1 + len(tables) + estimator + bool(known) + signs
    # a row of mixing weights is as high as its heat map needs to keep the edges' names apart
    edges = 0 if alphas is None else len(alphas.edges)
    heights = [2.9, *[max(2.9, 0.9 + 0.17 * edges)] * len(tables), *[2.4] * (estimator + bool(known) + signs)]
    with house_style():
        figure = Figure(
            figsize=(10, sum(heights) + (0.5 if tables else 0)),
            layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1),
        )
        grid = figure.add_gridspec(rows, 2, height_ratios=heights)
        _draw_losses(figure.add_subplot(grid[0, 0]), record)
        _draw_accuracy(figure.add_subplot(grid[0, 1]), record)
        for row, (name, table) in enumerate(tables.items(), start=1):
            assert alphas is not None
            _draw_means(figure.add_subplot(grid[row, 0]), name, table, alphas)
            cell = dict(record.genotype.cells).get(name) if record.genotype is not None else None
            _draw_strongest(figure.add_subplot(grid[row, 1]), name, table, alphas, cell)
        row = 1 + len(tables)
        if known:
            _draw_true(figure.add_subplot(grid[row, 0]), record, known)
            _draw_ranks(figure.add_subplot(grid[row, 1]), record, known)
            row += 1
        if signs:
            _draw_skips(figure.add_subplot(grid[row, 0]), record)
            _draw_sharpness(figure.add_subplot(grid[row, 1]), record)
            row += 1
        if estimator:
            _draw_estimator(figure.add_subplot(grid[row, :]), record)
        if alphas is not None and tables:
            _add_legend(figure, alphas.operations)
    return figure


def save_curves(record: RunRecord, path: str | Path) -> Path:
    """Saves `draw_curves` as PNG or SVG by the suffix; InvalidValueError for any other suffix."""
    check_suffix(path)
    return save_figure(draw_curves(record), path)


def _series(
    rows: Iterable[Mapping[str, Any]], x: str, y: str, *, positive: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (x, y) of the rows where y is a finite number; with `positive`, one above 0."""
    points = [
        (row[x], row[y])
        for row in rows
        if isinstance(row.get(y), int | float) and np.isfinite(row[y]) and (row[y] > 0 or not positive)
    ]
    array = np.array(points, dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most MOST_POINTS points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(x) <= MOST_POINTS:
        return x, y
    keep: set[int] = set()
    for stretch in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
        keep |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
    index = sorted(keep)
    return x[index], y[index]


def _markers(points: int) -> dict[str, Any]:
    """A marker on every point while there are few of them: a single one would otherwise not be seen."""
    return {"marker": "o", "markersize": 4} if points <= 15 else {}


def finish(axes: "Axes", title: str, xlabel: str, ylabel: str) -> None:
    """Title, labels and grid as every panel has them; one without data says so."""
    axes.set_title(title, size=10, loc="left", weight="bold")
    axes.set_xlabel(xlabel, size=9)
    axes.set_ylabel(ylabel, size=9)
    axes.tick_params(labelsize=8)
    if axes.get_yscale() == "linear":
        # 0.999991, not 1 and an offset in the corner
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    if not axes.has_data():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", color="#666666")


def _legend_above(axes: "Axes") -> None:
    """A legend in one line beside the title, where it covers no data."""
    axes.legend(
        fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, borderaxespad=0.0
    )


def whole_numbers(axis: "Axis") -> None:
    """Ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


LOSSES = {
    "search": (
        ("inner_loss", "inner_loss", "inner, epoch mean"),
        ("outer_loss", "outer_loss", "outer, epoch mean"),
    ),
    "training": (("loss", "train_loss", "training, epoch mean"), ("test_loss", "test_loss", "test")),
}
"""For each kind of run: key in step rows, key in epoch rows, name."""


def _draw_losses(axes: "Axes", record: RunRecord) -> None:
    shades = (INNER, OUTER)
    for (step_key, epoch_key, name), shade in zip(LOSSES[record.kind], shades, strict=True):
        x, y = _series(record.steps, "step", step_key)
        if len(x):
            axes.plot(*_thin(x, y), color=shade, alpha=0.3, linewidth=0.8)
        x, y = _series(record.epochs, "step", epoch_key)
        if len(x):
            style = "-" if shade == INNER else "--"
            axes.plot(x, y, style, color=shade, label=name, linewidth=1.8, **_markers(len(x)))
    if axes.get_legend_handles_labels()[0]:
        _legend_above(axes)
    finish(axes, "Losses", "step", "loss")


ACCURACIES = {
    "search": (
        ("val_accuracy", "supernet", INNER, "-"),
        ("derived_accuracy", "derived cell", OUTER, "--"),
        "Validation accuracy",
    ),
    "training": (
        ("test_accuracy", "test", OUTER, "--"),
        ("train_accuracy", "training", INNER, "-"),
        "Accuracy",
    ),
}
"""For each kind of run: key, name, colour and style of the accuracy that counts, of the other one; title."""


def _draw_accuracy(axes: "Axes", record: RunRecord) -> None:
    main, other, title = ACCURACIES[record.kind]
    key, name, shade, style = main
    x, y = _series(record.epochs, "epoch", key)
    if len(x):
        axes.plot(x + 1, 100 * y, style, color=shade, linewidth=1.8, label=name, **_markers(len(x)))
        axes.annotate(
            f"{100 * y[-1]:.1f} %",
            (x[-1] + 1, 100 * y[-1]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right" if len(x) > 1 else "center",
            size=9,
        )
        low, high = 100 * y.min(), 100 * y.max()
        classes = record.environment.get("classes")
        if isinstance(classes, list) and len(classes) > 1:
            chance = 100 / len(classes)
            low, high = min(low, chance), max(high, chance)
            axes.axhline(chance, color="#666666", linestyle="--", linewidth=1)
            axes.annotate(
                f"chance, {chance:.3g} %",
                (0.99, chance),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                size=8,
                color="#666666",
            )
        key, name, shade, style = other
        x, y = _series(record.epochs, "epoch", key)
        if len(x):
            axes.plot(x + 1, 100 * y, style, color=shade, linewidth=1.8, label=name, **_markers(len(x)))
            low, high = min(low, 100 * y.min()), max(high, 100 * y.max())
            _legend_above(axes)
        room = 0.15 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)
        whole_numbers(axes.xaxis)
    finish(axes, title, "epoch", "per cent")


SERIES = PALETTE[:4]
STYLES = ("-", "--", "-.", ":")


def _draw_by_epoch(
    axes: "Axes", record: RunRecord, keys: Mapping[str, str], *, positive: bool = False
) -> None:
    """A line over the epochs for each key, with its name."""
    for (key, name), shade, style in zip(keys.items(), SERIES, STYLES, strict=False):
        x, y = _series(record.epochs, "epoch", key, positive=positive)
        if len(x):
            axes.plot(x + 1, y, style, color=shade, linewidth=1.8, label=name, **_markers(len(x)))
    if axes.has_data():
        if len(keys) > 1:
            _legend_above(axes)
        whole_numbers(axes.xaxis)


def _draw_true(axes: "Axes", record: RunRecord, known: list[str]) -> None:
    _draw_by_epoch(axes, record, {key: key.removeprefix("true_").replace("16_120", "") for key in known})
    finish(axes, "True accuracy", "epoch", "per cent")


def _draw_ranks(axes: "Axes", record: RunRecord, known: list[str]) -> None:
    names = {key.replace("true_", "rank_"): key.removeprefix("true_").replace("16_120", "") for key in known}
    _draw_by_epoch(axes, record, names, positive=True)
    if axes.has_data():
        axes.set_yscale("log")
        axes.invert_yaxis()
    finish(axes, "Rank", "epoch", "rank")


def _draw_skips(axes: "Axes", record: RunRecord) -> None:
    names = sorted({key for row in record.epochs for key in row if key.startswith("skips_")})
    _draw_by_epoch(axes, record, {key: key.removeprefix("skips_") for key in names})
    if axes.has_data():
        axes.set_ylim(bottom=-0.3, top=max(1.3, axes.get_ylim()[1]))
        whole_numbers(axes.yaxis)
    finish(axes, "Skip connections in the cell", "epoch", "number")


def _draw_sharpness(axes: "Axes", record: RunRecord) -> None:
    """The largest eigenvalue where it was measured, the entropy of the edges otherwise."""
    if any("eigenvalue" in row for row in record.epochs):
        _draw_by_epoch(axes, record, {"eigenvalue": "alpha Hessian"})
        finish(axes, "Largest eigenvalue of the outer loss", "epoch", "eigenvalue")
        return
    names = sorted({key for row in record.epochs for key in row if key.startswith("entropy_")})
    _draw_by_epoch(axes, record, {key: key.removeprefix("entropy_") for key in names})
    finish(axes, "Entropy of the edges", "epoch", "share of the largest")


def _draw_means(axes: "Axes", name: str, table: AlphaTable, alphas: AlphaHistory) -> None:
    means = table.mixing.mean(axis=1)
    for operation, values in zip(alphas.operations, means.T, strict=True):
        axes.plot(
            alphas.epoch,
            values,
            color=colour(operation),
            linestyle=dashes(operation),
            linewidth=1.8,
            **_markers(len(values)),
        )
    whole_numbers(axes.xaxis)
    finish(axes, f"{plain(name)}: mean mixing weight of each operation", "finished epochs", "mean over edges")


def _draw_strongest(
    axes: "Axes", name: str, table: AlphaTable, alphas: AlphaHistory, cell: Cell | None
) -> None:
    """A band for each edge: its colour is the operation that leads, its thickness how far it leads the next.

    `none` is left aside: it can lead, but a genotype cannot take it. Tints instead of thickness would make
    the operations hard to tell apart.
    """
    from matplotlib.collections import PolyCollection

    chosen = [k for k, name in enumerate(alphas.operations) if name != "none"] or [0]
    mixing = table.mixing[:, :, chosen]
    ordered = np.sort(mixing, axis=2)
    lead = ordered[:, :, -1] - (ordered[:, :, -2] if len(chosen) > 1 else 0)
    largest = lead[np.isfinite(lead)].max(initial=0.0)
    bars, colours = [], []
    for time, edge in zip(*np.nonzero(np.isfinite(lead)), strict=True):
        half = 0.08 + 0.38 * (lead[time, edge] / largest if largest > 0 else 0.0)
        x = alphas.epoch[time]
        corners = ((-0.5, -half), (0.5, -half), (0.5, half), (-0.5, half))
        bars.append([(x + dx, edge + dy) for dx, dy in corners])
        colours.append(colour(alphas.operations[chosen[int(mixing[time, edge].argmax())]]))
    axes.add_collection(PolyCollection(bars, facecolors=colours, edgecolors="white", linewidths=0.3))
    axes.set_xlim(alphas.epoch[0] - 0.5, alphas.epoch[-1] + 0.5)
    axes.set_ylim(len(alphas.edges) - 0.5, -0.5)
    kept = set() if cell is None else {(edge.source, edge.target) for edge in cell.edges}
    finish(axes, f"{plain(name)}: leading operation of each edge", "finished epochs", "")
    axes.grid(visible=False)
    axes.set_yticks(
        range(len(alphas.edges)), [f"{source}→{target}" for source, target in alphas.edges], size=7.5
    )
    for label, edge in zip(axes.get_yticklabels(), alphas.edges, strict=True):
        label.set_fontweight("bold" if tuple(edge.tolist()) in kept else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    whole_numbers(axes.xaxis)


def _draw_estimator(axes: "Axes", record: RunRecord) -> None:
    for key, name, shade in (
        ("direct_norm", "direct part", INNER),
        ("indirect_norm", "indirect part", OUTER),
    ):
        by_epoch: dict[int, list[dict[str, Any]]] = {}
        for row in record.steps:
            by_epoch.setdefault(row["epoch"], []).append(row)
        means = []
        for rows in by_epoch.values():
            x, y = _series(rows, "step", key, positive=True)
            if len(x):
                means.append((x[-1], y.mean()))
        if means:
            axes.plot(
                *_thin(*_series(record.steps, "step", key, positive=True)),
                color=shade,
                alpha=0.3,
                linewidth=0.8,
            )
            x, y = np.array(means).T
            style = "-" if key == "direct_norm" else "--"
            axes.plot(
                x, y, style, color=shade, linewidth=1.8, label=f"{name}, epoch mean", **_markers(len(x))
            )
    if axes.has_data():
        axes.set_yscale("log")
        _legend_above(axes)
    finish(axes, "Hypergradient: norm of its parts", "step", "norm")


def _add_legend(figure: "Figure", operations: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(name), linestyle=dashes(name), linewidth=3, label=plain(name))
        for name in operations
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
        frameon=False,
        handlelength=4,
        title="Right: the further an operation leads the next one (none left aside), the thicker its band;"
        " bold edges are in the genotype.",
        title_fontsize=8.5,
    )
