"""The decision of a search: the chosen option of each edge or choice, and its lead over the next one."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from sgenas.report.formatting import NOTHING, counted, duration, is_number, percent
from sgenas.report.run_record import MixingTable, RunRecord

CLOSE = 0.1
"""A lead below this share of the chosen weight is marked as close."""


class Decision(NamedTuple):
    """A chosen option and its mixing weight; ``next`` is the strongest option of its row that was not chosen,
    if there is one. ``place`` is the edge (``"0→2"``) or the name of the choice."""

    place: str
    chosen: str
    weight: float
    next: str | None
    next_weight: float

    @property
    def lead(self) -> float:
        """Difference of the two mixing weights; negative if a constraint excluded the stronger option."""
        return self.weight - self.next_weight

    @property
    def close(self) -> bool:
        """Whether the lead is less than CLOSE."""
        return self.lead < CLOSE * self.weight


Weights = list[tuple[str, float, bool]]
"""(option, mixing weight, whether chosen) of each option of a row."""


@dataclass(frozen=True)
class Group:
    """The decisions of a cell, or of all choices of a module.

    Args:
        name: Name of the cell, or ``"module"``.
        decisions: In the order of the rows.
        options: Options of every row; empty if rows have different ones.
        rows: (place, weights) of each row.
    """

    name: str
    decisions: tuple[Decision, ...]
    options: tuple[str, ...]
    rows: tuple[tuple[str, Weights], ...]

    @property
    def largest(self) -> float:
        """The largest mixing weight, which has the full length of a bar."""
        return max((weight for _, row in self.rows for _, weight, _ in row), default=0.0) or 1.0


def groups(record: RunRecord) -> list[Group]:
    """The decisions of the alphas; empty until there are alphas and an architecture, and if others have decided."""
    if record.alphas is None or not all("kept" in row and "steps" in row for row in record.candidates):
        return []
    moment, tables = _moment(record), record.alphas.tables
    if record.choices is not None:
        rows = [(n, _weights(tables[n], moment, 0, {o})) for n, o in record.choices.items() if n in tables]
        return [_group("module", (), rows)] if rows else []
    found = []
    for name, cell in record.genotype.cells if record.genotype is not None else ():
        table = tables.get(name)
        if record.genotype is None or table is None or table.edges is None:
            continue
        # a cell of NAS-Bench-201 has no edge where `none` was chosen; in other spaces nothing can choose it
        absent = {"none"} if record.genotype.space == "nasbench201" else set()
        rows = []
        for index, ends in enumerate(table.edges):
            kept = {edge.operation for edge in cell.edges if (edge.source, edge.target) == ends}
            rows.append((f"{ends[0]}→{ends[1]}", _weights(table, moment, index, kept or absent)))
        found.append(_group(name, table.options, rows, excluded=set() if absent else {"none"}))
    return found


def _moment(record: RunRecord) -> int:
    """Index of the alphas that the architecture was derived from: early stopping goes back to an epoch."""
    assert record.alphas is not None
    epochs: list[int] = record.alphas.epoch.tolist()
    selected = record.epochs[-1].get("stopped_early_with_epoch") if record.epochs else None
    return epochs.index(selected + 1) if type(selected) is int and selected + 1 in epochs else len(epochs) - 1


def _weights(table: MixingTable, moment: int, index: int, chosen: set[str]) -> Weights:
    values = np.nan_to_num(table.weights[moment, index]).tolist()
    return [(option, value, option in chosen) for option, value in zip(table.options, values, strict=True)]


def _group(
    name: str, options: tuple[str, ...], rows: list[tuple[str, Weights]], excluded: set[str] | None = None
) -> Group:
    made = []
    for place, weights in rows:
        others = [(o, value) for o, value, chosen in weights if not chosen and o not in (excluded or ())]
        following: tuple[str | None, float] = max(others, key=lambda pair: pair[1], default=(None, 0.0))
        made += [Decision(place, o, value, *following) for o, value, chosen in weights if chosen]
    return Group(name, tuple(made), options, tuple(rows))


def summary(found: list[Group]) -> str:
    """Mean and smallest lead, and the weight of an option if nothing is decided."""
    made = [(group.name, decision) for group in found for decision in group.decisions]
    if not made:
        return "No option was chosen."
    name, closest = min(made, key=lambda pair: pair[1].lead)
    sizes = sorted({len(weights) for group in found for _, weights in group.rows})[:3]
    close = sum(decision.close for _, decision in made)
    return (
        f"On average the chosen option leads the next one by {fmean(d.lead for _, d in made):.3f} in mixing"
        f" weight; the smallest lead is {closest.lead:.3f} ({name}, {closest.place}: {closest.chosen}"
        f"{f' before {closest.next}' if closest.next else ''}). {close} of {len(made)} decisions"
        f" {'is' if close == 1 else 'are'} close (a lead under {100 * CLOSE:.0f}\u00a0% of the weight). Equal"
        f" weights of {' or '.join(map(str, sizes))} options would be"
        f" {' or '.join(f'{1 / size:.3f}' for size in sizes)}."
    )


def selected(record: RunRecord) -> str:
    """How the architecture was selected, in one sentence; empty if by the alphas."""
    if not record.candidates:
        return ""
    found = [row["accuracy"] for row in record.candidates if is_number(row.get("accuracy"))]
    steps = record.candidates[0].get("steps")
    weights = f"after {steps} steps of training from scratch" if steps else "with the supernet's weights"
    text = f"Selected by {len(record.candidates)} measurements {weights}"
    if not found or "architecture" not in record.candidates[0]:
        return f"{text}."
    first, kept = record.candidates[0], next((row for row in record.candidates if row.get("kept")), None)
    if not steps or kept is None:
        average = percent(fmean(found))
        return f"{text}: the best candidate has {percent(max(found))} validation accuracy, their mean {average}."
    said = f"{text}: the architecture of the alphas has {_accuracy(first)} validation accuracy"
    if kept is first:
        return f"{said} and was kept; the best candidate has {percent(max(found))}."
    return f"{said}, the one that replaces it {_accuracy(kept)}."


def _accuracy(row: Mapping[str, Any]) -> str:
    return percent(row["accuracy"]) if is_number(row.get("accuracy")) else NOTHING


def evaluated(evaluation: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The comparison of the derived network with random ones: a sentence, and a row per network.

    Each network has ``test_accuracy`` (a fraction), ``parameters`` and ``seconds`` of its training.
    """
    named = {"derived": evaluation["derived"]}
    named |= {f"random {index}": one for index, one in enumerate(evaluation["random"], start=1)}
    known = {name: one["test_accuracy"] for name, one in named.items() if is_number(one.get("test_accuracy"))}
    largest = max(known.values(), default=0.0) or 1.0

    def written(one: Mapping[str, Any], key: str, write: Any) -> str:
        return str(write(one[key])) if is_number(one.get(key)) else NOTHING

    rows = [
        {
            "name": name,
            "share": max(0.0, known.get(name, 0.0) / largest),
            "accuracy": written(one, "test_accuracy", percent),
            "parameters": written(one, "parameters", counted),
            "seconds": written(one, "seconds", duration),
        }
        for name, one in named.items()
    ]
    ours = known.pop("derived", None)
    if ours is None or not known:
        return "An accuracy is missing, so there is nothing to compare.", rows
    mean, count = fmean(known.values()), len(known)
    text = (
        f"Trained alike, the derived network has {percent(ours)} test accuracy, {100 * abs(ours - mean):.2f}"
        f" points {'above' if ours >= mean else 'below'} the mean of {count} random"
        f" network{'s' if count > 1 else ''} ({percent(mean)}). It is better than"
        f" {sum(ours > other for other in known.values())} of {count}."
    )
    return text, rows
