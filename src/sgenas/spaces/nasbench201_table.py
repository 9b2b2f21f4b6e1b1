"""What the cells of NAS-Bench-201 (arXiv:2001.00326) reach when trained: look-up instead of training.

The table is a CSV file with a column `arch`, a cell in the form of `nasbench201_strings`, and one column for
each data set: the test accuracy in per cent after 200 epochs, mean over the benchmark's trials. The test
images are all of CIFAR-10's, and the half that the benchmark calls its test set of the two others.

Strings that describe the same function (isomorphic cells) are kept apart, as the benchmark does: each has
accuracies of its own.
"""

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from sgenas import limits, reading
from sgenas.errors import DataError, InvalidValueError
from sgenas.files import replacing
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.nasbench201_strings import all_strings, from_string, to_string

COLUMNS = {
    "cifar10": "cifar10_test",
    "cifar100": "cifar100_test",
    "ImageNet16-120": "imagenet16_120_test",
}
"""Data set, as the benchmark calls it -> column of the file."""
DECIMALS = 4


class BenchmarkApi(Protocol):
    """What `import_table` needs of the official packages' API objects."""

    def __len__(self) -> int:
        """Number of cells."""

    def arch(self, index: int) -> str:
        """The string of cell `index`."""

    def get_more_info(
        self, index: int, dataset: str, iepoch: int | None = None, hp: str = "12", is_random: bool = True
    ) -> Mapping[str, Any]:
        """Results of cell `index`; hp: number of epochs of the training; the mean unless is_random."""


class AccuracyTable:
    """Accuracies in per cent by cell and data set, all look-ups in constant time, ranks in logarithmic.

    datasets: names among COLUMNS; rows: cell string -> one accuracy for each of them; complete: all 15,625
    cells must be there. A cell is asked for by its string or its genotype.

    Raises DataError, which names the place, for a cell or accuracy that is missing or cannot be, and
    InvalidValueError for data sets that are none or unknown.
    """

    def __init__(
        self, datasets: Sequence[str], rows: Mapping[str, Sequence[float]], *, complete: bool = True
    ) -> None:
        for name in datasets:
            if name not in COLUMNS:
                raise InvalidValueError(f"datasets must be among {', '.join(COLUMNS)}, got {name!r}")
        if not datasets or len(set(datasets)) < len(datasets):
            raise InvalidValueError(f"datasets must hold different names, at least one, got {list(datasets)}")
        known = _known()
        for arch, values in rows.items():
            if arch not in known:
                raise DataError(f"accuracy table: arch must be a cell of NAS-Bench-201, got {arch!r}")
            if len(values) != len(datasets):
                raise DataError(
                    f"accuracy table, {arch}: must have {len(datasets)} values, got {len(values)}"
                )
            for name, value in zip(datasets, values, strict=True):
                if not 0 <= value <= 100:
                    raise DataError(f"accuracy table, {arch}: {name} must be from 0 to 100, got {value}")
        if not rows:
            raise DataError("accuracy table must have at least one row, got none")
        if complete and len(rows) < len(known):
            absent = next(arch for arch in all_strings() if arch not in rows)
            raise DataError(f"accuracy table must have {len(known)} rows, got {len(rows)}, without {absent}")
        self.datasets = tuple(datasets)
        self._rows = {arch: tuple(float(value) for value in values) for arch, values in rows.items()}
        self._sorted = {
            name: sorted(row[k] for row in self._rows.values()) for k, name in enumerate(datasets)
        }
        self._best = {
            name: max(self._rows, key=lambda arch, k=k: self._rows[arch][k])  # type: ignore[misc]
            for k, name in enumerate(datasets)
        }

    @classmethod
    def load(
        cls, path: str | Path, datasets: Sequence[str] | None = None, *, complete: bool = True
    ) -> "AccuracyTable":
        """Reads a CSV file, see the module's docstring; datasets: those wanted, by default all it has.

        Raises DataError with the file and the column, line or cell of the first fault.
        """
        path = Path(path)
        lines = _lines(path)
        header = next(lines, [])
        by_column = {column: name for name, column in COLUMNS.items()}
        for column in header:
            if column != "arch" and column not in by_column:
                raise DataError(f"{path}: columns must be arch, {', '.join(by_column)}, got {column!r}")
        if len(set(header)) < len(header):
            raise DataError(f"{path}: columns must not repeat, got {', '.join(header)}")
        if datasets is None:
            datasets = [by_column[column] for column in header if column != "arch"]
        for column in ("arch", *(COLUMNS.get(name, name) for name in datasets)):
            if column not in header:
                raise DataError(f"{path}: column {column} is missing, got {', '.join(header) or 'no line'}")
        if not datasets:
            raise DataError(f"{path}: must have an accuracy column ({', '.join(by_column)}), got none")
        places = [header.index(COLUMNS[name]) for name in datasets]
        rows: dict[str, list[float]] = {}
        for number, line in enumerate(lines, start=2):
            if len(line) != len(header):
                raise DataError(f"{path}, line {number}: must have {len(header)} values, got {len(line)}")
            arch = line[header.index("arch")]
            if arch in rows:
                raise DataError(f"{path}, line {number}: arch must not repeat, got twice {arch}")
            rows[arch] = [_number(line[k], f"{path}, line {number}: {header[k]}") for k in places]
        try:
            return cls(datasets, rows, complete=complete)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes the CSV that `load` reads; raises RunFolderError where the file cannot be written."""
        lines = [["arch", *(COLUMNS[name] for name in self.datasets)]]
        lines += [[arch, *(repr(value) for value in row)] for arch, row in self._rows.items()]
        with replacing(Path(path)) as file:
            file.write("".join(",".join(line) + "\n" for line in lines).encode())

    def __len__(self) -> int:
        return len(self._rows)

    def architectures(self) -> Iterable[str]:
        """The strings of all cells of the table, in its order."""
        return self._rows.keys()

    def query(self, arch: str | Genotype) -> dict[str, float]:
        """Test accuracy in per cent of a cell on every data set of the table.

        Raises GenotypeError for what is no cell of the benchmark, DataError for one that the table lacks.
        """
        return dict(zip(self.datasets, self._row(arch), strict=True))

    def rank(self, arch: str | Genotype, dataset: str) -> int:
        """1 + the number of cells with a higher accuracy: 1 is the best, equals share a rank.

        Raises as `query`, and InvalidValueError for a data set that the table lacks.
        """
        value = self._row(arch)[self._column(dataset)]
        ordered = self._sorted[dataset]
        return 1 + len(ordered) - bisect_right(ordered, value)

    def regret(self, arch: str | Genotype, dataset: str) -> float:
        """Accuracy of the best cell minus that of this one, in percentage points; raises as `rank`."""
        value = self._row(arch)[self._column(dataset)]
        return self._sorted[dataset][-1] - value

    def best(self, dataset: str) -> str:
        """The string of the cell with the highest accuracy, the first in the table's order between equals.

        Raises InvalidValueError for a data set that the table lacks.
        """
        self._column(dataset)
        return self._best[dataset]

    def _row(self, arch: str | Genotype) -> tuple[float, ...]:
        name = to_string(arch) if isinstance(arch, Genotype) else arch
        if name not in self._rows:
            from_string(name)
            raise DataError(f"accuracy table must hold the cell asked for, got none for {name}")
        return self._rows[name]

    def _column(self, dataset: str) -> int:
        if dataset not in self.datasets:
            raise InvalidValueError(f"dataset must be one of {', '.join(self.datasets)}, got {dataset!r}")
        return self.datasets.index(dataset)


def import_table(api: BenchmarkApi, path: str | Path, *, complete: bool = True) -> AccuracyTable:
    """Writes the CSV file from an API object of the official packages, and returns the table.

    api: what `nats_bench.create(file, "tss", fast_mode=..., verbose=False)` or, of the older package,
    `nas_201_api.NASBench201API(file, verbose=False)` gives. Used of it: `len(api)`, `api.arch(index)` and
    `api.get_more_info(index, dataset, hp="200", is_random=False)["test-accuracy"]`, for every index and the
    three data sets of COLUMNS: the mean over all trials after the last of 200 epochs. Accuracies are rounded
    to 4 decimals. Errors of the API itself are passed on.

    Raises DataError where a result lacks the test accuracy or the cells are not those of the benchmark, and
    RunFolderError where the file cannot be written. Nothing is written then.
    """
    rows: dict[str, list[float]] = {}
    for index in range(len(api)):
        arch = api.arch(index)
        row = []
        for dataset in COLUMNS:
            info = api.get_more_info(index, dataset, hp="200", is_random=False)
            if "test-accuracy" not in info:
                raise DataError(
                    f"benchmark API, cell {index} ({arch}), {dataset}: must give test-accuracy,"
                    f" got {', '.join(info) or 'nothing'}"
                )
            row.append(round(float(info["test-accuracy"]), DECIMALS))
        if arch in rows:
            raise DataError(f"benchmark API, cell {index}: arch must not repeat, got twice {arch}")
        rows[arch] = row
    table = AccuracyTable(tuple(COLUMNS), rows, complete=complete)
    table.save(path)
    return table


@cache
def _known() -> frozenset[str]:
    return frozenset(all_strings())


def _lines(path: Path) -> Iterator[list[str]]:
    """The lines one by one: the first bad one ends the reading, and a line of nothing takes sixty bytes."""
    try:
        yield from csv.reader(io.StringIO(reading.text(path, limits.TABLE), newline=""), strict=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place} must be a finite number, got {text!r}")
    return value
