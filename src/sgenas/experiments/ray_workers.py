"""Running places on Ray: each is a task that Ray starts again, somewhere, when the process under it dies.

All machines of the cluster see the grid's folder and the data under the same paths: what travels is the name
of a place, and a run goes on from the checkpoint in its folder.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sgenas.errors import ConfigError
from sgenas.experiments.grid import Place, load_grid
from sgenas.experiments.outcome import Outcome, give_outcome, progress
from sgenas.experiments.run_place import run_place
from sgenas.experiments.workers import PAUSE, Shares, Watcher, open_log
from sgenas.memory import keep_freed_memory

RETRIES = 3
"""How often a run is started again after its process died."""
PATIENCE = 120.0
"""Seconds that a run waits for the hold that its dead predecessor, on another machine, had on its folder."""
LISTENS = 10.0
"""Seconds in which a cluster must take up a connection."""
STOP_FILE = "stop"
"""In the grid's folder: tells every run to write its checkpoint and stop."""


def run_on_ray(
    places: Sequence[Place], address: str, division: Shares, watcher: Watcher, stop: Callable[[], bool]
) -> None:
    """Runs `places` on the cluster at `address`, or on one of `division.jobs` workers on this machine ("").

    On a cluster a run takes `division.threads` CPUs, and a GPU where there are any. Returns when all are
    over or, once `stop` says so, have written their checkpoints. Raises ConfigError where Ray is not
    installed or no cluster answers.
    """
    ray = _ray()
    if not places:
        return
    stop_file = _stop_file(places[0].grid)
    stop_file.unlink(missing_ok=True)
    with _cluster(ray, address, division) as gpus:
        task = ray.remote(num_cpus=division.threads, num_gpus=gpus, max_retries=RETRIES)(_work)
        # which of the tasks have begun is not Ray's to say: a run touches the lock of its place
        queued = {place: _touched(place) for place in places}
        tasks = {
            task.remote(str(place.grid.absolute()), place.name, division.threads): place for place in places
        }
        while tasks:
            if stop():
                stop_file.touch()
            ready, _ = ray.wait(list(tasks), timeout=PAUSE)
            for place in [place for place, before in queued.items() if _touched(place) != before]:
                del queued[place]
                watcher.started(place)
            for reference in ready:
                place = tasks.pop(reference)
                queued.pop(place, None)
                watcher.ended(place, _result(ray, reference, place))
            watcher.tick()
    stop_file.unlink(missing_ok=True)


def _work(out: str, name: str, threads: int) -> dict[str, Any] | None:
    """What a task does: the outcome of the place `name` of the grid in `out`, None where it was stopped."""
    stop_file = _stop_file(Path(out))
    if stop_file.exists():
        return None
    torch.set_num_threads(threads)
    keep_freed_memory()
    place = load_grid(Path(out)).place(name)
    with (
        open_log(place, "a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        outcome = run_place(place, stop=stop_file.exists, patience=PATIENCE)
    return None if outcome is None else asdict(outcome)


def _result(ray: Any, reference: Any, place: Place) -> Outcome | None:
    """The outcome that a task gives back, or that of one whose process died too often."""
    try:
        found = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        reason = f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        reason = f"its process died {RETRIES + 1} times: {type(error).__name__}"
    else:
        return None if found is None else Outcome(**found)
    outcome = Outcome.failed(progress(place).stage or "search", reason)
    give_outcome(place, outcome)
    return outcome


def _ray() -> Any:
    # Ray reports its use to its makers unless it is told not to
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError("--ray needs Ray, which is not installed: pip install 'sgenas[ray]'") from None
    return ray


@contextlib.contextmanager
def _cluster(ray: Any, address: str, division: Shares) -> Iterator[int]:
    """A connection to Ray while it lasts: how many GPUs a run takes there, 0 or 1."""
    settings: dict[str, Any] = {"address": address}
    if not address:
        settings = {
            "address": "local",
            "num_cpus": division.jobs * division.threads,
            "include_dashboard": False,
        }
    try:
        _require_listener(address)
        ray.init(**settings, log_to_driver=False, logging_level="ERROR")
    except (ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"--ray {address or '(local)'}: no cluster answers: {first}") from None
    try:
        yield 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raises OSError unless someone listens at host:port, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=LISTENS).close()


def _stop_file(out: Path) -> Path:
    return out / STOP_FILE


def _touched(place: Place) -> int:
    """When its lock was last taken, in nanoseconds; 0 where it never was."""
    try:
        return (place.folder / "lock").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
