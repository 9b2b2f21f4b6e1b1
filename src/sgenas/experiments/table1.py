"""Table 1 by one call: runs the jobs that are missing, and writes the table after each.

Example:
    >>> run("runs/table1", GridSettings(preset="smoke", seeds=(0,)), launcher=Local(jobs=2))
    >>> print(status_text(status("runs/table1")))
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sgenas import data
from sgenas.errors import DataError
from sgenas.experiments import forecast as predicting
from sgenas.experiments import formats
from sgenas.experiments import run_job as running
from sgenas.experiments.grid import Grid, GridSettings, Job, extend, load_grid
from sgenas.experiments.launchers import Launcher, Local
from sgenas.experiments.outcome import JobStatus, Outcome, is_done, now
from sgenas.experiments.table import collect

__all__ = [
    "Grid",
    "GridSettings",
    "forecast",
    "make_grid",
    "run",
    "run_job",
    "status",
    "status_text",
    "write_tables",
]
REFRESH = 1.0
"""Seconds between two looks at the run directories."""


def make_grid(out: str | Path, settings: GridSettings | None = None, command: str = "") -> Grid:
    """Writes the plan ``out``/grid.json and runs nothing.

    Args:
        out: Directory of the grid, new or with a grid to which new rows, datasets and seeds are added.
        settings: What is asked for; what the grid already holds if None.
        command: Command line to note in the plan and the tables.

    Raises:
        InvalidValueError: If the settings contradict the grid.
        DataError: If a dataset is missing or has no test images.
        RunDirError: If the directory holds other files.
    """
    return _begin(Path(out), settings, command)[0]


def run(
    out: str | Path,
    settings: GridSettings | None = None,
    *,
    launcher: Launcher | None = None,
    console: Console | None = None,
    stop: Callable[[], bool] = lambda: False,
    command: str = "",
) -> list[JobStatus]:
    """Runs the jobs that are asked for and not done, and writes the tables whenever one ends.

    Args:
        out: See ``make_grid``.
        settings: See ``make_grid``.
        launcher: Where jobs run; processes on this machine if None.
        console: Where progress is shown; nowhere if None.
        stop: Asked several times per second; True lets all jobs write a checkpoint and stop.
        command: See ``make_grid``.

    Returns:
        The status of every job that was asked for.

    Raises:
        InvalidValueError, DataError, RunDirError: As ``make_grid``, before anything runs.
    """
    grid, jobs = _begin(Path(out), settings, command)
    todo = [job for job in jobs if not is_done(job)]
    with Display(console or Console(quiet=True), grid, len(todo), len(jobs)) as display:
        if todo:
            (launcher or Local()).run(todo, display, stop)
    write_tables(out)
    return [JobStatus.of(job) for job in jobs]


def forecast(
    out: str | Path, settings: GridSettings | None = None, *, machine: str = "auto"
) -> predicting.TableForecast:
    """Hours of the jobs that ``run`` would run with these arguments; writes nothing.

    Args:
        out: See ``make_grid``.
        settings: See ``make_grid``.
        machine: ``"here"``, ``"a100"`` or ``"auto"``; see `sgenas.experiments.forecast.forecast`.

    Example:
        >>> print(table1.forecast("runs/table1", GridSettings(preset="medium")))
    """
    grid, jobs = extend(Path(out), settings or GridSettings(), ("", ""))
    return predicting.forecast([job for job in jobs if not is_done(job)], grid.plan.preset, machine)


def run_job(
    out: str | Path, name: str, *, stop: Callable[[], bool] = lambda: False, patience: float = 0.0
) -> Outcome | None:
    """Runs or resumes one job of the grid in this process; see `sgenas.experiments.run_job.run_job`.

    Args:
        out: Directory of the grid.
        name: Name of the job, such as ``"cifar10/darts-sge/seed-0"``.
        stop: Asked after each step.
        patience: Seconds to wait for another process that still runs the job.
    """
    return running.run_job(load_grid(out).job(name), stop=stop, patience=patience)


def write_tables(out: str | Path) -> list[Path]:
    """Writes table.md, .csv and .tex of what the grid's directory holds; returns their paths."""
    return formats.write_tables(collect(load_grid(out)))


def status(out: str | Path) -> dict[str, Any]:
    """How far each job of the grid is, as plain data: ``preset``, ``counts`` by state, and ``jobs``.

    The state of a job is "done", "failed", "begun" (running or cut short) or "missing".
    """
    grid = load_grid(out)
    found = [JobStatus.of(job) for job in grid.jobs]
    counts = Counter(each.state for each in found)
    return {
        "preset": grid.plan.preset,
        "counts": {state: counts[state] for state in ("done", "failed", "begun", "missing")},
        "jobs": [
            {
                "job": each.job.name,
                "state": each.state,
                "stage": (each.outcome and each.outcome.stage) or each.stage or None,
                "epoch": each.epoch,
                "epochs": each.epochs,
                "reason": None if each.outcome is None else each.outcome.reason,
                "test_accuracy": None if each.figures is None else each.figures.test_accuracy,
                "text": str(each),
            }
            for each in found
        ],
    }


def status_text(found: dict[str, Any]) -> str:
    """``status`` in lines, one per job."""
    width = max(len(row["job"]) for row in found["jobs"])
    lines = [f"{row['job']:{width}}  {row['text']}" for row in found["jobs"]]
    counts = ", ".join(f"{count} {state}" for state, count in found["counts"].items())
    return "\n".join([*lines, f"{len(lines)} jobs: {counts}"]) + "\n"


def _begin(out: Path, settings: GridSettings | None, command: str) -> tuple[Grid, tuple[Job, ...]]:
    grid, jobs = extend(out, settings or GridSettings(), (now(), command or f"table1.run({str(out)!r})"))
    _check_data(jobs)
    grid.save()
    return grid, jobs


def _check_data(jobs: Sequence[Job]) -> None:
    """Reads each dataset once, unless a run has: a wrong path is one error, and a download one download."""
    begun = {job.entry.dataset for job in jobs if job.search_dir.exists()}
    for job in jobs:
        if job.entry.dataset not in begun:
            begun.add(job.entry.dataset)
            if data.load_images(job.search.data, job.seed, test=True).test is None:
                raise DataError(f"data {job.entry.dataset.spec} must have test images, got none")


class Display:
    """Shows the jobs on a console (a line per running job on a terminal), and writes the tables after each."""

    def __init__(self, console: Console, grid: Grid, todo: int, total: int) -> None:
        self._console, self._grid = console, grid
        self._over, self._total = total - todo, total
        self._running: dict[str, tuple[Job, float]] = {}
        self._looked = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def started(self, job: Job) -> None:
        """A job runs from now on."""
        self._running[job.name] = job, time.monotonic()
        found = replace(JobStatus.of(job), outcome=None)  # that of an earlier try
        self._say(f"{job.name}: {f'resumes, {found}' if found.stage else 'begins'}")

    def ended(self, job: Job, outcome: Outcome | None) -> None:
        """A job is over; None if it was stopped."""
        _, since = self._running.pop(job.name, (job, time.monotonic()))
        self._over += outcome is not None
        write_tables(self._grid.path)
        found = JobStatus.of(job)
        text = f"stopped, {found}" if outcome is None else str(found)
        self._say(f"{job.name}: {text} ({(time.monotonic() - since) / 60:.1f} min; {self._count()})")

    def tick(self) -> None:
        """Draws the lines of the running jobs."""
        if self._live is None or time.monotonic() - self._looked < REFRESH:
            return
        self._looked = time.monotonic()
        lines = [
            f"{job.name}  {JobStatus.of(job)}  {(self._looked - since) / 60:.1f} min"
            for job, since in self._running.values()
        ]
        self._live.update(Text("\n".join([*lines, self._count()])), refresh=True)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _count(self) -> str:
        return f"{self._over} of {self._total} jobs are over"

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
