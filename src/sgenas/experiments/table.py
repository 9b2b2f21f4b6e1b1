"""The table as data: what became of every place, over the seeds, beside the paper's figures."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from sgenas.experiments.grid import Dataset, Grid, Place
from sgenas.experiments.outcome import Outcome, Progress, progress, read_outcome
from sgenas.experiments.presets import ROWS, Preset, Row, preset
from sgenas.experiments.published import NAMES, TABLE_1, Published
from sgenas.methods import METHODS

SECONDS_AN_HOUR = 3600


@dataclass(frozen=True)
class Spread:
    """mean of `count` values; deviation: of a sample (divisor count - 1), None of a single value."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """The Spread of `values`, None where there are none."""
    found = list(values)
    if not found:
        return None
    return Spread(mean(found), stdev(found) if len(found) > 1 else None, len(found))


@dataclass(frozen=True)
class Status:
    """What became of a place: its outcome or, without one, how far it is."""

    place: Place
    outcome: Outcome | None
    progress: Progress

    @property
    def figures(self) -> dict[str, Any] | None:
        """Of a place that is done, see `figures_of`; else None."""
        done = self.outcome is not None and self.outcome.state == "done"
        return self.outcome.figures if done and self.outcome is not None else None

    @property
    def failed(self) -> bool:
        """Whether it cannot go on without being tried again."""
        return self.outcome is not None and self.outcome.state == "failed"

    def __str__(self) -> str:
        if self.outcome is None:
            return str(self.progress)
        return "done" if not self.failed else f"failed in the {self.outcome.stage}: {self.outcome.reason}"


SGE_SETTINGS = {"source": "the same, with sge as it is by default", "paper": "the paper's"}
"""`Preset.sge` in words."""


@dataclass(frozen=True)
class Line:
    """One row of the table on one data set, over its seeds."""

    row: Row
    statuses: tuple[Status, ...]
    published: Published | None

    @property
    def mode(self) -> str:
        """The paper's "differentiable mode"."""
        return "SGE" if self.row.estimator == "sge" else "SGD"

    @property
    def name(self) -> str:
        """The paper's name, with that of the method where it does not say it."""
        name = NAMES[self.row.method]
        return f"{METHODS[self.row.method].paper_name} ({name})" if self.row.estimator == "sge" else name

    @cached_property
    def done(self) -> tuple[dict[str, Any], ...]:
        """The figures of the places that are done."""
        return tuple(status.figures for status in self.statuses if status.figures is not None)

    @property
    def runs(self) -> str:
        """How many of its places are done, and how many have failed."""
        failed = sum(status.failed for status in self.statuses)
        text = f"{len(self.done)} of {len(self.statuses)}"
        return f"{text}, {failed} failed" if failed else text

    @property
    def top1(self) -> Spread | None:
        """Per cent of the test images, last epoch."""
        return spread(100 * figures["test_accuracy"] for figures in self.done)

    @property
    def params(self) -> Spread | None:
        """Millions of parameters of the trained network, without auxiliary head."""
        return spread(figures["params"] / 1e6 for figures in self.done)

    @property
    def search_hours(self) -> Spread | None:
        """Hours of wall-clock time of the search."""
        return spread(_last(figures, "search", "seconds") / SECONDS_AN_HOUR for figures in self.done)

    @property
    def training_hours(self) -> Spread | None:
        """Hours of wall-clock time of the training."""
        return spread(_last(figures, "training", "seconds") / SECONDS_AN_HOUR for figures in self.done)

    @property
    def forward(self) -> Spread | None:
        """Forward passes of the search."""
        return spread(_last(figures, "search", "forward") for figures in self.done)

    @property
    def backward(self) -> Spread | None:
        """Backward passes of the search."""
        return spread(_last(figures, "search", "backward") for figures in self.done)

    @property
    def devices(self) -> tuple[str, ...]:
        """What it was searched on, each once."""
        return _each(device_of(figures["search"]["environment"]) for figures in self.done)


@dataclass(frozen=True)
class Table:
    """parts: the lines by data set."""

    grid: Grid
    parts: tuple[tuple[Dataset, tuple[Line, ...]], ...]

    @property
    def preset(self) -> Preset:
        """The sizes of the grid."""
        return preset(self.grid.preset)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """What became of every place."""
        return tuple(status for _, lines in self.parts for line in lines for status in line.statuses)

    @property
    def failed(self) -> tuple[Status, ...]:
        """Those that have failed."""
        return tuple(status for status in self.statuses if status.failed)

    @property
    def unfinished(self) -> tuple[Status, ...]:
        """Those without an outcome."""
        return tuple(status for status in self.statuses if status.outcome is None)


def collect(grid: Grid) -> Table:
    """The table of what the folder of `grid` holds."""
    statuses = {place: Status(place, read_outcome(place), progress(place)) for place in grid.places}
    parts = tuple(
        (
            dataset,
            tuple(
                Line(
                    row,
                    tuple(
                        status
                        for place, status in statuses.items()
                        if place.dataset == dataset and place.row == row
                    ),
                    TABLE_1.get((dataset.name, row.method, row.estimator)),
                )
                for row in ROWS
            ),
        )
        for dataset in grid.data
    )
    return Table(grid, parts)


def facts(table: Table) -> list[tuple[str, str]]:
    """What must be known to read the table: (what, value), from the settings and the runs' own folders."""
    grid, sizes, statuses = table.grid, table.preset, table.statuses
    done = [status.figures for status in statuses if status.figures is not None]
    environments = [figures[run]["environment"] for figures in done for run in ("search", "training")]
    started = sorted(environment["started"] for environment in environments)
    ended = sorted(status.outcome.when for status in statuses if status.outcome is not None)
    runs = f"{len(done)} of {len(statuses)} done"
    if table.failed:
        runs += f", {len(table.failed)} failed"
    if table.unfinished:
        runs += f", {len(table.unfinished)} not finished"
    found = [
        ("Preset", f"{grid.preset}: {sizes.purpose}"),
        ("Data", "; ".join(_name(dataset) for dataset in grid.data)),
        ("Seeds", ", ".join(map(str, grid.seeds))),
        ("Runs", runs),
        (
            "Search",
            _sizes(f"SGD: settings of the method's source; SGE: {SGE_SETTINGS[sizes.sge]}", sizes.search),
        ),
        ("Training", _sizes(f"recipe {sizes.recipe}", sizes.training)),
    ]
    if sizes.alpha_lr_scale != 1:
        found.append(("Alphas", f"learning rate of the method times {sizes.alpha_lr_scale:g}"))
    if environments:
        found += [
            ("Dates", f"{started[0]} to {ended[-1]}"),
            ("Device", "; ".join(_each(map(device_of, environments)))),
            (
                "Machine",
                "; ".join(_each(f"{each['platform']}, {each['cores']} cores" for each in environments)),
            ),
            ("Versions", "; ".join(_each(map(_versions, environments)))),
        ]
    commands = _each(command for _, command in grid.commands)
    return [*found, *(("Command", command) for command in commands)]


def notes(table: Table) -> list[str]:
    """How the columns are to be read, a sentence each."""
    found = [
        "Top-1 is the test accuracy after the last epoch of the training, mean and sample standard deviation"
        " over the seeds that are done; no epoch is chosen on the test images.",
        "Params are those of the trained network without its auxiliary head; hours are wall-clock time of"
        " the search alone; passes are those of its batches.",
        "The SGD rows are first-order searches, the SGE rows Algorithm 1 with Q = 10.",
    ]
    if table.grid.preset != "paper":
        found.append(
            "The paper's figures are of its full size: these runs are far smaller, and only rows of the same"
            " table can be compared. Fair DARTS' cells are read by the DARTS rule (--derivation top2): in"
            " so few epochs no sigmoid reaches its threshold."
        )
    return found


def device_of(environment: dict[str, Any]) -> str:
    """The device of a run in words."""
    name, threads = environment["device_name"], environment["threads"]
    if environment["device"].startswith("cuda"):
        return str(name)
    return f"CPU ({name}, {threads} thread{'s' if threads > 1 else ''})"


def per_run(table: Table) -> list[dict[str, Any]]:
    """Every place with all that is known of it, as plain data."""
    return [
        {
            "name": status.place.name,
            "data": status.place.dataset.name,
            "method": status.place.row.method,
            "estimator": status.place.row.estimator,
            "seed": status.place.seed,
            "state": status.outcome.state if status.outcome is not None else "unfinished",
            "status": str(status),
            "when": None if status.outcome is None else status.outcome.when,
            "figures": status.figures,
        }
        for status in table.statuses
    ]


def _last(figures: dict[str, Any], run: str, name: str) -> float:
    return float(figures[run]["last"][name])


def _each(values: Iterable[str]) -> tuple[str, ...]:
    """Every value once, in the order of their first appearance."""
    return tuple(dict.fromkeys(values))


def _name(dataset: Dataset) -> str:
    return dataset.name if dataset.name == dataset.spec else f"{dataset.name} ({dataset.spec})"


def _sizes(base: str, flags: Any) -> str:
    changes = [f"--{name.replace('_', '-')} {value}" for name, value in flags.items()]
    return f"{base}; {' '.join(changes)}" if changes else base


def _versions(environment: dict[str, Any]) -> str:
    commit = environment.get("git_commit")
    at = f" at {commit[:12]}" if commit else ""
    return f"sgenas {environment['sgenas']}{at}, torch {environment['torch']}, Python {environment['python']}"
