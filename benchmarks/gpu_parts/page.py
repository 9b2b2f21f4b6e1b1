"""The results of a GPU check as one JSON file and one page."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_parts.check import VERDICTS, Part, Verdict

NOT_SHOWN = ("all", "losses", "top", "genotype", "where", "figures")
"""Figures that only the JSON file has, apart from the profiler's table."""


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many checks have each verdict."""
    found = Counter(verdict.verdict for verdict in verdicts)
    return {name: found[name] for name in VERDICTS}


def write(path: Path, verdicts: Sequence[Verdict], head: dict[str, Any], parts: Sequence[Part]) -> Path:
    """Writes ``path`` (JSON) and a Markdown page beside it, whose path is returned.

    Args:
        path: The JSON file.
        verdicts: The outcomes so far.
        head: Date, machine, versions and settings.
        parts: The parts, for their titles.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = counts(verdicts)
    data = head | {"summary": summary, "verdicts": [asdict(verdict) for verdict in verdicts]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    lines = [f"# GPU check on {head['machine']['device']}", ""]
    lines += [f"{head['date']}, {head['machine']['processor']}, PyTorch {head['versions']['torch']}.", ""]
    if head["tiny"]:
        lines += ["Tiny sizes: the figures say nothing about speed or memory.", ""]
    lines += ["| " + " | ".join(summary) + " |", "|---" * len(summary) + "|"]
    lines += ["| " + " | ".join(map(str, summary.values())) + " |", ""]
    for part in parts:
        rows = [verdict for verdict in verdicts if verdict.part == part.name]
        if rows:
            lines += [f"## {part.title}", "", "| verdict | check | figures | note |", "|---|---|---|---|"]
            lines += [_row(verdict) for verdict in rows]
            lines.append("")
        for verdict in rows:
            if "top" in verdict.figures:
                lines += ["| operation | milliseconds | calls |", "|---|---|---|"]
                lines += [
                    f"| `{row['name']}` | {row['milliseconds']:.3g} | {row['calls']} |"
                    for row in verdict.figures["top"]
                ]
                lines.append("")
    page = path.with_suffix(".md")
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


def _row(verdict: Verdict) -> str:
    figures = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in verdict.figures.items()
        if name not in NOT_SHOWN
    )
    name = f"**{verdict.verdict}**" if verdict.verdict != "ok" else "ok"
    cells = (name, verdict.name, figures, verdict.note)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
