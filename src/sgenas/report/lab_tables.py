"""Tables of a laboratory's run: Markdown for people, CSV for other programs."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from sgenas.report.lab_record import Record

CONDITION = ("moment", "inner_steps", "batch_size", "inner_lr")
FIGURES = ("cosine", "relative_error", "squared_error", "bias", "variance")


def csv_table(record: Record) -> str:
    """One line for each condition and estimator, every figure with its standard error beside it."""
    steps = sorted({entry["step"] for row in record["rows"] for entry in row.get("real", [])})
    names = [*CONDITION, "estimator", "draws", "batches", "passes", "seconds"]
    for part in ("whole", "indirect"):
        for figure in FIGURES:
            names += [f"{part}_{figure}", f"{part}_{figure}_error"]
        for step in steps:
            names += [f"{part}_real_{step:g}", f"{part}_real_{step:g}_error"]
    names.append("failed")
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in record["rows"]:
        line = {name: row.get(name) for name in names}
        for part in ("whole", "indirect"):
            for figure in FIGURES:
                found = row.get(part, {}).get(figure, {})
                line[f"{part}_{figure}"] = found.get("mean")
                line[f"{part}_{figure}_error"] = found.get("error")
            for entry in row.get("real", []):
                line[f"{part}_real_{entry['step']:g}"] = entry[part]["mean"]
                line[f"{part}_real_{entry['step']:g}_error"] = entry[part]["error"]
        writer.writerow(line)
    return text.getvalue()


def markdown_table(record: Record) -> str:
    """The same for people: one table for each condition, the best estimator first, and what the truth is."""
    settings, facts = record["settings"], record["facts"]
    text = [
        f"# Hypergradients of `{settings['problem']}`",
        "",
        f"{facts['alphas']:,} alphas, {facts['weights']:,} weights. Every figure is a mean over draws of"
        " batches, with its standard error. Squared errors are of the indirect part, in units of its squared"
        " length (1: as if it were left out): squared error = bias² + variance. `real` is the squared error"
        " against slopes of the real objective instead of the automatic derivative. A pass is one forward and"
        " one backward evaluation of a loss.",
    ]
    for condition, rows in by_condition(record["rows"]).items():
        named = dict(zip(CONDITION, condition, strict=True))
        text += ["", f"## {condition_text(named)}", "", *_truth_lines(record, named)]
        truth = _truth_of(record, named)
        step = None if truth is None else truth["best_step"]
        text += [
            "| estimator | passes | seconds | cosine | squared error | bias² | variance | real | squared"
            " error times passes | whole: relative error |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        text += [_line(row, step) for row in sorted(rows, key=_order)]
    return "\n".join(text) + "\n"


def _line(row: Record, step: int | None) -> str:
    if "indirect" not in row:
        return f"| `{row['estimator']}` | failed: {row['reason']} |" + " |" * 8
    part = row["indirect"]
    squared = part["squared_error"]["mean"]
    real = row["real"][step]["indirect"] if step is not None and row["real"] else None
    cells = [
        f"`{row['estimator']}`",
        f"{row['passes']:.4g}",
        f"{row['seconds']:.3g}",
        number(part["cosine"]),
        number(part["squared_error"]),
        number(part["bias"]),
        number(part["variance"]) if part["variance"]["mean"] else "0",
        "" if real is None else number(real),
        "" if squared is None else f"{squared * row['passes']:.3g}",
        number(row["whole"]["relative_error"]),
    ]
    note = f" (failed on {row['failed']} draws: {row['reason']})" if "failed" in row else ""
    return "| " + " | ".join(cells) + note + " |"


def _truth_lines(record: Record, condition: Mapping[str, Any]) -> list[str]:
    truth = _truth_of(record, condition)
    if truth is None:
        return []
    share = number(truth["share"])
    lines = ["There is no direct part."]
    if share:
        lines = [f"Of the automatic derivative, |indirect| / |direct| = {share}."]
    spread = truth["spread"]["indirect"]
    if spread is not None:
        lines[0] += (
            f" Between draws of batches the indirect part varies by {spread:.3g} of the squared length of its"
            " mean: noise that every estimator has besides its own."
        )
    if truth["real"]:
        lines += [
            "",
            "| step h | real slope along the indirect part (1: both truths agree) | squared distance of both"
            " | cosine |",
            "|---|---|---|---|",
        ]
        for index, entry in enumerate(truth["real"]):
            part = entry["indirect"]
            used = " (used below)" if index == truth["best_step"] else ""
            figures = " | ".join(number(part[name]) for name in ("along", "distance", "cosine"))
            lines.append(f"| {entry['step']:g}{used} | {figures} |")
    return [*lines, ""]


def _truth_of(record: Record, condition: Mapping[str, Any]) -> Record | None:
    for row in record["truth_rows"]:
        if all(row[name] == value for name, value in condition.items()):
            found: Record = row
            return found
    return None


def by_condition(rows: Sequence[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """The rows of each condition, in ascending order of moment, N, batch size and learning rate."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for row in sorted(rows, key=lambda row: [row[name] for name in CONDITION]):
        groups.setdefault(tuple(row[name] for name in CONDITION), []).append(row)
    return groups


def condition_text(condition: Mapping[str, Any]) -> str:
    """A condition in words."""
    return (
        f"after {condition['moment']:,} training steps, N = {condition['inner_steps']},"
        f" {condition['batch_size']} examples a batch, inner learning rate {condition['inner_lr']:g}"
    )


def number(figure: Mapping[str, float | None]) -> str:
    """A mean with its standard error, three digits; empty where there is none."""
    mean, error = figure["mean"], figure["error"]
    if mean is None:
        return ""
    return f"{mean:.3g}" if error is None else f"{mean:.3g} ± {error:.2g}"


def _order(row: Record) -> float:
    found = row.get("indirect", {}).get("squared_error", {}).get("mean")
    return float("inf") if found is None else float(found)
