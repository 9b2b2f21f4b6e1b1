"""Accuracies of the trained networks of NAS-Bench-Macro (arXiv:2103.11922): look-up instead of training.

The table is the benchmark's JSON file, {digits: {"mean_acc": ..., ...}}: test accuracy on CIFAR-10 in percent after 50
epochs, mean of three training runs. Networks that differ only in the places of the identities within a stage are the
same, and share their accuracy.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from sgenas.errors import DataError, InvalidValueError, one_line
from sgenas.spaces.macro_space import strings
from sgenas.spaces.nasbench201_space.table import AccuracyTable


class MacroTable(AccuracyTable):
    """Accuracies in percent on ``cifar10``, the only dataset. A network is given by its digits or its genotype.

    Args:
        datasets: ``["cifar10"]``.
        rows: {digits: [accuracy]}.
        complete: Whether all 6,561 networks must be present.

    Example:
        >>> MacroTable.load("nasbench-macro.json").query("22212220")
    """

    space: ClassVar[str] = strings.SPACE
    benchmark: ClassVar[str] = "NAS-Bench-Macro"
    columns: ClassVar[Mapping[str, str]] = {"cifar10": "mean_acc"}
    naming: ClassVar[Any] = strings

    @classmethod
    def load(cls, path: str | Path, datasets: Sequence[str] | None = None, *, complete: bool = True) -> Self:
        """Reads the benchmark's JSON file.

        Args:
            path: File; the docstring of this module describes it.
            datasets: As in the constructor; None for all.
            complete: As in the constructor.

        Raises:
            DataError: If the file is faulty; the message names the file and the network.
        """
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repetitions)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path} cannot be read: {one_line(error)}") from None
        if not isinstance(rows, dict):
            raise DataError(f"{path}: must be an object with one entry per network, got {type(rows).__name__}")
        try:
            accuracies = {arch: [_accuracy(arch, row)] for arch, row in rows.items()}
            return cls(["cifar10"] if datasets is None else datasets, accuracies, complete=complete)
        except (DataError, InvalidValueError) as error:
            raise DataError(f"{path}: {error}") from None


TABLES: dict[str, type[AccuracyTable]] = {table.space: table for table in (AccuracyTable, MacroTable)}
"""Space -> class of its table."""


def load_table(path: str | Path) -> AccuracyTable:
    """The table of NAS-Bench-Macro for a file whose name ends in .json, else that of NAS-Bench-201 (CSV).

    Raises:
        DataError: If the file is faulty.
    """
    return (MacroTable if Path(path).suffix.lower() == ".json" else AccuracyTable).load(path)


def _accuracy(arch: str, row: Any) -> float:
    value = row.get("mean_acc") if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"accuracy table, {arch[:40]}: mean_acc must be a finite number, got {str(value)[:40]!r}")
    return float(value)


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"twice {repeated[:40]}")
    return found
