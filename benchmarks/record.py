"""Shared by the benchmarks: timing sides in turn, and adding a dated line to benchmarks/results/."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sgenas.engine.run_folder import processor

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


def time_in_turn(
    sides: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: str = "cpu",
    counts: Mapping[str, int] | None = None,
    warm_up: bool = True,
) -> dict[str, dict[str, float]]:
    """{name: median, min and max seconds a call}. Every repeat times each side once, in turn.

    In turn, since the machine drifts: only ratios inside one run mean something. One untimed round goes
    first unless `warm_up` is False, for sides of minutes. `counts`: calls that make one timing, for sides
    too short to time alone.
    """
    synchronise: Callable[[], Any] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(0 if warm_up else 1, repeats + 1):
        for name, call in sides.items():
            count = (counts or {}).get(name, 1)
            synchronise()
            start = time.perf_counter()
            for _ in range(count):
                call()
            synchronise()
            if repeat:
                seen[name].append((time.perf_counter() - start) / count)
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in seen.items()
    }


def add_result(name: str, figures: Mapping[str, Any], *, device: str = "cpu") -> Path:
    """Adds one JSON line with date, machine, versions and `figures` to benchmarks/results/NAME.jsonl."""
    path = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "sgenas": version("sgenas"),
        },
        **figures,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return path


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }
