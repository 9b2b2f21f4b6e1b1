"""Rows of the laboratory's tables: means over the draws of batches, with their standard errors."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from sgenas.experiments.lab.statistics import mean_and_error
from sgenas.report.lab_record import Record

CONDITION = ("moment", "inner_steps", "batch_size", "inner_lr")
"""What a truth belongs to, besides the draw of batches."""
SETTING = (*CONDITION, "estimator", "draws")
PARTS = ("whole", "indirect")


def estimator_rows(records: Iterable[Record], reals: Callable[[Record], Record | None]) -> list[Record]:
    """One row for each condition and estimator. `reals`: the truth that a measurement belongs to.

    Every figure is {"mean": ..., "error": ...}, the standard error over the draws of batches, None where
    there are fewer than two. Seconds are the median of all estimates. Against the real slopes a squared error
    is a ratio of two means, since a slope in a few directions is a noisy unit.
    """
    rows = []
    for setting, group in _grouped(records, SETTING).items():
        good = [record for record in group if "failed" not in record]
        row: Record = dict(zip(SETTING, setting, strict=True)) | {"batches": len(good)}
        failed = [record["failed"] for record in group if "failed" in record]
        if failed:
            row |= {"failed": len(failed), "reason": failed[0]}
        if good:
            row |= {name: good[0][name] for name in ("q", "mu", "passes", "forward", "backward")}
            row["seconds"] = statistics.median(second for record in good for second in record["seconds"])
            for part in PARTS:
                row[part] = {name: _figure([record[part][name] for record in good]) for name in good[0][part]}
            row["real"] = _against_real(good, [reals(record) for record in good])
        rows.append(row)
    return rows


def _against_real(records: Sequence[Record], truths: Sequence[Record | None]) -> list[Record]:
    """For each step size: squared errors against the slopes of the real objective, in units of their own."""
    found: list[Record] = []
    for index, seen in enumerate(records[0]["real"]):
        entry: Record = {"step": seen["step"]}
        for part in PARTS:
            squares = [truth["real"][index][part]["square"] for truth in truths if truth is not None]
            entry[part] = _ratio([record["real"][index][part] for record in records], squares)
        found.append(entry)
    return found


def _ratio(values: Sequence[float], units: Sequence[float]) -> Record:
    """mean(values) / mean(units), with the standard error of a ratio of two means that vary together."""
    unit, mean = math.fsum(units) / len(units), math.fsum(values) / len(values)
    if unit <= 0:
        return {"mean": None, "error": None}
    ratio = mean / unit
    _, error = mean_and_error([value - ratio * own for value, own in zip(values, units, strict=True)])
    return {"mean": ratio, "error": None if error is None else error / unit}


def truth_rows(records: Iterable[Record], vectors: Callable[[Record], Tensor]) -> list[Record]:
    """One row for each condition: how large the parts are, how the truths differ, how batches differ.

    share: |indirect| / |direct|. spread: variance of the truth over draws of batches in units of the squared
    length of its mean (None for one draw): the noise that is in every estimate besides its own.
    real: for each step size `truth.compare`, for whole and indirect. best_step: number of the step size that
    differs least from its neighbour's slopes: where the difference quotient hardly depends on the step.
    """
    rows = []
    for condition, group in _grouped(records, CONDITION).items():
        row: Record = dict(zip(CONDITION, condition, strict=True)) | {"batches": len(group)}
        row["share"] = _figure([record["share"] for record in group])
        row["spread"] = {}
        for index, part in enumerate(PARTS):
            row["spread"][part] = _spread([vectors(record)[index] for record in group])
        row["real"] = [
            {"step": seen["step"]}
            | {
                part: {
                    name: _figure([record["real"][index][part][name] for record in group])
                    for name in ("along", "distance", "cosine", "ratio")
                }
                for part in PARTS
            }
            for index, seen in enumerate(group[0]["real"])
        ]
        row["best_step"] = _plateau([record["changes"] for record in group])
        rows.append(row)
    return rows


def _plateau(changes: Sequence[Sequence[float]]) -> int | None:
    """changes: for each draw, squared changes of the slopes from one step size to the next."""
    if not changes or not changes[0]:
        return 0 if changes else None
    sums = [sum(draw[index] for draw in changes) for index in range(len(changes[0]))]
    return sums.index(min(sums))


def _spread(vectors: Sequence[Tensor]) -> float | None:
    if len(vectors) < 2:
        return None
    mean = sum(vectors[1:], vectors[0]) / len(vectors)
    square = float(mean.square().sum())
    variance = sum(float((vector - mean).square().sum()) for vector in vectors) / (len(vectors) - 1)
    return variance / square if square else None


def _figure(values: Sequence[float | None]) -> Record:
    mean, error = mean_and_error(values)
    return {"mean": mean, "error": error}


def _grouped(records: Iterable[Record], names: Sequence[str]) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return groups
