"""Tables and plots of a hypergradient benchmark, from its results file alone.

Every figure is ``{"mean": ..., "error": ...}`` over sampled batches; errors are standard errors, None for one
batch. Squared errors are relative MSEs of the indirect gradient: 1 is what leaving it out costs.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgenas.errors import RunDirError
from sgenas.files import read_json, write_text
from sgenas.report.style import PALETTE, house_style, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT, VERSION, FILE = "sgenas-hypergradients", 1, "results.json"
Record = dict[str, Any]
AXES = {
    "warmup_steps": "warm-up steps",
    "inner_steps": "inner steps N",
    "batch_size": "batch size",
    "inner_lr": "inner learning rate",
    "q": "directions Q",
    "mu": "smoothing mu",
}
"""Key of a row -> name of the axis."""
CONDITION = ("warmup_steps", "inner_steps", "batch_size", "inner_lr")
PARTS = {"whole": "hypergradient", "indirect": "indirect gradient"}
FIGURES = ("cosine", "relative_error", "squared_error", "bias", "variance")
ERROR = "relative MSE of the indirect gradient"
FLOOR = 1e-8
"""Smaller errors are drawn here: exact estimators would leave the rest of a plot no room."""
MARKERS = "os^DvPX"


def read_results(path: str | Path) -> Record:
    """The results file of a benchmark, or the one in a directory.

    Raises:
        RunDirError: If it is missing or lacks a part.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    found = read_json(path, FORMAT, VERSION)
    for name, kind in (("settings", dict), ("facts", dict), ("rows", list), ("reference_rows", list)):
        if not isinstance(found.get(name), kind):
            raise RunDirError(f"{path}: {name} must be of type {kind.__name__}")
    return found


def write_report(directory: str | Path) -> list[Path]:
    """Writes report.md, report.csv and the plots that have data next to the results; returns their paths.

    Raises:
        RunDirError: If ``directory`` holds no results, or a file cannot be written.
    """
    directory, results = Path(directory), read_results(directory)
    try:
        texts = {"report.md": markdown_table(results), "report.csv": csv_table(results)}
        figures = draw(results)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunDirError(f"{directory / FILE} is damaged: {error!r}") from None
    for name, text in texts.items():
        write_text(directory / name, text)
    for name, figure in figures.items():
        save_figure(figure, directory / f"{name}.png")
    return [directory / name for name in (*texts, *(f"{name}.png" for name in figures))]


def csv_table(results: Record) -> str:
    """One line per condition and estimator, every figure followed by its standard error."""
    steps = sorted({entry["step"] for row in results["rows"] for entry in row.get("real", [])})
    lines = []
    for row in results["rows"]:
        line = {name: row.get(name) for name in (*CONDITION, "estimator", "draws", "batches", "passes", "seconds")}
        for part in PARTS:
            figures = {name: row.get(part, {}).get(name, {}) for name in FIGURES}
            figures |= {f"real_{step:g}": {} for step in steps}
            figures |= {f"real_{entry['step']:g}": entry[part] for entry in row.get("real", [])}
            for name, figure in figures.items():
                line |= {f"{part}_{name}": figure.get("mean"), f"{part}_{name}_error": figure.get("error")}
        lines.append(line | {"failed": row.get("failed")})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def markdown_table(results: Record) -> str:
    """One table per condition, best estimator first, with the reference hypergradient it is measured against."""
    facts = results["facts"]
    text = [
        f"# Hypergradients of `{results['settings']['problem']}`",
        "",
        f"{facts['alphas']:,} alphas, {facts['weights']:,} weights. Figures are means over sampled batches with"
        " standard errors. `relative MSE` = bias² + variance, of the indirect gradient against automatic"
        " differentiation; 1 is what leaving it out costs. `real` is the same against central finite differences"
        " of the outer objective. `added variance share` is the variance of the estimates on the same batches, divided"
        " by the variance of the direct gradient across batches. 1 pass is one forward and one backward of the"
        " supernet on one batch.",
    ]
    for condition in sorted({tuple(row[name] for name in CONDITION) for row in results["rows"]}):
        named = dict(zip(CONDITION, condition, strict=True))
        truth = next((row for row in results["reference_rows"] if named.items() <= row.items()), None)
        text += ["", "## " + ", ".join(f"{AXES[name]} {value:g}" for name, value in named.items()), ""]
        if truth is not None and number(truth["share"]):
            text += [f"‖indirect‖ / ‖direct‖ = {number(truth['share'])} by automatic differentiation."]
            spread = truth["spread"]["indirect"]
            text += [f"Variance of the reference across batches: {spread:.3g} of its squared norm."] if spread else []
            text += [""]
        text += [
            "| estimator | passes | seconds | cosine | relative MSE | bias² | variance | added variance share | real |"
            " relative MSE times passes | relative error of the hypergradient |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        step = None if truth is None else truth["best_step"]
        batches = None if truth is None else truth.get("direct_variance")
        text += [_line(row, step, batches) for row in sorted(_of(results["rows"], named), key=_error)]
    return "\n".join(text) + "\n"


def _of(rows: Iterable[Record], named: Mapping[str, Any]) -> list[Record]:
    return [row for row in rows if named.items() <= {name: row[name] for name in named}.items()]


def _line(row: Record, step: int | None, batches: float | None) -> str:
    if "indirect" not in row:
        return f"| `{row['estimator']}` | failed: {row['reason']} |" + " |" * 9
    added = row.get("added_variance")
    part, squared = row["indirect"], row["indirect"]["squared_error"]["mean"]
    cells = [
        f"`{row['estimator']}`" + (f" (failed on {row['failed']} batches)" if row.get("failed") else ""),
        f"{row['passes']:.4g}",
        f"{row['seconds']:.3g}",
        *(number(part[name]) for name in ("cosine", "squared_error", "bias", "variance")),
        f"{added / batches:.3g}" if added and batches else "",
        number(row["real"][step]["indirect"]) if step is not None and row["real"] else "",
        "" if squared is None else f"{squared * row['passes']:.3g}",
        number(row["whole"]["relative_error"]),
    ]
    return "| " + " | ".join(cells) + " |"


def number(figure: Mapping[str, float | None]) -> str:
    """A mean with its standard error, three digits; empty if there is none."""
    mean, error = figure["mean"], figure["error"]
    if mean is None:
        return ""
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.2g}"


def _error(row: Record) -> float:
    """The relative MSE, infinite if there is none."""
    found = row.get("indirect", {}).get("squared_error", {}).get("mean")
    return float("inf") if found is None else float(found)


def draw(results: Record) -> dict[str, "Figure"]:
    """{file name without suffix: figure}: error against passes, seconds and each axis with several values."""
    problem = results["settings"]["problem"]
    rows = [row for row in results["rows"] if _error(row) < float("inf")]
    if not rows:
        return {}
    found = {}
    for cost, name in (("passes", "passes"), ("seconds", "seconds")):
        found[f"error-against-{cost}"] = _panels(problem, rows, cost, name, lambda row: str(row["estimator"]))
    for axis, name in AXES.items():
        along = [row for row in rows if row[axis] is not None]
        if len({row[axis] for row in along}) > 1:
            file = f"error-against-{axis.replace('_', '-')}"
            found[file] = _panels(problem, along, axis, name, partial(_without, option=axis))
    return found


def _without(row: Record, option: str) -> str:
    """The estimator without the option that varies along the axis, so that its rows form one line."""
    kind, _, options = str(row["estimator"]).partition(":")
    kept = ",".join(part for part in options.split(",") if part.partition("=")[0] != option)
    return f"{kind}:{kept}" if kept else kind


def _panels(problem: str, rows: Sequence[Record], axis: str, label: str, line_of: Callable[[Record], str]) -> "Figure":
    """A panel per warm-up and N (unless that is the axis), a line per estimator."""
    from matplotlib.figure import Figure

    split = [name for name in ("warmup_steps", "inner_steps") if name != axis]
    held = {name: min(row[name] for row in rows) for name in ("batch_size", "inner_lr") if name != axis}
    rows = _of(rows, held)
    places = sorted({tuple(row[name] for name in split) for row in rows})
    names = list(dict.fromkeys(line_of(row) for row in rows))
    across = min(3, len(places))
    down = -(-len(places) // across)
    with house_style():
        height = 3.2 * down + 0.5 + 0.2 * len(names)
        figure = Figure(figsize=(max(7.0, 4.2 * across), height))
        bottom = (0.7 + 0.2 * len(names)) / height
        spaces = {"left": 0.9 / figure.get_figwidth(), "right": 0.98, "top": 1 - 0.6 / height, "bottom": bottom}
        grid = figure.subplots(down, across, squeeze=False, gridspec_kw={**spaces, "hspace": 0.35, "wspace": 0.25})
        for axes, place in zip(grid.flat, places, strict=False):
            panel = _of(rows, dict(zip(split, place, strict=True)))
            title = ", ".join(f"{AXES[name]} {value:g}" for name, value in zip(split, place, strict=True))
            _draw_panel(axes, panel, axis, names, line_of)
            axes.set_title(title, size=9, loc="left", y=1.0)
            axes.set_xlabel(label, size=9)
        for axes in grid.flat[len(places) :]:
            axes.set_axis_off()
        figure.suptitle(plain(f"{problem}: {ERROR}; dashed: the indirect gradient left out"), size=10)
        handles = {
            label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="lower left", fontsize=8, frameon=False)
    return figure


def _draw_panel(
    axes: "Axes", panel: Sequence[Record], axis: str, names: Sequence[str], line_of: Callable[[Record], str]
) -> None:
    from matplotlib.ticker import LogLocator

    for index, name in enumerate(names):
        along = sorted((row for row in panel if line_of(row) == name), key=lambda row: row[axis])
        y = [max(_error(row), FLOOR) for row in along]
        errors = [row["indirect"]["squared_error"]["error"] or 0.0 for row in along]
        # no bar may reach 0, which a logarithmic axis does not have
        below = [min(error, 0.9 * mean) for error, mean in zip(errors, y, strict=True)]
        if along:
            looks: dict[str, Any] = {"color": PALETTE[index % 7], "marker": MARKERS[(index + index // 7) % 7]}
            axes.errorbar([row[axis] for row in along], y, yerr=[below, errors], label=plain(name), ms=4, **looks)
    # warm-up begins at 0 steps
    axes.set_xscale("symlog" if axis == "warmup_steps" else "log")
    axes.set_yscale("log")
    values = sorted({row[axis] for row in panel})
    if axis in AXES:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.axhline(1, color="#999999", linewidth=1, linestyle="--", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write tables and plots of a hypergradient benchmark.")
    parser.add_argument("directory", type=Path, help="directory with the results")
    sys.stdout.write(json.dumps([str(path) for path in write_report(parser.parse_args().directory)]) + "\n")
