"""What a run takes of its machine: seconds, device seconds, peak memory."""

import time
from typing import Any, Self

import torch

from sgenas.memory import peak_memory

MEASURED = ("seconds", "device_seconds", "peak_memory_bytes")
"""The figures of a row that are measurements: two runs that are equal bit for bit differ in them alone."""


class Meter:
    """Measures inside `with`, on top of what it measured before, in other processes too.

    seconds: of the clock on the wall. device_seconds: on a CPU what the process kept its cores busy for, all
    threads together (time.process_time); on a GPU the seconds on the wall, as its owner counts them: it is
    taken for that long, busy or not. peak_memory_bytes: the largest that `peak_memory` gave so far; on a GPU
    from the beginning of the `with`, on a CPU from that of the process.
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
        """On the wall so far."""
        wall = 0.0 if self._since is None else time.perf_counter() - self._since[0]
        return round(self._kept["seconds"] + wall, 3)

    def read(self) -> dict[str, Any]:
        """{name in MEASURED: what it has come to}, plain numbers."""
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

    def go_on_from(self, measured: dict[str, Any]) -> None:
        """Takes what `read` gave to another meter as measured before. Raises LookupError or TypeError."""
        self._kept = {name: type(value)(measured[name]) for name, value in self._kept.items()}
