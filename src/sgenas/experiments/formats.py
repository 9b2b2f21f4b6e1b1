"""The table as Markdown, CSV, LaTeX, HTML and JSON. Equal tables give equal text."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sgenas
from sgenas.experiments.table import Line, Spread, Table, facts, notes, per_run
from sgenas.files import locked, replacing, understood
from sgenas.report.html import render_page

NOTHING = "\u2013"
HEADINGS = (
    "Mode",
    "Method",
    "Top-1, %",
    "Params, M",
    "Search, h",
    "Device",
    "Passes forward / backward",
    "Runs",
)
PAPER = ("Top-1, %", "Params, M", "Cost, h")
"""The headings of the columns that follow, with the paper's figures."""
TEXT = (0, 1, 5, 7)
"""Columns of words; the others hold numbers."""
ESCAPES = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "β": r"$\beta$",
    NOTHING: "--",
}


def write_tables(table: Table) -> list[Path]:
    """Writes the table in every format into its grid's folder; the paths.

    Raises RunFolderError where they cannot be written, or an outcome.json holds figures that are none.
    """
    out = table.grid.out
    written = []
    with understood(out / "runs"):
        texts = {name: render(table) for name, render in FORMATS.items()}
    # the runs of a cluster may end at the same moment
    with locked(out / "lock", f"folder {out}", patience=60):
        for name, text in texts.items():
            with replacing(out / name) as file:
                file.write(text.encode("utf-8", errors="replace"))
            written.append(out / name)
    return written


def texts(line: Line) -> list[str]:
    """A line as text, a cell for each of HEADINGS and PAPER; what has no value is `NOTHING`."""
    paper = line.published
    return [
        line.mode,
        line.name,
        _spread(line.top1, 2),
        _spread(line.params, 3),
        _spread(line.search_hours, 3),
        "; ".join(line.devices) or NOTHING,
        f"{_spread(line.forward, 0)} / {_spread(line.backward, 0)}" if line.done else NOTHING,
        line.runs,
        *(
            [f"{paper.top1:.2f}", f"{paper.params:.1f}", f"{paper.cost:.1f}"]
            if paper
            else [NOTHING] * len(PAPER)
        ),
    ]


def markdown(table: Table) -> str:
    """Markdown: a table for each data set, notes, what is missing, and how it was made."""
    lines = [f"# Table 1: {table.grid.preset}", ""]
    headings = (*HEADINGS, *(f"Paper: {heading}" for heading in PAPER))
    marks = ["---" if column in TEXT else "---:" for column in range(len(headings))]
    for dataset, rows in table.parts:
        lines += [f"## {dataset.name}", "", _pipes(headings), _pipes(marks)]
        lines += [_pipes(_markdown(cell) for cell in texts(row)) for row in rows] + [""]
    lines += [f"- {note}" for note in notes(table)] + [""]
    for title, statuses in missing(table):
        lines += [f"## {title}", "", *(f"- {_markdown(text)}" for text in statuses), ""]
    lines += ["## How it was made", "", _pipes(("What", "Value")), _pipes(("---", "---"))]
    lines += [_pipes((what, _markdown(value))) for what, value in facts(table)]
    return "\n".join(lines) + "\n"


def missing(table: Table) -> list[tuple[str, list[str]]]:
    """(heading, a text for each run) of those that have failed and of those that are not finished."""
    return [
        (title, [f"{status.place.name}: {status}" for status in statuses])
        for title, statuses in (("Failed", table.failed), ("Not finished", table.unfinished))
        if statuses
    ]


def comma_separated(table: Table) -> str:
    """CSV: a line for each data set and row, numbers in full; what has no value is empty."""
    file = io.StringIO()
    records = [_record(dataset.name, line) for dataset, lines in table.parts for line in lines]
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def latex(table: Table) -> str:
    """LaTeX for \\input (needs the package booktabs): a table for each data set, the facts as comments."""
    lines = [f"% {what}: {' '.join(value.split())}" for what, value in facts(table)]
    for title, statuses in missing(table):
        lines += [f"% {title}: {' '.join(text.split())}" for text in statuses]
    for dataset, rows in table.parts:
        headings = (*HEADINGS, *PAPER)
        columns = "".join("l" if column in TEXT else "r" for column in range(len(headings)))
        caption = (
            f"{dataset.name}, preset {table.grid.preset}, seeds {', '.join(map(str, table.grid.seeds))}."
        )
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(' '.join([caption, *notes(table)]))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            "& " * len(HEADINGS) + rf"\multicolumn{{{len(PAPER)}}}{{c}}{{Paper}} \\",
            rf"\cmidrule(l){{{len(HEADINGS) + 1}-{len(headings)}}}",
            " & ".join(map(_tex, headings)) + r" \\",
            r"\midrule",
        ]
        for before, row in zip((None, *rows), rows, strict=False):
            if before is not None and before.mode != row.mode:
                lines.append(r"\midrule")
            lines.append(" & ".join(map(_tex, texts(row))) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def html(table: Table) -> str:
    """One self-contained HTML page, without scripts and without network."""
    return render_page(
        "table",
        package="sgenas.experiments",
        preset=table.grid.preset,
        purpose=table.preset.purpose,
        headings=(*HEADINGS, *PAPER),
        paper=len(PAPER),
        words=TEXT,
        parts=[(dataset.name, [(row.mode, texts(row)) for row in rows]) for dataset, rows in table.parts],
        notes=notes(table),
        missing=missing(table),
        facts=facts(table),
    )


def as_json(table: Table) -> str:
    """JSON: the lines of the CSV, the facts, and every figure of every run."""
    data = {
        "format": "sgenas-table1-figures",
        "sgenas": sgenas.__version__,
        "facts": [list(fact) for fact in facts(table)],
        "rows": [_record(dataset.name, line) for dataset, lines in table.parts for line in lines],
    }
    # a line for each run: with indents Python writes 1,000 of them ten times as slowly, after every run
    runs = ",\n  ".join(map(json.dumps, per_run(table)))
    return f'{json.dumps(data, indent=1)[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n'


FORMATS: dict[str, Callable[[Table], str]] = {
    "table.md": markdown,
    "table.csv": comma_separated,
    "table.tex": latex,
    "table.html": html,
    "table.json": as_json,
}
"""File name -> what renders it."""


def _record(data: str, line: Line) -> dict[str, Any]:
    """A line as flat plain data."""
    record: dict[str, Any] = {
        "data": data,
        "mode": line.mode,
        "method": line.row.method,
        "estimator": line.row.estimator,
        "name": line.name,
        "seeds": len(line.statuses),
        "done": len(line.done),
        "failed": sum(status.failed for status in line.statuses),
    }
    for name in ("top1", "params", "search_hours", "training_hours", "forward", "backward"):
        found: Spread | None = getattr(line, name)
        record[f"{name}_mean"] = None if found is None else found.mean
        record[f"{name}_deviation"] = None if found is None else found.deviation
    record["device"] = "; ".join(line.devices)
    paper = asdict(line.published) if line.published else dict.fromkeys(("top1", "params", "cost"))
    return record | {f"paper_{name}": value for name, value in paper.items()}


def _spread(value: Spread | None, digits: int) -> str:
    if value is None:
        return NOTHING
    text = f"{value.mean:,.{digits}f}"
    # what is the same in every run by construction, such as passes, needs no deviation
    return text if not value.deviation else f"{text} ± {value.deviation:,.{digits}f}"


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line of a table."""
    # an underscore inside a word emphasises nothing
    return " ".join(re.sub(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text).split())


def _tex(text: str) -> str:
    return "".join(ESCAPES.get(sign, sign) for sign in text)
