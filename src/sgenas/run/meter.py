"""What a run takes of its machine: seconds, device seconds, peak memory."""

import time
from typing import Any, Self

import torch

from sgenas.device import peak_memory

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
