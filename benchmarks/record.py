"""What the benchmarks share: flags, timing in turn, peak memory, child processes, and the files of results."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from sgenas.device import peak_memory
from sgenas.report.run_record import RunRecord, read_run
from sgenas.run.callbacks import Callback
from sgenas.run.run_dir import processor
from sgenas.spaces import Genotype

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
CIFAR10 = f"parquet:{SHARED_DATA / 'cifar10-train.parquet'},{SHARED_DATA / 'cifar10-test.parquet'}"

Run = TypeVar("Run")


def flags(text: str | None, **defaults: Any) -> argparse.Namespace:
    """Parses the command line, and sets the number of threads.

    Args:
        text: Description, the docstring of the script.
        **defaults: A flag each. ``False`` makes a switch, a list takes several values, a type stands for a flag
            without a default, and a dict holds the arguments of ``add_argument``.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (defaults | {"threads": torch.get_num_threads()}).items():
        settings: dict[str, Any] = {"default": default, "type": type(default)}
        if default is False:
            settings = {"action": "store_true"}
        elif isinstance(default, dict):
            settings = default
        elif isinstance(default, list):
            settings = {"default": default, "type": type(default[0]), "nargs": "+"}
        elif isinstance(default, type):
            settings = {"type": default}
        if "default" in settings:
            settings = {"help": "[%(default)s]"} | settings
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean of at least two paired differences (Student's t)."""
    from scipy import stats  # a second, which few scripts need

    mean, count = statistics.mean(differences), len(differences)
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return mean - half, mean + half


def mean_text(values: Sequence[float], digits: int = 2) -> str:
    """Mean and, of at least two values, sample standard deviation; "-" without values."""
    deviation = f" ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{deviation}" if values else "-"


def difference_text(differences: Sequence[float]) -> str:
    """Mean of paired differences and, of at least two, its `interval`; "-" without differences."""
    if not differences:
        return "-"
    ends = "[{:+.2f}, {:+.2f}]".format(*interval(differences)) if len(differences) > 1 else ""
    return f"{statistics.mean(differences):+.2f} {ends}".rstrip()


def finished(path: Path) -> RunRecord | None:
    """The run in a directory, without its steps, if it has all its epochs or stopped early."""
    record = read_run(path, brief=True) if (path / "config.json").exists() else None
    if record is None or not record.epochs:
        return None
    last = record.epochs[-1]
    # a search may have been killed between its last row and its cell
    whole = record.kind != "search" or record.genotype == Genotype.from_dict(last["architecture"])
    whole &= len(record.epochs) == record.config["epochs"] or "stopped_early_with_epoch" in last
    return record if whole else None


def run_unfinished(
    runs: Sequence[Run],
    jobs: int,
    *,
    directory: Callable[[Run], Path],
    start: Callable[[Run], "subprocess.CompletedProcess[str]"],
    result: Callable[[RunRecord], str],
) -> None:
    """Starts each run that is not finished in its directory, ``jobs`` at a time, and prints results and failures."""

    def one(run: Run) -> None:
        path = directory(run)
        if finished(path) is None:
            done = start(run)
            record = finished(path)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            said = result(record) if record else f"FAILED with {done.returncode}: {last}"
            print(f"{path.name}: {said}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))


def time_in_turn(
    sides: Mapping[str, Callable[[], Any]], *, repeats: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum seconds per call of each side; each repeat times every side once, in turn.

    In turn, since the machine drifts: only ratios inside one run mean something. The first round is not timed
    unless ``warm_up`` is False, for sides that take minutes.
    """
    synchronize: Callable[[], Any] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(0 if warm_up else 1, repeats + 1):
        for name, call in sides.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if repeat:
                seen[name].append(time.perf_counter() - start)
    return {name: spread(values) for name, values in seen.items()}


class StepTimes(Callback):
    """Seconds of each step of a search or training that is not among the first ``skip``."""

    def __init__(self, skip: int = 1) -> None:
        self.seconds: list[float] = []
        self._skip = skip

    def on_step_start(self, run: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        if run.step > self._skip:
            self.seconds.append(time.perf_counter() - self._start)


def peak_megabytes(make: Callable[..., Callable[[], Any]], *arguments: Any, device: str = "cpu") -> float:
    """Megabytes that one call of ``make(*arguments)()`` adds to the peak memory of a new process.

    ``make`` is a function of a module, so that the process can import it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_added_peak, make, arguments, device, torch.get_num_threads()).result()


def _added_peak(make: Callable[..., Callable[[], Any]], arguments: Any, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    call, where = make(*arguments), torch.device(device)
    before = peak_memory(where)
    call()
    return (peak_memory(where) - before) / 2**20


def python(*arguments: object, threads: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs Python in a new process. If it fails and ``check`` is set, the benchmark ends with its last line."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if check and done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f"{' '.join(command[1:])} ended with {done.returncode}: {last}")
    return done


def add_result(name: str, figures: Mapping[str, Any], *, device: str = "cpu") -> None:
    """Appends a line with date, machine, versions and ``figures`` to benchmarks/results/NAME.jsonl."""
    path = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "torchvision", "sgenas")},
        **figures,
    }
    # no paths of this machine
    text = json.dumps(line, default=str).replace(f"{ROOT.parent}/", "../")
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }
