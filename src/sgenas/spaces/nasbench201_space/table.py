"""Accuracies of the trained cells of NAS-Bench-201 (arXiv:2001.00326): look-up instead of training.

The table is a CSV file with a column ``arch``, a cell in the form of `strings`, and one column per dataset: the test
accuracy in percent after 200 epochs, mean over the benchmark's trials. The test images are all of CIFAR-10's, and of
the two other datasets the half that the benchmark calls its test set. Isomorphic cells are kept apart, as in the
benchmark; each has its own accuracies.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from sgenas.errors import DataError, InvalidValueError, one_line, require, require_choice
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.nasbench201_space import strings

COLUMNS = {"cifar10": "cifar10_test", "cifar100": "cifar100_test", "ImageNet16-120": "imagenet16_120_test"}
"""Dataset, as the benchmark calls it -> column of the file."""
CLASSES = {"cifar10": 10, "cifar100": 100, "ImageNet16-120": 120}
"""Dataset -> number of its classes."""


class AccuracyTable:
    """Accuracies in percent by cell and dataset. A cell is given by its string or its genotype.

    Attributes:
        space: Name of the space whose architectures the table has.
        benchmark: Name of the benchmark.

    Args:
        datasets: Names of `COLUMNS`.
        rows: {cell string: one accuracy per dataset}.
        complete: Whether all 15,625 cells must be present.

    Raises:
        DataError: If a cell or accuracy is missing or impossible; the message names it.
        InvalidValueError: If a dataset is unknown or repeated.

    Example:
        >>> AccuracyTable.load("nasbench201.csv").query(genotype)
    """

    space: ClassVar[str] = "nasbench201"
    benchmark: ClassVar[str] = "NAS-Bench-201"
    columns: ClassVar[Mapping[str, str]] = COLUMNS
    # module with all_strings, from_string and to_string
    naming: ClassVar[Any] = strings

    def __init__(self, datasets: Sequence[str], rows: Mapping[str, Sequence[float]], *, complete: bool = True) -> None:
        for name in datasets:
            require_choice("datasets", name, tuple(self.columns))
        distinct = 0 < len(set(datasets)) == len(datasets)
        require(distinct, "datasets", "at least one name, without repetitions", list(datasets))
        known = _known(self.naming.all_strings)
        for arch, values in rows.items():
            if arch not in known:
                raise DataError(f"accuracy table: arch must be of {self.benchmark}, got {arch!r:.100}")
            if len(values) != len(datasets):
                raise DataError(f"accuracy table, {arch}: must have {len(datasets)} values, got {len(values)}")
            for name, value in zip(datasets, values, strict=True):
                if not 0 <= value <= 100:
                    raise DataError(f"accuracy table, {arch}: {name} must be from 0 to 100, got {value}")
        if not rows:
            raise DataError("accuracy table must have at least one row, got none")
        if complete and len(rows) < len(known):
            absent = next(arch for arch in self.naming.all_strings() if arch not in rows)
            raise DataError(f"accuracy table must have {len(known)} rows, got {len(rows)}; {absent} is missing")
        self.datasets = tuple(datasets)
        self._rows = {arch: tuple(float(value) for value in values) for arch, values in rows.items()}
        columns = zip(datasets, zip(*self._rows.values(), strict=True), strict=True)
        self._sorted = {name: sorted(column) for name, column in columns}

    @classmethod
    def load(cls, path: str | Path, datasets: Sequence[str] | None = None, *, complete: bool = True) -> Self:
        """Reads the benchmark's file.

        Args:
            path: File; the docstring of this module describes it.
            datasets: Datasets to read; None for all of the file.
            complete: As in the constructor.

        Raises:
            DataError: If the file is faulty; the message names the file and the column, line or cell.
        """
        try:
            return cls(*cls._read(Path(path), datasets), complete=complete)
        except (DataError, InvalidValueError) as error:
            raise DataError(f"{path}: {error}") from None
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            raise DataError(f"{path} cannot be read: {one_line(error)}") from None

    @classmethod
    def _read(cls, path: Path, datasets: Sequence[str] | None) -> tuple[Sequence[str], dict[str, list[float]]]:
        """Datasets and rows of a file."""
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, lines = list(reader.fieldnames or []), list(reader)
        known = ("arch", *COLUMNS.values())
        if not set(header) <= set(known) or len(set(header)) < len(header):
            raise DataError(f"columns must be different ones of {', '.join(known)}, got {header!s:.100}")
        if datasets is None:
            datasets = [name for name, column in COLUMNS.items() if column in header]
        for column in ("arch", *(COLUMNS.get(name, name) for name in datasets)):
            if column not in header:
                raise DataError(f"column {column} is missing, got {header!s:.100}")
        rows: dict[str, list[float]] = {}
        for number, line in enumerate(lines, start=2):
            if None in line or None in line.values():
                raise DataError(f"line {number}: must have {len(header)} values")
            if line["arch"] in rows:
                raise DataError(f"line {number}: arch must not repeat, got twice {line['arch']}")
            columns = [COLUMNS[name] for name in datasets]
            rows[line["arch"]] = [finite(line[column], f"line {number}: {column}") for column in columns]
        return datasets, rows

    def __len__(self) -> int:
        return len(self._rows)

    def query(self, arch: str | Genotype) -> dict[str, float]:
        """Test accuracy in percent of a cell, {dataset: accuracy}.

        Raises:
            GenotypeError: If it is not a cell of the benchmark.
            DataError: If the table lacks it.
        """
        name = self.naming.to_string(arch) if isinstance(arch, Genotype) else arch
        if name not in self._rows:
            self.naming.from_string(name)
            raise DataError(f"accuracy table has no row for {name}")
        return dict(zip(self.datasets, self._rows[name], strict=True))

    def rank(self, arch: str | Genotype, dataset: str) -> int:
        """1 + the number of cells with a higher accuracy; raises as `query`, and for an unknown dataset."""
        ordered = self._of(dataset)
        return 1 + len(ordered) - bisect_right(ordered, self.query(arch)[dataset])

    def regret(self, arch: str | Genotype, dataset: str) -> float:
        """Accuracy of the best cell minus that of ``arch``, in percentage points; raises as `rank`."""
        return self._of(dataset)[-1] - self.query(arch)[dataset]

    def best(self, dataset: str) -> str:
        """The string of the cell with the highest accuracy; of equal ones the first in the table.

        Raises:
            InvalidValueError: If the table lacks the dataset.
        """
        highest, column = self._of(dataset)[-1], self.datasets.index(dataset)
        return next(arch for arch, row in self._rows.items() if row[column] == highest)

    def _of(self, dataset: str) -> list[float]:
        require_choice("dataset", dataset, self.datasets)
        return self._sorted[dataset]


@cache
def _known(all_strings: Callable[[], Iterator[str]]) -> frozenset[str]:
    return frozenset(all_strings())


def finite(value: object, where: str) -> float:
    """The number that ``value`` or its text is; DataError if it is none, or not finite."""
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{where} must be a finite number, got {str(value)!r:.100}")
    return found
