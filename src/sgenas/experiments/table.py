"""The table as data: what became of every job, over the seeds, next to the paper's figures."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from sgenas.experiments.grid import Dataset, Grid
from sgenas.experiments.outcome import Figures, JobStatus
from sgenas.experiments.presets import GRID_PRESETS, TableRow
from sgenas.experiments.published import NAMES, TABLE_1, Published
from sgenas.methods import METHODS

MODES = {"first-order": "SGD", "sge": "SGE"}
"""Estimator -> the paper's "differentiable mode"; others are shown by their name."""


@dataclass(frozen=True)
class Spread:
    """Mean of ``count`` values; deviation: sample standard deviation (divisor count - 1), None of one value."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """The Spread of ``values``; None if there are none."""
        found = list(values)
        return cls(mean(found), stdev(found) if len(found) > 1 else None, len(found)) if found else None


FIGURES: dict[str, Callable[[Figures], float]] = {
    "top1": lambda figures: 100 * figures.test_accuracy,
    "params": lambda figures: figures.params / 1e6,
    "search_hours": lambda figures: figures.search_seconds / 3600,
    "training_hours": lambda figures: figures.training_seconds / 3600,
    "forward": lambda figures: figures.forward,
    "backward": lambda figures: figures.backward,
}
"""Name -> value of one job: percent of the test images, millions of parameters, hours, passes of the search."""


@dataclass(frozen=True)
class Line:
    """One row of the table on one dataset, over its seeds."""

    row: TableRow
    statuses: tuple[JobStatus, ...]
    published: Published | None

    @property
    def mode(self) -> str:
        """How the hypergradient is computed, as the paper calls it."""
        return MODES.get(self.row.estimator, self.row.estimator)

    @property
    def name(self) -> str:
        """The paper's name of the row, or the method's."""
        method = METHODS.get(self.row.method)
        name = NAMES.get(self.row.method, self.row.method)
        return f"{method.paper_name} ({name})" if method.paper_name and self.row.estimator == "sge" else name

    @property
    def done(self) -> tuple[Figures, ...]:
        """The figures of the jobs that are done."""
        return tuple(status.figures for status in self.statuses if status.figures is not None)

    @property
    def jobs(self) -> str:
        """How many jobs are done, and how many failed."""
        failed = sum(status.state == "failed" for status in self.statuses)
        text = f"{len(self.done)} of {len(self.statuses)}"
        return f"{text}, {failed} failed" if failed else text

    def spread(self, quantity: str) -> Spread | None:
        """Mean and deviation of one of FIGURES over the seeds that are done."""
        return Spread.of(map(FIGURES[quantity], self.done))

    @property
    def devices(self) -> str:
        """What it was searched on."""
        return "; ".join(each(figures.device for figures in self.done))


@dataclass(frozen=True)
class Table:
    """The lines by dataset."""

    grid: Grid
    parts: tuple[tuple[Dataset, tuple[Line, ...]], ...]

    @property
    def statuses(self) -> tuple[JobStatus, ...]:
        """What became of every job."""
        return tuple(status for _, lines in self.parts for line in lines for status in line.statuses)

    def of_state(self, *states: str) -> tuple[JobStatus, ...]:
        """The jobs in these states."""
        return tuple(status for status in self.statuses if status.state in states)


def collect(grid: Grid) -> Table:
    """The table of what the directory of ``grid`` holds."""
    statuses: dict[tuple[Dataset, TableRow], list[JobStatus]] = {}
    for job in grid.jobs:
        statuses.setdefault((job.entry.dataset, job.entry.row), []).append(JobStatus.of(job))
    parts = []
    for dataset in grid.datasets:
        lines = [
            Line(row, tuple(found), TABLE_1.get((dataset.name, row.method, row.estimator)))
            for (where, row), found in statuses.items()
            if where == dataset
        ]
        parts.append((dataset, tuple(lines)))
    return Table(grid, tuple(parts))


def missing(table: Table) -> list[tuple[str, list[str]]]:
    """(heading, a text per job) of the jobs that failed and of those that are not finished."""
    groups = (("Failed", table.of_state("failed")), ("Not finished", table.of_state("begun", "missing")))
    return [(title, [f"{each.job.name}: {each}" for each in found]) for title, found in groups if found]


def facts(table: Table) -> list[tuple[str, str]]:
    """What one must know to read the table: (what, value), from the settings and the run directories."""
    plan, sizes = table.grid.plan, GRID_PRESETS[table.grid.plan.preset]
    done = [status.figures for status in table.statuses if status.figures is not None]
    ended = sorted(status.outcome.when for status in table.statuses if status.outcome is not None)
    jobs = f"{len(done)} of {len(table.statuses)} done"
    jobs += "".join(f", {len(texts)} {title.lower()}" for title, texts in missing(table))
    sge = {"source": "the same with the default sge", "paper": "the paper's"}[sizes.sge]
    found = [
        ("Preset", f"{plan.preset}: {sizes.purpose}"),
        ("Data", "; ".join(each(f"{one.name} ({one.spec})" for one in table.grid.datasets))),
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Jobs", jobs),
        ("Search", _sizes(f"settings of the method's source; SGE: {sge}", sizes.search)),
        ("Training", _sizes(f"recipe {sizes.recipe}", sizes.training)),
    ]
    sources = each(f"{row.method}: {METHODS.get(row.method).source}" for row in table.grid.rows)
    found.append(("Methods", "; ".join(sources)))
    if sizes.alpha_lr_scale != 1:
        found.append(("Alphas", f"learning rate of the method times {sizes.alpha_lr_scale:g}"))
    if done:
        found.append(("Dates", f"{min(figures.started for figures in done)} to {ended[-1]}"))
        for name in ("device", "machine", "versions"):
            # (of each job those of its search and of its training)
            texts = (text for figures in done for text in getattr(figures, name).split("; "))
            found.append((name.capitalize(), "; ".join(each(texts))))
    return found + [("Command", command) for command in each(command for _, command in plan.commands)]


def notes(table: Table) -> list[str]:
    """How to read the columns, a sentence each."""
    found = [
        "Top-1 is the test accuracy after the last epoch of the training, mean and sample standard deviation"
        " over the seeds that are done; no epoch is chosen on the test images.",
        "Params are those of the trained network without its auxiliary head; hours are wall-clock time of"
        " the search alone; passes are those of its batches.",
        "SGD rows are first-order searches, SGE rows Algorithm 1 of the paper.",
    ]
    if table.grid.plan.preset != "paper":
        found.append(
            "The paper's figures are of its full size: these runs are far smaller, and only rows of the same"
            " table can be compared. Methods that derive by a threshold use the DARTS rule here: in so few"
            " epochs no mixing weight reaches it."
        )
    return found


def each(values: Iterable[str]) -> tuple[str, ...]:
    """Every value once, in the order of their first appearance."""
    return tuple(dict.fromkeys(values))


def _sizes(base: str, settings: Any) -> str:
    changes = [f"{name}={value}" for name, value in settings.items()]
    return f"{base}; {' '.join(changes)}" if changes else base
