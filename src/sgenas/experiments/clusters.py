"""Jobs on clusters: Ray and SLURM. Their packages are optional and imported when a launcher is used."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgenas.errors import InvalidValueError, load_extra, require
from sgenas.experiments.grid import Job
from sgenas.experiments.launchers import PAUSE, Launcher, Local, Watcher, log_path, stopping
from sgenas.experiments.outcome import Outcome, read_outcome, report_death
from sgenas.experiments.run_job import STOP_FILE, run_named

RETRIES = 3
"""How often Ray starts a job again after its process died."""
LOCK_TIMEOUT = 120.0
"""Seconds that a job waits for the lock of its predecessor, which died on another machine."""


def run_with_threads(out: str, name: str, threads: int) -> None:
    """What a task does: one job, in this process."""
    import torch

    torch.set_num_threads(threads)
    run_named(out, name, LOCK_TIMEOUT)


@dataclass(frozen=True)
class Ray(Launcher):
    """Tasks on a Ray cluster (extra ``ray``): Ray starts a job again, on any machine, when its process dies.

    Args:
        address: Address of a cluster, ``host:port`` or ``ray://host:port``; empty for one on this machine.
        jobs: Jobs at a time on this machine, see `Local`; None on a cluster, which decides.
        threads: CPU threads per job; see `Local`, 1 on a cluster if None.
    """

    address: str = ""
    jobs: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        Local(self.jobs, self.threads)
        require(not self.address or self.jobs is None, "jobs", "None on a cluster, which decides", self.jobs)

    def run(self, jobs: Sequence[Job], watcher: Watcher, stop: Callable[[], bool]) -> None:
        # Ray reports its use to its makers unless it is told not to
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = load_extra("ray", "ray", "ray")
        slots = Local(self.jobs, self.threads).slots()
        threads = self.threads or (1 if self.address else int(slots[0]["OMP_NUM_THREADS"]))
        with self._cluster(ray, len(slots) * threads) as gpus, stopping(jobs) as ask_to_stop:
            task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)(_ray_task)
            # Ray does not tell which tasks have begun; a task touches its log
            queued = {job.name: _touched(job) for job in jobs}
            left = {task.remote(str(job.grid.absolute()), job.name, threads): job for job in jobs}
            while left:
                if stop():
                    ask_to_stop()
                ready, _ = ray.wait(list(left), timeout=PAUSE)
                for job in left.values():
                    if job.name in queued and _touched(job) != queued[job.name]:
                        del queued[job.name]
                        watcher.started(job)
                for reference in ready:
                    job = left.pop(reference)
                    watcher.ended(job, _ray_outcome(ray, reference, job))
                watcher.tick()

    @contextlib.contextmanager
    def _cluster(self, ray: Any, cpus: int) -> Iterator[int]:
        """A connection while it lasts; how many GPUs a job takes there, 0 or 1."""
        own: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        try:
            host, _, port = self.address.removeprefix("ray://").rpartition(":")
            if host and port.isdigit():
                # Ray itself would wait for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            settings = {"address": self.address} if self.address else own
            ray.init(**settings, log_to_driver=False, logging_level="ERROR")
        except (ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise InvalidValueError(
                f"ray {self.address or '(local)'}: no cluster answers: {first}", field="ray"
            ) from None
        try:
            yield 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        finally:
            ray.shutdown()


def _ray_task(out: str, name: str, threads: int) -> None:
    log = Path(out) / "runs" / name / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        run_with_threads(out, name, threads)


def _ray_outcome(ray: Any, reference: Any, job: Job) -> Outcome | None:
    """The outcome of a task that is over, or of one whose process died too often."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return report_death(job, f"{type(error.cause).__name__}: {error.cause}")
    except ray.exceptions.RayError as error:
        return report_death(job, f"its process died {RETRIES + 1} times: {type(error).__name__}")
    return read_outcome(job)


def _touched(job: Job) -> int:
    """When its log was last touched, in nanoseconds; 0 if it has none."""
    try:
        return log_path(job).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@dataclass(frozen=True)
class Slurm(Launcher):
    """A SLURM job array by submitit (extra ``slurm``): submits the jobs and returns.

    A job at its time limit goes back into the queue and resumes from its checkpoint. To repeat jobs that failed,
    submit the same grid again. The jobs' output is in the directory ``slurm`` of the grid.

    Args:
        jobs: Jobs at a time; as many as the cluster allows if None.
        threads: CPU threads per job.
        minutes: Time limit of a job.
        gpus: GPUs per job.
        partition: Partition of the cluster; its default if None.
        options: Further options of sbatch, each ``name=value``, such as ``account=mine``.
        cluster: ``"slurm"``, or ``"local"`` for processes on this machine, to try it out.
    """

    jobs: int | None = None
    threads: int = 1
    minutes: int = 24 * 60
    gpus: int = 0
    partition: str | None = None
    options: tuple[str, ...] = ()
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        Local(self.jobs, self.threads)
        require(self.minutes >= 1, "minutes", ">= 1", self.minutes)
        require(self.gpus >= 0, "gpus", ">= 0", self.gpus)
        for option in self.options:
            require("=" in option, "options", "name=value", option)

    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Submits ``jobs`` as one array; returns submitit's jobs."""
        submitit = load_extra("submitit", "slurm", "submit")
        out = jobs[0].grid.absolute()
        parameters: dict[str, Any] = {
            "name": "sgenas-table1",
            "timeout_min": self.minutes,
            "cpus_per_task": self.threads,
            "slurm_array_parallelism": self.jobs or len(jobs),
            "slurm_additional_parameters": dict(option.split("=", 1) for option in self.options),
        }
        # clusters without GPUs may refuse a request for none
        optional = {"gpus_per_node": self.gpus or None, "slurm_partition": self.partition}
        parameters |= {name: value for name, value in optional.items() if value is not None}
        try:
            executor = submitit.AutoExecutor(folder=out / "slurm", cluster=self.cluster)
            executor.update_parameters(**parameters)
            tasks = [SlurmTask(str(out), job.name, self.threads) for job in jobs]
            with executor.batch():
                submitted: list[Any] = [executor.submit(task) for task in tasks]
            return submitted
        except (RuntimeError, OSError, ValueError) as error:
            raise InvalidValueError(f"slurm: cannot submit: {error}", field="slurm") from None

    def run(self, jobs: Sequence[Job], watcher: Watcher, stop: Callable[[], bool]) -> None:
        # left behind by a command that was killed while it stopped its jobs
        (jobs[0].grid / STOP_FILE).unlink(missing_ok=True)
        self.submit(jobs)


@dataclass(frozen=True)
class SlurmTask:
    """The job ``name`` of the grid in ``out`` as submitit runs it, then the tables."""

    out: str
    name: str
    threads: int

    def __call__(self) -> None:
        from sgenas.experiments.table1 import write_tables

        run_with_threads(self.out, self.name, self.threads)
        write_tables(self.out)

    def checkpoint(self) -> Any:
        """What submitit submits at the time limit: the same task, which resumes from the run's checkpoint."""
        return load_extra("submitit.helpers", "slurm", "submit").DelayedSubmission(self)
