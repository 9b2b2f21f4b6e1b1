"""Where jobs run: the interface, and processes on this machine.

A launcher has one method, ``run``. The state of jobs is on the disk alone, so that any launcher continues what
another one has begun. All machines must see the grid's directory and the data under the same paths.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch

from sgenas.device import usable_cores
from sgenas.errors import require
from sgenas.experiments.grid import Job
from sgenas.experiments.outcome import Outcome, read_outcome, report_death, tail
from sgenas.experiments.run_job import STOP_FILE
from sgenas.experiments.worker import RUN_NAMED, environment, work

PAUSE = 0.2
"""Seconds between two looks at the jobs."""
MOST_ON_A_CPU = 4
"""Jobs at a time on a machine without GPUs: each holds its images and its network."""


class Watcher(Protocol):
    """Who follows the jobs. Called from the thread of ``Launcher.run``."""

    def started(self, job: Job) -> None:
        """A job runs from now on."""

    def ended(self, job: Job, outcome: Outcome | None) -> None:
        """A job is over; None if it was stopped."""

    def tick(self) -> None:
        """Called several times per second."""


class Launcher(ABC):
    """Runs jobs somewhere."""

    @abstractmethod
    def run(self, jobs: Sequence[Job], watcher: Watcher, stop: Callable[[], bool]) -> None:
        """Runs ``jobs``, at least one; a job that fails does not end the others.

        Returns when all jobs are over or, once ``stop()`` is true, have written their checkpoints. (On SLURM:
        when all are submitted.)
        """


@contextlib.contextmanager
def stopping(jobs: Sequence[Job]) -> Iterator[Callable[[], None]]:
    """A function that asks all jobs to stop, by a file that each of them looks for after every step."""
    file = jobs[0].grid / STOP_FILE
    file.unlink(missing_ok=True)
    try:
        yield file.touch
    finally:
        file.unlink(missing_ok=True)


def log_path(job: Job) -> Path:
    """What the runs of ``job`` print."""
    return job.path / "log.txt"


@dataclass(frozen=True)
class Local(Launcher):
    """Processes on this machine: if one is killed, the others go on.

    Args:
        jobs: Jobs at a time; one per GPU if None, or one per core, at most 4, without GPUs.
        threads: CPU threads per job; the cores divided by ``jobs`` if None.
        function: What a process calls with the grid's directory and the job's name, ``"module:name"``.
    """

    jobs: int | None = None
    threads: int | None = None
    function: str = RUN_NAMED

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, ">= 1 or None", value)

    def slots(self, variables: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
        """Environment variables of each job that runs at the same time: threads, and a GPU in turn."""
        cores = usable_cores()
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        named = [name.strip() for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        gpus = (named or [str(index) for index in range(count)])[:count]
        jobs = self.jobs or count or min(cores, MOST_ON_A_CPU)
        threads = self.threads or max(1, cores // jobs)
        return [environment(threads, gpus[slot % len(gpus)] if gpus else None) for slot in range(jobs)]

    def run(self, jobs: Sequence[Job], watcher: Watcher, stop: Callable[[], bool]) -> None:
        slots, waiting, stopped = self.slots(), list(jobs), False
        running: dict[int, tuple[Job, BaseProcess]] = {}
        try:
            with stopping(jobs) as ask_to_stop:
                while running or (waiting and not stopped):
                    stopped = stopped or stop()
                    if stopped:
                        ask_to_stop()
                    for slot, variables in enumerate(slots):
                        if slot not in running and waiting and not stopped:
                            job = waiting.pop(0)
                            running[slot] = job, self._start(job, variables)
                            watcher.started(job)
                    for slot, (job, process) in list(running.items()):
                        if process.exitcode is not None:
                            del running[slot]
                            watcher.ended(job, _became(job, process.exitcode))
                    watcher.tick()
                    time.sleep(PAUSE)
        finally:
            for _, process in running.values():
                process.kill()
                process.join()

    def _start(self, job: Job, variables: dict[str, str]) -> BaseProcess:
        # `spawn` imports the main module again, so that methods that a script registers exist in its jobs
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(log_path(job), variables, self.function, (str(job.grid), job.name))
        )
        # Ctrl-C reaches the whole group of processes; jobs stop when they are asked to
        with _blocked_interrupts():
            process.start()
        return process


@contextlib.contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Blocks Ctrl-C for processes that are started inside; does nothing on Windows, which has no signal masks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _became(job: Job, code: int) -> Outcome | None:
    """The outcome of a process that ended with ``code``; None if it was stopped."""
    outcome = read_outcome(job)
    if outcome is not None or code == 0:
        return outcome
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return report_death(job, f"the process was killed ({name}{hint})")
    said = [line.decode(errors="replace").strip() for line in tail(log_path(job)) if line.strip()]
    return report_death(job, said[-1] if said else f"the process ended with exit code {code}")
