"""What became of a job: outcome.json, written at its end, and how far it is until then."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgenas.errors import InvalidValueError, RunDirError, SgenasError, one_line
from sgenas.experiments.grid import Job
from sgenas.files import write_text
from sgenas.report.run_record import read_run
from sgenas.run.config import from_plain, to_plain
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.networks import network_size
from sgenas.training.config import TrainConfig

LONGEST = 300
"""Characters of a reason."""
TAIL = 65536
"""Bytes at the end of metrics.jsonl, or of a log, that hold at least one whole line."""


@dataclass(frozen=True)
class Figures:
    """Results of a job that is done.

    Accuracies are fractions: after the last epoch, and the best of all epochs, hence chosen on the test set. ``params``
    are those of the trained network without auxiliary head, ``macs`` those of one image; ``forward`` and ``backward``
    count passes of the search. ``started`` (UTC) and ``device`` are the search's, ``machine`` and ``versions`` those
    of both runs.
    """

    test_accuracy: float
    best_test_accuracy: float
    test_images: int
    params: int
    params_with_auxiliary: int
    macs: int
    search_seconds: float
    training_seconds: float
    forward: float
    backward: float
    genotype: Genotype
    started: str
    device: str
    machine: str
    versions: str


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the date (UTC), and ``figures``, or the ``stage`` in which it failed and the ``reason``."""

    when: str
    stage: str | None = None
    reason: str | None = None
    figures: Figures | None = None

    @property
    def done(self) -> bool:
        """Whether both runs are finished."""
        return self.figures is not None

    @classmethod
    def failed(cls, stage: str, reason: str) -> "Outcome":
        """Of a job that cannot continue; ``reason`` becomes one line."""
        line = " ".join(reason.split())
        return cls(now(), stage, line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}...")


@dataclass(frozen=True)
class JobStatus:
    """How far a job is: its outcome once it is over, the stage that has begun last (``""`` for none), and how many of
    that stage's ``epochs`` are finished.
    """

    job: Job
    outcome: Outcome | None
    stage: str
    epoch: int
    epochs: int

    @classmethod
    def of(cls, job: Job) -> "JobStatus":
        """The status by what the runs have written; a run writes with every checkpoint."""
        stage, path, epochs = _latest(job)
        epoch = _finished_epochs(path / "metrics.jsonl") if stage else 0
        return cls(job, read_outcome(job), stage, epoch, epochs)

    @property
    def figures(self) -> Figures | None:
        """Results of a job that is done."""
        return None if self.outcome is None else self.outcome.figures

    @property
    def state(self) -> str:
        """``"done"``, ``"failed"``, ``"begun"`` (running or cut short) or ``"missing"``."""
        if self.outcome is not None:
            return "done" if self.outcome.done else "failed"
        return "begun" if self.stage else "missing"

    def __str__(self) -> str:
        if self.figures is not None:
            return f"done, test accuracy {100 * self.figures.test_accuracy:.2f} %"
        if self.outcome is not None:
            return f"failed in the {self.outcome.stage}: {self.outcome.reason}"
        return f"{self.stage}, {self.epoch} of {self.epochs} epochs" if self.stage else "not begun"


def _latest(job: Job) -> tuple[str, Path, int]:
    """(stage that has begun last or "", its run directory, its epochs)."""
    if (job.training_dir / "config.json").exists():
        return "training", job.training_dir, job.entry.training.epochs
    stage = "search" if (job.search_dir / "config.json").exists() else ""
    return stage, job.search_dir, job.entry.search.epochs


def is_done(job: Job) -> bool:
    """Whether both runs of ``job`` are finished."""
    outcome = read_outcome(job)
    return outcome is not None and outcome.done


def read_outcome(job: Job) -> Outcome | None:
    """What became of ``job``; None if it is not over, or if its training run is gone.

    A damaged outcome.json is a failure with that reason, so that it does not hide other jobs; another try reads
    the runs and writes it again.
    """
    path = job.path / "outcome.json"
    try:
        outcome: Outcome = from_plain(Outcome, json.loads(path.read_text(encoding="utf-8")), "outcome")
        if outcome.figures is None and outcome.reason is None:
            raise InvalidValueError("it has neither figures nor a reason")
    except FileNotFoundError:
        return None
    except (SgenasError, OSError, ValueError, TypeError, RecursionError) as error:
        return Outcome.failed(_latest(job)[0] or "search", f"{path} cannot be read: {one_line(error)}")
    if outcome.done and not (job.training_dir / "metrics.jsonl").exists():
        return None
    return outcome


def write_outcome(job: Job, outcome: Outcome) -> None:
    """Writes outcome.json, whole or not at all."""
    write_text(job.path / "outcome.json", json.dumps(to_plain(outcome), indent=1) + "\n")


def report_death(job: Job, reason: str) -> Outcome:
    """The outcome of a job whose process ended without one; not written if another process runs the job."""
    outcome = Outcome.failed(_latest(job)[0] or "search", reason)
    with contextlib.suppress(RunDirError), job.locked():
        kept = read_outcome(job)
        if kept is not None:
            return kept
        write_outcome(job, outcome)
    return outcome


def tail(path: Path) -> list[bytes]:
    """The last lines of a file; the first of them may be cut."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read(TAIL).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {error.strerror or error}") from None


def _finished_epochs(metrics: Path) -> int:
    for line in reversed(tail(metrics)):
        try:
            row = json.loads(line)
            return int(row["epoch"]) + (row["kind"] == "epoch")
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            continue  # cut by a kill, or by `tail`
    return 0


def figures_of(job: Job) -> Figures:
    """The results of a job whose training run is finished; raises what ``read_run`` raises."""
    search, training = (read_run(path, brief=True) for path in (job.search_dir, job.training_dir))
    config, facts, environment = TrainConfig.from_dict(training.config), training.environment, search.environment
    input_channels, height, width = facts["input"]
    size = network_size(
        config.genotype,
        channels=config.channels,
        layers=config.layers,
        num_classes=len(facts["classes"]),
        resolution=(height, width),
        input_channels=input_channels,
    )
    last, searched = training.epochs[-1], search.epochs[-1]
    return Figures(
        test_accuracy=last["test_accuracy"],
        best_test_accuracy=last["best_test_accuracy"],
        test_images=facts["images"]["test"],
        **asdict(size),
        search_seconds=searched["seconds"],
        training_seconds=last["seconds"],
        forward=searched["forward"],
        backward=searched["backward"],
        genotype=config.genotype,
        started=environment["started"],
        device=device_text(environment),
        machine="; ".join(dict.fromkeys(map(_machine, (environment, facts)))),
        versions="; ".join(dict.fromkeys(map(_versions, (environment, facts)))),
    )


def device_text(environment: Mapping[str, Any]) -> str:
    """The device of a run in words."""
    name, threads = environment["device_name"], environment["threads"]
    if environment["device"].startswith("cuda"):
        return str(name)
    return f"CPU ({name}, {threads} thread{'s' if threads > 1 else ''})"


def _machine(environment: Mapping[str, Any]) -> str:
    return f"{environment['platform']}, {environment['cores']} cores"


def _versions(environment: Mapping[str, Any]) -> str:
    at = f" at {environment['git_commit'][:12]}" if environment.get("git_commit") else ""
    return f"sgenas {environment['sgenas']}{at}, torch {environment['torch']}, Python {environment['python']}"


def now() -> str:
    """The date in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
