"""Accuracies of the trained networks of NAS-Bench-Macro (arXiv:2103.11922): look-up instead of training.

The table is the benchmark's JSON file, {digits: {"mean_acc": ..., ...}}: test accuracy on CIFAR-10 in percent after 50
epochs, mean of three training runs. Networks that differ only in the places of the identities within a stage are the
same, and share their accuracy.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sgenas.errors import DataError
from sgenas.spaces.macro_space import strings
from sgenas.spaces.nasbench201_space.table import AccuracyTable, finite


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
    def _read(cls, path: Path, datasets: Sequence[str] | None) -> tuple[Sequence[str], dict[str, list[float]]]:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetitions)
        if not isinstance(found, dict):
            raise DataError(f"must be an object with one entry per network, got {type(found).__name__}")
        values = {arch: row.get("mean_acc") if isinstance(row, dict) else None for arch, row in found.items()}
        rows = {arch: [finite(value, f"network {arch[:40]}: mean_acc")] for arch, value in values.items()}
        return ["cifar10"] if datasets is None else datasets, rows


TABLES: dict[str, type[AccuracyTable]] = {table.space: table for table in (AccuracyTable, MacroTable)}
"""Space -> class of its table."""


def load_table(path: str | Path) -> AccuracyTable:
    """The table of NAS-Bench-Macro for a file whose name ends in .json, else that of NAS-Bench-201 (CSV).

    Raises:
        DataError: If the file is faulty.
    """
    return (MacroTable if Path(path).suffix.lower() == ".json" else AccuracyTable).load(path)


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"twice {repeated[:40]}")
    return found
