"""Runs one job: its search, then the training of the derived cell, from wherever they stand."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgenas.errors import SgenasError
from sgenas.experiments.grid import Job, load_grid
from sgenas.experiments.outcome import Outcome, figures_of, now, read_outcome, write_outcome
from sgenas.files import naming
from sgenas.run.distributed import ALONE

STOP_FILE = "stop"
"""In the grid's directory: asks every job to write its checkpoint and stop."""


def run_job(
    job: Job,
    *,
    stop: Callable[[], bool] = lambda: False,
    patience: float = 0.0,
    progress: bool = True,
) -> Outcome | None:
    """Runs or resumes both runs of ``job`` and writes what became of it.

    A job that is done is not run again; one that failed is tried again from its checkpoint. Whatever goes wrong
    in a run becomes an Outcome, with a traceback on stderr unless it is a SgenasError.

    Args:
        job: The job.
        stop: Asked after each step; True writes a checkpoint and ends the job.
        patience: Seconds to wait for another process that still runs this job.
        progress: Whether to show progress on stderr.

    Returns:
        The outcome; None if the job was stopped.

    Raises:
        RunDirError: If another process runs the job.
    """
    with job.locked(patience):
        kept = read_outcome(job)
        if kept is not None and kept.done:
            return kept
        with naming(job.path):
            (job.path / "outcome.json").unlink(missing_ok=True)
        stage = "search"
        options: dict[str, Any] = {"stop": stop, "processes": ALONE, "progress": progress}
        try:
            found = job.search.run(job.search_dir, **options)
            if not found.finished:
                return None
            stage = "training"
            trained = job.training(found.genotype).run(job.training_dir, **options)
            if not trained.finished:
                return None
            outcome = Outcome(now(), figures=figures_of(job))
        except SgenasError as error:
            outcome = Outcome.failed(stage, str(error))
        except Exception as error:
            # out of memory has half a dozen types, and a bug must not end the other jobs
            traceback.print_exc()
            outcome = Outcome.failed(stage, f"{type(error).__name__}: {error}")
        write_outcome(job, outcome)
        return outcome


def run_named(out: str, name: str, patience: float = 0.0) -> None:
    """What a worker process does: runs the job ``name`` of the grid in ``out`` until the grid's stop file appears."""
    from sgenas.device import keep_freed_memory

    stop_file = Path(out) / STOP_FILE
    if not stop_file.exists():
        keep_freed_memory()
        run_job(load_grid(Path(out)).job(name), stop=stop_file.exists, patience=patience)
