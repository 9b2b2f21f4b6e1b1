"""What a run takes of its machine: seconds, device seconds, peak memory."""

import math
import statistics
import time
import warnings
from typing import Any, Self

import torch

from sgenas.device import peak_memory
from sgenas.errors import SgenasWarning

MEASURED = ("seconds", "device_seconds", "peak_memory_bytes")
"""Entries of a row that are measurements: two runs that are equal bit for bit differ in these alone."""


class Meter:
    """Measures inside ``with``, on top of what was measured before, also by an earlier process.

    seconds: wall-clock time. device_seconds: on a CPU the processor time of all threads, on a GPU wall-clock
    time. peak_memory_bytes: the largest `peak_memory` so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[str, Any] = {"seconds": 0.0, "device_seconds": 0.0, "peak_memory_bytes": 0}
        self._since: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._since = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._kept, self._since = self.read(), None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far."""
        wall = 0.0 if self._since is None else time.perf_counter() - self._since[0]
        return round(self._kept["seconds"] + wall, 3)

    def read(self) -> dict[str, Any]:
        """{name in MEASURED: its value}, plain numbers."""
        if self._since is None:
            return dict(self._kept)
        if self._device.type == "cpu":
            device = time.process_time() - self._since[1]
        else:
            device = time.perf_counter() - self._since[0]
        return {
            "seconds": self.seconds,
            "device_seconds": round(self._kept["device_seconds"] + device, 3),
            "peak_memory_bytes": max(self._kept["peak_memory_bytes"], peak_memory(self._device)),
        }

    def resume_from(self, measured: dict[str, Any]) -> None:
        """Continues from what ``read`` returned in another process."""
        self._kept = {name: type(value)(measured[name]) for name, value in self._kept.items()}


class Slowdown:
    """Warns once when a unit of work takes 3 times as long as at the start: something else uses the cores."""

    FACTOR, WINDOW, LEAST_SECONDS = 3.0, 10, 5.0

    def __init__(self) -> None:
        self._last: float | None = None
        self._rates: list[float] = []
        self._start: float | None = None

    def step(self, seconds: float, work: float) -> None:
        """After a step that did ``work``, at ``seconds`` of the run."""
        before, self._last = self._last, seconds
        if before is None or work <= 0 or self._start == math.inf:
            return
        self._rates.append((seconds - before) / work)
        if len(self._rates) < self.WINDOW:
            return
        rate = statistics.median(self._rates)
        self._rates = []
        if self._start is None:
            self._start = rate
        # tiny steps vary by factors without any reason
        elif rate > self.FACTOR * self._start and rate * self.WINDOW > self.LEAST_SECONDS:
            factor, self._start = rate / self._start, math.inf
            warnings.warn(
                f"steps take {factor:.0f} times as long as at the start of this run: another process uses the"
                " cores; end it, or run with fewer threads",
                SgenasWarning,
                stacklevel=2,
            )
