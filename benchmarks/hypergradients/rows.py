"""Rows of the tables: means over sampled batches with their standard errors."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hypergradients.measure import Record
from hypergradients.reference import PARTS
from hypergradients.report import CONDITION

SETTING = (*CONDITION, "estimator", "draws")
COMPARED = ("along", "distance", "cosine", "ratio")


def mean_and_error(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and its standard error s / sqrt(n) of the finite values; None if there are too few."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers:
        return None, None
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in numbers) / (len(numbers) - 1)
    return mean, math.sqrt(variance / len(numbers))


def estimator_rows(records: Iterable[Record], reference_of: Callable[[Record], Record]) -> list[Record]:
    """One row per condition and estimator.

    Every figure is {"mean": ..., "error": ...}. Seconds are the median of all estimates. Against the real
    derivatives, a relative MSE is a ratio of two means, since few directions make a noisy unit. added_variance: mean
    variance of the indirect gradient over the estimates on the same batches.
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
                row[part] = {name: _figure(record[part][name] for record in good) for name in good[0][part]}
            references = [reference_of(record) for record in good]
            row["real"] = _against_real(good, references)
            pairs = [(each["indirect"]["variance"], of["indirect"]) for each, of in zip(good, references, strict=True)]
            variances = [variance * norm**2 for variance, norm in pairs if variance is not None]
            row["added_variance"] = statistics.fmean(variances) if variances else None
        rows.append(row)
    return rows


def _against_real(records: Sequence[Record], references: Sequence[Record]) -> list[Record]:
    found: list[Record] = []
    for index, seen in enumerate(records[0]["real"]):
        entry: Record = {"step": seen["step"]}
        for part in PARTS:
            units = [reference["real"][index][part]["square"] for reference in references]
            entry[part] = _ratio([record["real"][index][part] for record in records], units)
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


def reference_rows(records: Iterable[Record], vectors: Callable[[Record], Tensor]) -> list[Record]:
    """One row per condition: how large the parts are, how the references differ, how batches differ.

    share: |indirect| / |direct|. spread: variance across batches in units of the squared norm of the mean, None for
    one batch. direct_variance: of the direct gradient across batches, None for one batch. real: per step size
    ``compare``. best_step: index of the step size whose derivatives differ least from its neighbor's, where the
    difference quotient hardly depends on the step.
    """
    rows = []
    for condition, group in _grouped(records, CONDITION).items():
        row: Record = dict(zip(CONDITION, condition, strict=True)) | {"batches": len(group)}
        row["share"] = _figure(record["share"] for record in group)
        row["spread"] = {
            part: _spread([vectors(record)[index] for record in group]) for index, part in enumerate(PARTS)
        }
        direct = [vectors(record)[0] - vectors(record)[1] for record in group]
        row["direct_variance"] = float(torch.stack(direct).var(dim=0).sum()) if len(direct) > 1 else None
        row["real"] = [
            {"step": seen["step"]}
            | {
                part: {name: _figure(each["real"][index][part][name] for each in group) for name in COMPARED}
                for part in PARTS
            }
            for index, seen in enumerate(group[0]["real"])
        ]
        sums = [sum(changes) for changes in zip(*(record["changes"] for record in group), strict=True)]
        row["best_step"] = sums.index(min(sums)) if sums else (0 if row["real"] else None)
        rows.append(row)
    return rows


def _spread(vectors: Sequence[Tensor]) -> float | None:
    if len(vectors) < 2:
        return None
    mean = sum(vectors[1:], vectors[0]) / len(vectors)
    square = float(mean.square().sum())
    variance = sum(float((vector - mean).square().sum()) for vector in vectors) / (len(vectors) - 1)
    return variance / square if square else None


def _figure(values: Iterable[float | None]) -> Record:
    mean, error = mean_and_error(values)
    return {"mean": mean, "error": error}


def _grouped(records: Iterable[Record], names: Sequence[str]) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return groups
