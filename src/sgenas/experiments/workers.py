"""Running places on this machine: each in a process, so that none takes the others down with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from sgenas.experiments.grid import Place
from sgenas.experiments.outcome import TAIL, Outcome, give_outcome, progress, read_outcome
from sgenas.files import naming, own_file, require_inside

PAUSE = 0.2
"""Seconds between two looks at the processes."""
MOST_ON_A_CPU = 4
"""Runs at a time where `--jobs` is not set and there is no GPU: each holds its images and its network."""


class Watcher(Protocol):
    """Whoever follows the grid. Called from the main thread."""

    def started(self, place: Place) -> None:
        """Work at `place` begins."""

    def ended(self, place: Place, outcome: Outcome | None) -> None:
        """Work at `place` is over; None where it was stopped."""

    def tick(self) -> None:
        """From time to time."""


@dataclass(frozen=True)
class Shares:
    """How a machine is divided: `jobs` runs at a time, `threads` of the CPU for each; gpus: what
    CUDA_VISIBLE_DEVICES may name, one for each run, in turn."""

    jobs: int
    threads: int
    gpus: tuple[str, ...] = ()

    def environment(self, slot: int) -> dict[str, str]:
        """What the run in that slot finds in its environment, besides what all have."""
        found = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return found


def shares(jobs: int | None, threads: int | None, environment: Mapping[str, str] = os.environ) -> Shares:
    """How this machine is divided: where it is not said, a run for each GPU, or without one for each core
    (at most `MOST_ON_A_CPU`), and the cores divided evenly."""
    cores = len(os.sched_getaffinity(0))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    gpus = tuple(named or map(str, range(count)))[:count]
    jobs = jobs or count or min(cores, MOST_ON_A_CPU)
    return Shares(jobs, threads or max(1, cores // jobs), gpus)


def run_local(places: Sequence[Place], division: Shares, watcher: Watcher, stop: Callable[[], bool]) -> None:
    """Runs `places`, `division.jobs` at a time, until all are over or `stop` says so.

    Whoever runs then is asked to write a checkpoint and is waited for. The processes end with this call
    however it ends.
    """
    waiting = list(places)
    running: dict[int, _Process] = {}
    stopping = False
    try:
        while running or (waiting and not stopping):
            if stop() and not stopping:
                stopping = True
                for process in running.values():
                    process.end(signal.SIGTERM)
            for slot in range(division.jobs):
                if slot not in running and waiting and not stopping:
                    place = waiting.pop(0)
                    running[slot] = _Process(place, division.environment(slot))
                    watcher.started(place)
            for slot, process in list(running.items()):
                code = process.code()
                if code is not None:
                    del running[slot]
                    watcher.ended(process.place, what_became_of(process.place, code))
            watcher.tick()
            time.sleep(PAUSE)
    finally:
        for process in running.values():
            process.end(signal.SIGKILL)


class _Process:
    """`sgenas table1 --place` at work. Its output is added to log.txt in the place's folder."""

    def __init__(self, place: Place, environment: Mapping[str, str]) -> None:
        self.place = place
        self._log: IO[bytes] = open_log(place, "ab")
        self._process = subprocess.Popen(
            command_of(place),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # Ctrl-C on the terminal reaches this process alone, which then asks the others to stop, once
            start_new_session=True,
        )

    def code(self) -> int | None:
        """The exit code, minus the signal's number for one that was killed; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._log.close()
        return code

    def end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)


def command_of(place: Place) -> list[str]:
    """What the process of a place runs."""
    return [sys.executable, "-m", "sgenas", "table1", "--out", str(place.grid), "--place", place.name]


def log_path(place: Place) -> Path:
    """What the runs of `place` print."""
    return place.folder / "log.txt"


def open_log(place: Place, mode: str) -> IO[Any]:
    """`log_path` to add to, its folder made; RunFolderError where that is not in the grid's folder."""
    require_inside(place.grid, place.folder, place.name)
    with naming(log_path(place)):
        place.folder.mkdir(parents=True, exist_ok=True)
        return own_file(log_path(place), os.O_WRONLY | os.O_APPEND, mode)


def _tail(log: Path) -> str:
    """The end of a log, in which its last line is."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return file.read(TAIL).decode("utf-8", errors="replace")


def what_became_of(place: Place, code: int) -> Outcome | None:
    """The outcome of a process that ended with `code`; one that could not write it itself is given it here.

    None: it was stopped and can go on.
    """
    outcome = read_outcome(place)
    if outcome is not None or code == 130:
        return outcome
    stage = progress(place).stage or "search"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        outcome = Outcome.failed(stage, f"the process was killed ({name}{hint})")
    else:
        said = [line.strip() for line in _tail(log_path(place)).split("\n") if line.strip()]
        outcome = Outcome.failed(stage, said[-1] if said else f"the process ended with exit code {code}")
    give_outcome(place, outcome)
    return outcome
