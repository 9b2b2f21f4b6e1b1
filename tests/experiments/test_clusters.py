"""Ray and SLURM. Tests of a real Ray cluster need the extra ``ray``; SLURM is replaced by submitit's local cluster."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgenas.errors import InvalidValueError
from sgenas.experiments import clusters
from sgenas.experiments.clusters import Ray, Slurm, SlurmTask
from sgenas.experiments.grid import Grid, GridSettings, Job, extend
from sgenas.experiments.launchers import log_path
from sgenas.experiments.outcome import Outcome, is_done, read_outcome
from sgenas.experiments.run_job import STOP_FILE, run_named

COMMAND = ("2026-11-24T10:00:00+00:00", "sgenas table1")


class Log:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.outcomes: dict[str, Outcome | None] = {}

    def started(self, job: Job) -> None:
        self.begun.append(job.name)

    def ended(self, job: Job, outcome: Outcome | None) -> None:
        self.outcomes[job.name] = outcome

    def tick(self) -> None: ...


def test_task_that_begins_after_the_stop_does_nothing(grid: Grid) -> None:
    (grid.path / STOP_FILE).touch()
    run_named(str(grid.path), grid.jobs[0].name)
    assert not grid.jobs[0].path.exists()


class Errors:
    """Stands for ray.exceptions."""

    class RayError(Exception): ...

    class RayTaskError(RayError):
        cause = ValueError("of the task")

    class WorkerCrashedError(RayError): ...


@pytest.mark.parametrize(
    ("error", "words"), [(Errors.RayTaskError(), "of the task"), (Errors.WorkerCrashedError(), "died 4 times")]
)
def test_ray_task_without_a_result_is_a_failure(grid: Grid, error: Exception, words: str) -> None:
    def get(reference: object) -> None:
        raise error

    outcome = clusters._ray_outcome(SimpleNamespace(get=get, exceptions=Errors), None, grid.jobs[0])
    assert outcome is not None
    assert words in str(outcome.reason)
    assert read_outcome(grid.jobs[0]) == outcome


@pytest.mark.parametrize(("launcher", "package"), [(Ray(), "ray"), (Slurm(), "submitit")])
def test_missing_package_is_named_with_its_extra(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, launcher: Any, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidValueError, match=rf"{package}.* pip install 'sgenas\["):
        launcher.run(grid.jobs[:1], Log(), lambda: False)


@pytest.mark.parametrize(
    ("kind", "values", "field"),
    [
        (Ray, {"address": "a:1", "jobs": 2}, "jobs"),
        (Ray, {"threads": 0}, "threads"),
        (Slurm, {"minutes": 0}, "minutes"),
        (Slurm, {"gpus": -1}, "gpus"),
        (Slurm, {"options": ("account",)}, "options"),
    ],
)
def test_bad_settings_are_refused(kind: Any, values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        kind(**values)
    assert caught.value.field == field


# -- SLURM --------------------------------------------------------------------------------------------------


def test_slurm_job_script_has_the_settings(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    # a cluster of one program that keeps what it is asked for
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\ncp "${{@: -1}}" {tmp_path}/script.sh\necho "Submitted batch job 77"\n')
    fake.chmod(0o755)
    (fake.parent / "srun").symlink_to(fake)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    launcher = Slurm(3, 4, minutes=90, gpus=1, partition="gpu", options=("account=mine",))
    submitted = launcher.submit(grid.jobs[:5])
    assert [job.job_id for job in submitted] == [f"77_{index}" for index in range(5)]
    lines = (tmp_path / "script.sh").read_text().splitlines()
    flags = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")]
    found = {name: value for name, _, value in (flag.partition("=") for flag in flags)}
    assert found["array"] == "0-4%3"
    assert (found["cpus-per-task"], found["time"], found["partition"]) == ("4", "90", "gpu")
    assert found["account"] == "mine"
    assert found["gpus-per-node"] == "1"
    delayed = submitit.core.utils.DelayedSubmission.load(submitted[2].paths.submitted_pickle)
    assert delayed.function == SlurmTask(str(grid.path), grid.jobs[2].name, 4)


def test_slurm_task_at_its_time_limit_is_submitted_again(grid: Grid) -> None:
    pytest.importorskip("submitit")
    task = SlurmTask(str(grid.path), grid.jobs[0].name, 1)
    assert task.checkpoint().function == task


@pytest.mark.slow
def test_slurm_task_runs_its_job_and_writes_the_tables(grid: Grid) -> None:
    """In a process that submitit starts, as on a cluster."""
    pytest.importorskip("submitit")
    job = grid.job("digits/darts-first-order/seed-0")
    log = Log()
    launcher = Slurm(cluster="local")
    (submitted,) = launcher.submit((job,))
    submitted.result()
    assert is_done(job)
    assert "| 1 of 2 " in (grid.path / "table.md").read_text()
    assert log.begun == []


# -- Ray ----------------------------------------------------------------------------------------------------


def test_no_ray_cluster_at_that_address(grid: Grid) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InvalidValueError, match="no cluster answers"):
        Ray("127.0.0.1:1").run(grid.jobs[:1], Log(), lambda: False)


@pytest.mark.slow
def test_killed_ray_worker_has_its_job_resumed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    grid, jobs = extend(tmp_path / "grid", GridSettings("smoke", seeds=(0,), methods=("darts",)), COMMAND)
    grid.save()
    victim, killed = jobs[1], []

    def kill() -> None:
        """Once the search has taken an epoch."""
        deadline = time.monotonic() + 120
        metrics = victim.search_dir / "metrics.jsonl"
        while time.monotonic() < deadline:
            if metrics.exists() and b'"kind": "epoch"' in metrics.read_bytes():
                number = int((victim.path / "job.owner").read_text().split()[1])
                os.kill(number, signal.SIGKILL)
                killed.append(number)
                return
            time.sleep(0.005)

    hunter = threading.Thread(target=kill)
    hunter.start()
    log = Log()
    Ray(jobs=2, threads=1).run(jobs, log, lambda: False)
    hunter.join()
    assert killed
    assert all(is_done(job) for job in jobs)
    assert set(log.outcomes) == set(log.begun) == {job.name for job in jobs}


@pytest.mark.slow
def test_stopped_ray_jobs_leave_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    grid, jobs = extend(tmp_path / "grid", GridSettings("smoke", seeds=(0,), methods=("darts",)), COMMAND)
    grid.save()
    log = Log()
    Ray(jobs=1, threads=1).run(jobs, log, lambda: bool(log.begun))
    assert list(log.outcomes.values()) == [None, None]
    assert not (grid.path / STOP_FILE).exists()
    assert log_path(grid.job(log.begun[0])).exists()
