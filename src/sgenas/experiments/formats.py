"""The table as Markdown, CSV and LaTeX. Equal tables give equal files."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sgenas.experiments.table import FIGURES, Line, Spread, Table, facts, missing, notes
from sgenas.files import locked, write_text
from sgenas.report.formatting import NOTHING

HEADINGS = (
    *("Mode", "Method", "Top-1, %", "Params, M", "Search, h"),
    *("Device", "Passes forward / backward", "Jobs"),
)
PAPER_HEADINGS = ("Top-1, %", "Params, M", "Cost, h")
"""Headings of the columns that follow, with the paper's figures."""
TEXT = (0, 1, 5, 7)
"""Columns of strings; the others hold numbers."""
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
    """Writes the table in every format into its grid's directory; returns the paths."""
    out = table.grid.path
    # the jobs of a cluster may end at the same moment
    with locked(out / "table.lock", f"the table in {out}", timeout=60):
        for name, render in TABLE_FORMATS.items():
            write_text(out / name, render(table))
    return [out / name for name in TABLE_FORMATS]


def cells(line: Line) -> list[str]:
    """A line as text, a cell for each of HEADINGS and PAPER_HEADINGS; NOTHING where there is no value."""
    paper, passes = line.published, [_spread(line.spread(name), 0) for name in ("forward", "backward")]
    return [
        line.mode,
        line.name,
        _spread(line.spread("top1"), 2),
        _spread(line.spread("params"), 3),
        _spread(line.spread("search_hours"), 3),
        line.devices or NOTHING,
        " / ".join(passes) if line.done else NOTHING,
        line.jobs,
        *([f"{paper.top1:.2f}", f"{paper.params:.1f}", f"{paper.cost:.1f}"] if paper else [NOTHING] * 3),
    ]


def _headings() -> list[str]:
    return [*HEADINGS, *(f"Paper: {heading}" for heading in PAPER_HEADINGS)]


def markdown(table: Table) -> str:
    """Markdown with aligned columns: a table per dataset, notes, what is missing, and how it was made."""
    lines = [f"# Table 1: {table.grid.plan.preset}", ""]
    for dataset, rows in table.parts:
        head, *body = aligned([_headings(), *([_markdown(cell) for cell in cells(row)] for row in rows)], TEXT)
        marks = ["-" * (len(cell) - 1) + ("-" if column in TEXT else ":") for column, cell in enumerate(head)]
        lines += [f"## {dataset.name}", "", *map(_pipes, (head, marks, *body)), ""]
    lines += [f"- {note}" for note in notes(table)] + [""]
    for title, texts in missing(table):
        lines += [f"## {title}", "", *(f"- {_markdown(each)}" for each in texts), ""]
    lines += ["## How it was made", "", _pipes(("What", "Value")), _pipes(("---", "---"))]
    lines += [_pipes((what, _markdown(value))) for what, value in facts(table)]
    return "\n".join(lines) + "\n"


def aligned(rows: Sequence[Sequence[str]], text: Sequence[int]) -> list[list[str]]:
    """The rows with cells as wide as their columns: those of ``text`` on the left, numbers on the right."""
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if index in text else cell.rjust(width) for cell in column])
    return [list(row) for row in zip(*columns, strict=True)]


def comma_separated(table: Table) -> str:
    """CSV: a line per dataset and row, numbers in full; empty where there is no value."""
    file = io.StringIO()
    records = [_record(dataset.name, line) for dataset, lines in table.parts for line in lines]
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def latex(table: Table) -> str:
    r"""LaTeX for \input (needs the package booktabs): a table per dataset, the facts as comments."""
    lines = [f"% {what}: {' '.join(value.split())}" for what, value in facts(table)]
    lines += [f"% {title}: {' '.join(each.split())}" for title, texts in missing(table) for each in texts]
    count, plan = len(HEADINGS) + len(PAPER_HEADINGS), table.grid.plan
    columns = "".join("l" if column in TEXT else "r" for column in range(count))
    for dataset, rows in table.parts:
        caption = f"{dataset.name}, preset {plan.preset}, seeds {', '.join(map(str, plan.seeds))}."
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(' '.join([caption, *notes(table)]))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            "& " * len(HEADINGS) + rf"\multicolumn{{{len(PAPER_HEADINGS)}}}{{c}}{{Paper}} \\",
            rf"\cmidrule(l){{{len(HEADINGS) + 1}-{count}}}",
            " & ".join(map(_tex, (*HEADINGS, *PAPER_HEADINGS))) + r" \\",
            r"\midrule",
        ]
        for before, row in zip((None, *rows), rows, strict=False):
            if before is not None and before.mode != row.mode:
                lines.append(r"\midrule")
            lines.append(" & ".join(map(_tex, cells(row))) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


TABLE_FORMATS: dict[str, Callable[[Table], str]] = {
    "table.md": markdown,
    "table.csv": comma_separated,
    "table.tex": latex,
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
        "failed": sum(status.state == "failed" for status in line.statuses),
    }
    for name in FIGURES:
        found = line.spread(name)
        record[f"{name}_mean"] = None if found is None else found.mean
        record[f"{name}_deviation"] = None if found is None else found.deviation
    record["device"] = line.devices
    paper = asdict(line.published) if line.published else dict.fromkeys(("top1", "params", "cost"))
    return record | {f"paper_{name}": value for name, value in paper.items()}


def _spread(value: Spread | None, digits: int) -> str:
    if value is None:
        return NOTHING
    text = f"{value.mean:,.{digits}f}"
    # what is the same in every run by construction, such as passes, needs no deviation
    return text if not value.deviation else f"{text} ± {value.deviation:,.{digits}f}"


def _pipes(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"


def _markdown(string: str) -> str:
    """A string that Markdown shows as it is, in one line of a table."""
    # an underscore inside a word emphasizes nothing
    return " ".join(re.sub(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", string).split())


def _tex(string: str) -> str:
    return "".join(ESCAPES.get(sign, sign) for sign in string)
