"""What is to be run: every setting of every run, kept in grid.json."""

import json
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sgenas import data
from sgenas.errors import InvalidValueError, RunDirError, did_you_mean, require
from sgenas.experiments.presets import ANY_GENOTYPE, GRID_PRESETS, TableRow, preset, rows, search_config, train_config
from sgenas.fields import option
from sgenas.files import locked, naming, read_json, write_text
from sgenas.run.config import from_plain, to_plain
from sgenas.searching.config import SearchConfig
from sgenas.spaces.genotype import Genotype
from sgenas.training.config import TrainConfig

FORMAT, VERSION = "sgenas-table1", 2
FILE = "grid.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Name of a dataset in NAME=SPEC: it becomes the name of a directory."""


@dataclass(frozen=True)
class GridSettings:
    """What is asked of a grid. Empty values stand for what the grid already holds.

    Args:
        preset: Sizes of the runs: paper (for GPUs), medium (one GPU, one night), small (2 CPU cores) or smoke (a
            test); a new grid needs one.
        data: Datasets, each SPEC or NAME=SPEC; a new grid takes those of the preset.
        seeds: Seeds; a new grid takes 0, 1 and 2.
        methods: Methods; a new grid takes all that support the DARTS space.
        estimators: Estimators; a new grid takes first-order and sge.
    """

    preset: str | None = option(None, choices=tuple(GRID_PRESETS))
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    estimators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.preset is not None:
            preset(self.preset)
        rows(self.methods, self.estimators)
        for seed in self.seeds:
            require(0 <= seed < 2**63, "seeds", "from 0 to 2^63 - 1", seed)
        for name in ("data", "seeds", "methods", "estimators"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), name, "different from each other", values)


@dataclass(frozen=True)
class Dataset:
    """A dataset: its name in the table and in paths, and ``data.data`` in the runs' settings."""

    name: str
    spec: str

    def __post_init__(self) -> None:
        # a name such as ../.. would lead out of the grid's directory
        good = NAME.fullmatch(self.name) is not None and bool(self.spec.strip())
        limit = "SPEC or NAME=SPEC with a name of letters, digits and _.-"
        require(good, "data", limit, f"{self.name}={self.spec}")

    @classmethod
    def parse(cls, text: str) -> "Dataset":
        """``SPEC`` or ``NAME=SPEC``; without a name, the spec or the last part of its path."""
        name, separator, spec = text.partition("=")
        if not separator or NAME.fullmatch(name) is None:
            name, spec = "", text
        kind, colon, paths = spec.partition(":")
        last = Path(paths.split(",")[0].strip() if colon else kind)
        return cls(name or (last.stem if last.suffix == ".parquet" else last.name), spec.strip())

    def absolute(self) -> "Dataset":
        """With absolute paths: a later command may run in another directory."""
        settings = data.absolute_paths(data.SearchImageSettings(data=self.spec))
        return replace(self, spec=settings.data)


@dataclass(frozen=True)
class Entry:
    """A row on a dataset, and the settings of its searches and trainings but the seed and the genotype."""

    dataset: Dataset
    row: TableRow
    search: SearchConfig
    training: TrainConfig

    @classmethod
    def of_preset(cls, name: str, dataset: Dataset, row: TableRow) -> "Entry":
        """At the size of a preset."""
        return cls(dataset, row, search_config(name, row, dataset.spec), train_config(name, dataset.spec))


@dataclass(frozen=True)
class Job:
    """One search, and the training of the cell that it derives, with one seed; ``grid`` is the grid's directory."""

    entry: Entry
    seed: int
    grid: Path

    @property
    def name(self) -> str:
        """Its name, and its directory below ``runs``."""
        return f"{self.entry.dataset.name}/{self.entry.row.name}/seed-{self.seed}"

    @property
    def path(self) -> Path:
        """Directory of both run directories, outcome.json and log.txt."""
        return self.grid / "runs" / self.name

    @property
    def search_dir(self) -> Path:
        """Run directory of the search."""
        return self.path / "search"

    @property
    def training_dir(self) -> Path:
        """Run directory of the training."""
        return self.path / "training"

    @property
    def search(self) -> SearchConfig:
        """Settings of the search."""
        return replace(self.entry.search, seed=self.seed)

    def training(self, genotype: Genotype) -> TrainConfig:
        """Settings of the training of ``genotype``."""
        return replace(self.entry.training, seed=self.seed, genotype=genotype)

    def locked(self, timeout: float = 0.0) -> AbstractContextManager[None]:
        """Keeps other processes from running this job; RunDirError if one still does after ``timeout`` seconds."""
        return locked(self.path / "job.lock", f"job {self.name}", timeout=timeout)


@dataclass(frozen=True)
class GridPlan:
    """The content of grid.json. Entries keep their settings when presets or defaults change.

    Args:
        preset: Name of the preset of entries to come.
        entries: Every row on every dataset; those of the preset if empty.
        seeds: Seeds.
        commands: (date, command line) of those that worked on it.
    """

    preset: str
    entries: tuple[Entry, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    commands: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        GridSettings(self.preset, seeds=self.seeds)


@dataclass(frozen=True)
class Grid:
    """A plan and its directory."""

    path: Path
    plan: GridPlan

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Each dataset once."""
        return tuple(dict.fromkeys(entry.dataset for entry in self.plan.entries))

    @property
    def rows(self) -> tuple[TableRow, ...]:
        """Each row once."""
        return tuple(dict.fromkeys(entry.row for entry in self.plan.entries))

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """Every job, seed by seed, so that a grid that is cut short has whole tables of fewer seeds."""
        return tuple(Job(entry, seed, self.path) for seed in self.plan.seeds for entry in self.plan.entries)

    def job(self, name: str) -> Job:
        """The job ``name``; InvalidValueError if there is none."""
        names = {job.name: job for job in self.jobs}
        if name not in names:
            close = did_you_mean(name, tuple(names)) or f"; one of them is {next(iter(names))}"
            raise InvalidValueError(
                f"job must be one of the {len(names)} of {self.path / FILE}, got {name!r}{close}", field="job"
            )
        return names[name]

    def save(self) -> None:
        """Writes grid.json."""
        plain = to_plain(self.plan)
        for entry in plain["entries"]:
            del entry["training"]["genotype"]
        with naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / FILE, json.dumps({"format": FORMAT, "version": VERSION, **plain}, indent=1) + "\n")


def load_grid(path: str | Path) -> Grid:
    """The grid in a directory. Missing entries take their defaults.

    Raises:
        RunDirError: If there is none, or it is damaged.
        InvalidValueError: If a setting is unknown, missing or out of range.
    """
    path = Path(path)
    if not (path / FILE).exists():
        raise RunDirError(f"{path} holds no grid: it has no {FILE}")
    content = read_json(path / FILE, FORMAT, VERSION)
    plain: dict[str, Any] = {key: value for key, value in content.items() if key not in ("format", "version")}
    try:
        for entry in plain.get("entries", ()):
            entry["training"]["genotype"] = ANY_GENOTYPE.to_dict()
        plan = from_plain(GridPlan, plain, "grid")
    except InvalidValueError as error:
        raise InvalidValueError(f"{path / FILE}: {error}", field=error.field) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunDirError(f"{path / FILE} must be a grid, got {error!r:.200}") from None
    if not plan.entries:
        plan = _with_entries(plan, _preset_data(plan.preset), rows())
    return Grid(path, plan)


def _preset_data(name: str) -> tuple[Dataset, ...]:
    return tuple(Dataset.parse(text) for text in preset(name).data)


def _with_entries(plan: GridPlan, datasets: Iterable[Dataset], wanted: Iterable[TableRow]) -> GridPlan:
    """The plan with each of these rows on each of these datasets, estimator by estimator."""
    known = {(entry.dataset, entry.row): entry for entry in plan.entries}
    estimators = list(dict.fromkeys(row.estimator for row in wanted))
    ordered = sorted(wanted, key=lambda row: estimators.index(row.estimator))
    pairs = [(dataset, row) for dataset in datasets for row in ordered]
    return replace(plan, entries=tuple(known.get(pair) or Entry.of_preset(plan.preset, *pair) for pair in pairs))


def extend(path: Path, asked: GridSettings, command: tuple[str, str]) -> tuple[Grid, tuple[Job, ...]]:
    """(the grid of ``path`` with what is asked added to it, the jobs that are asked for); writes nothing.

    Raises:
        InvalidValueError: If what is asked contradicts the grid.
        RunDirError: If the directory holds other files, or a damaged grid.
    """
    datasets = tuple(Dataset.parse(text).absolute() for text in asked.data)
    if (path / FILE).exists():
        old = load_grid(path)
        same = asked.preset in (None, old.plan.preset)
        require(same, "preset", f"{old.plan.preset} as in {path}, or the directory another", asked.preset)
        wanted, plan = old.rows, old.plan
        if asked.methods or asked.estimators:
            wanted = rows(
                asked.methods or tuple(dict.fromkeys(row.method for row in wanted)),
                asked.estimators or tuple(dict.fromkeys(row.estimator for row in wanted)),
            )
    else:
        _require_new(path)
        if asked.preset is None:
            raise InvalidValueError(
                f"preset must be one of {', '.join(GRID_PRESETS)} for the new grid in {path}", field="preset"
            )
        old = Grid(path, GridPlan(asked.preset, seeds=asked.seeds or (0, 1, 2)))
        wanted, plan = rows(asked.methods, asked.estimators), old.plan
        datasets = datasets or _preset_data(asked.preset)
    known = {dataset.name: dataset for dataset in old.datasets}
    for dataset in datasets:
        found = known.setdefault(dataset.name, dataset)
        limit = f"{found.spec} under the name {found.name} (use NAME=SPEC for another one)"
        require(found == dataset, "data", limit, dataset.spec)
    plan = replace(
        _with_entries(plan, known.values(), dict.fromkeys((*old.rows, *wanted))),
        seeds=tuple(sorted({*plan.seeds, *asked.seeds})),
        commands=(*plan.commands, command),
    )
    grid = Grid(path, plan)
    chosen = [
        job
        for job in grid.jobs
        if job.entry.row in wanted
        and job.entry.dataset in (datasets or old.datasets)
        and job.seed in (asked.seeds or plan.seeds)
    ]
    return grid, tuple(chosen)


def _require_new(path: Path) -> None:
    try:
        if path.exists() and any(path.iterdir()):
            raise RunDirError(f"{path} must be new, empty or hold a grid, got other files")
    except OSError as error:
        raise RunDirError(f"{path} must be a directory: {error.strerror}") from None
