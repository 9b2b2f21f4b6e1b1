import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sgenas.errors import ConfigError
from sgenas.experiments import ray_workers
from sgenas.experiments.grid import Grid, Place, load_grid, plan
from sgenas.experiments.outcome import Outcome, is_done, read_outcome
from sgenas.experiments.run_place import run_place
from sgenas.experiments.workers import Shares, log_path

COMMAND = ("2026-11-24T10:00:00+00:00", "sgenas table1")


def test_a_task_gives_back_what_became_of_its_place(grid: Grid) -> None:
    place = grid.places[0]
    found = ray_workers._work(str(grid.out), place.name, 1)
    assert found is not None
    assert Outcome(**found) == read_outcome(place)
    assert is_done(place)


def test_a_task_that_begins_after_the_stop_does_nothing(grid: Grid) -> None:
    (grid.out / ray_workers.STOP_FILE).touch()
    assert ray_workers._work(str(grid.out), grid.places[0].name, 1) is None
    assert not grid.places[0].folder.exists()


class Errors:
    """Stands for ray.exceptions."""

    class RayError(Exception): ...

    class RayTaskError(RayError):
        cause = ValueError("of the task")

    class WorkerCrashedError(RayError): ...


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Errors.RayTaskError(), "ValueError: of the task"),
        (Errors.WorkerCrashedError(), "its process died 4 times: WorkerCrashedError"),
    ],
)
def test_a_task_without_a_result_is_a_failure(grid: Grid, error: Exception, reason: str) -> None:
    def get(reference: object) -> None:
        raise error

    outcome = ray_workers._result(SimpleNamespace(get=get, exceptions=Errors), None, grid.places[0])
    assert outcome is not None
    assert (outcome.state, outcome.reason) == ("failed", reason)
    assert read_outcome(grid.places[0]) == outcome


class Log:
    """A Watcher that remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.outcomes: dict[str, Outcome | None] = {}

    def started(self, place: Place) -> None:
        self.begun.append(place.name)

    def ended(self, place: Place, outcome: Outcome | None) -> None:
        self.outcomes[place.name] = outcome

    def tick(self) -> None: ...


@pytest.mark.slow
def test_a_worker_that_is_killed_has_its_run_resumed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    grid, _ = plan(tmp_path / "grid", "smoke", (), (0,), COMMAND)
    grid.save()
    places = grid.places[4:]
    victim = places[0]
    killed: list[int] = []

    def kill() -> None:
        """Once the search has taken an epoch."""
        deadline = time.monotonic() + 120
        metrics = victim.search_folder / "metrics.jsonl"
        while time.monotonic() < deadline:
            if metrics.exists() and b'"kind": "epoch"' in metrics.read_bytes():
                number = int((victim.folder / "lock").read_text().split()[1])
                os.kill(number, signal.SIGKILL)
                killed.append(number)
                return
            time.sleep(0.005)

    hunter = threading.Thread(target=kill)
    hunter.start()
    log = Log()
    ray_workers.run_on_ray(places, "", Shares(2, 1), log, lambda: False)
    hunter.join()
    assert killed
    assert {outcome.state for outcome in log.outcomes.values() if outcome} == {"done"}
    assert set(log.outcomes) == {place.name for place in places}
    assert log.begun[0] in log.outcomes
    assert all(is_done(place) for place in load_grid(grid.out).places[4:])
    # another process went on, bit for bit as if none had died
    assert int((victim.folder / "lock").read_text().split()[1]) != killed[0]
    straight = dataclasses.replace(victim, grid=tmp_path / "straight")
    run_place(straight)
    states = [
        torch.load(place.training_folder / "checkpoint.pt", weights_only=True)["network"]
        for place in (victim, straight)
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_no_cluster_at_that_address(grid: Grid) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"--ray 127.0.0.1:1: no cluster answers: .*refused"):
        ray_workers.run_on_ray(grid.places[:1], "127.0.0.1:1", Shares(1, 1), Log(), lambda: False)


@pytest.mark.slow
def test_stopping_leaves_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    grid, _ = plan(tmp_path / "grid", "smoke", (), (0,), COMMAND)
    grid.save()
    log = Log()
    ray_workers.run_on_ray(grid.places[:3], "", Shares(2, 1), log, lambda: bool(log.begun))
    assert None in log.outcomes.values()
    assert len(log.outcomes) == 3
    assert not (grid.out / ray_workers.STOP_FILE).exists()
    assert log_path(grid.place(log.begun[0])).exists()
    log = Log()
    ray_workers.run_on_ray(grid.places[:3], "", Shares(2, 1), log, lambda: False)
    assert all(is_done(place) for place in grid.places[:3])
