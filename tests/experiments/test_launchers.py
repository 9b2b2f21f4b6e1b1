"""Processes on this machine: what becomes of a job whose process dies, and how jobs are stopped."""

import os
import signal
import time
from collections.abc import Callable, Sequence

import pytest

from sgenas.experiments import launchers
from sgenas.experiments.grid import Grid, Job
from sgenas.experiments.launchers import Local, log_path
from sgenas.experiments.outcome import Outcome, read_outcome


class Log:
    """A watcher that remembers, and that says when to stop."""

    def __init__(self, enough: Callable[["Log"], bool] = lambda log: False) -> None:
        self.begun: list[str] = []
        self.outcomes: dict[str, Outcome | None] = {}
        self._enough = enough

    def started(self, job: Job) -> None:
        self.begun.append(job.name)

    def ended(self, job: Job, outcome: Outcome | None) -> None:
        self.outcomes[job.name] = outcome

    def tick(self) -> None: ...

    def stop(self) -> bool:
        return self._enough(self)


def run(jobs: Sequence[Job], log: Log, function: str, at_once: int = 2) -> Log:
    Local(at_once, 1, f"fake_jobs:{function}").run(jobs, log, log.stop)
    return log


def test_dying_processes_are_failures_with_their_reason_and_do_not_end_the_others(grid: Grid) -> None:
    jobs = grid.jobs[:4]
    log = run(jobs, Log(), "fails_by_name")
    assert log.begun == [job.name for job in jobs]
    quiet, killed, broken, silent = (log.outcomes[job.name] for job in jobs)
    assert quiet is None
    assert killed is not None
    assert killed == read_outcome(jobs[1])
    assert "SIGKILL" in str(killed.reason)
    assert broken is not None
    assert broken.reason == "the last word"
    assert silent is not None
    assert silent.reason == "the process ended with exit code 3"
    # the environment is set before PyTorch is imported
    said = log_path(jobs[0]).read_text()
    assert "'OMP_NUM_THREADS': '1'" in said
    assert f"'GOMP_SPINCOUNT': '{os.environ.get('GOMP_SPINCOUNT', '10000')}'" in said
    assert "torch imported: False" in said


def test_job_that_another_process_runs_gets_no_outcome(grid: Grid) -> None:
    job = grid.jobs[1]
    with job.locked():
        outcome = run((job,), Log(), "fails_by_name").outcomes[job.name]
    assert outcome is not None
    assert "SIGKILL" in str(outcome.reason)
    assert read_outcome(job) is None


def test_stopping_asks_running_jobs_and_begins_no_other(grid: Grid) -> None:
    def ready(log: Log) -> bool:
        paths = [log_path(job) for job in grid.jobs[:2]]
        return all(path.exists() and "ready" in path.read_text() for path in paths)

    log = run(grid.jobs[:4], Log(ready), "waits_for_stop")
    assert log.begun == [job.name for job in grid.jobs[:2]]
    assert list(log.outcomes.values()) == [None, None]
    assert not (grid.path / "stop").exists()


def test_processes_end_with_the_call_however_it_ends(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    start = Local._start

    def remember(*arguments: object) -> object:
        made.append(start(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(Local, "_start", remember)

    def interrupted(log: Log) -> bool:
        if log.begun:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(grid.jobs[:1], Log(interrupted), "sleeps")
    assert made[0].exitcode == -signal.SIGKILL


def test_ctrl_c_does_not_reach_jobs(grid: Grid) -> None:
    """A terminal sends it to the whole group of processes."""
    path = log_path(grid.jobs[0])
    sent: list[float] = []

    def enough(log: Log) -> bool:
        if not sent and path.exists() and "ready" in path.read_text():
            import multiprocessing

            (process,) = multiprocessing.active_children()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            sent.append(time.monotonic())
        return bool(sent) and time.monotonic() - sent[0] > 0.3

    log = run(grid.jobs[:1], Log(enough), "waits_for_stop")
    assert log.outcomes == {grid.jobs[0].name: None}


def test_machine_is_divided_by_jobs_threads_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(local: Local, **variables: str) -> tuple[int, set[str]]:
        slots = local.slots(variables)
        return len(slots), {slot["OMP_NUM_THREADS"] for slot in slots}

    monkeypatch.setattr(launchers.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(launchers.torch.cuda, "is_available", lambda: False)
    assert shape(Local()) == (4, {"2"})
    assert shape(Local(16)) == (16, {"1"})
    assert shape(Local(2, 3)) == (2, {"3"})
    monkeypatch.setattr(launchers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launchers.torch.cuda, "device_count", lambda: 2)
    assert shape(Local()) == (2, {"4"})
    slots = Local(3).slots({"CUDA_VISIBLE_DEVICES": "5, GPU-ab"})
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["5", "GPU-ab", "5"]


@pytest.mark.parametrize("values", [{"jobs": 0}, {"threads": -2}])
def test_bad_numbers_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Local(**values)
