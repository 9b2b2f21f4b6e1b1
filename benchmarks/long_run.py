"""Does a long run take more and more? Memory, open files, threads and child processes over 2,000 steps.

    python benchmarks/long_run.py [--steps 2000] [--runs first-order ...] [--every 20] [--settled 500]

Each run is a search or a training of a tiny network on the built-in digits, by the public API, in a process
of its own with one thread; epochs are short, so that hundreds of epochs end and as many checkpoints are
written. Every `--every` steps it notes its resident memory (RSS), open file descriptors, threads and child
processes. What it noted is kept in `--out`: a run that is there is not taken again.
Prints the slope of the memory after the first `--settled` steps, by least squares, adds a JSON line to
benchmarks/results/long_run.jsonl and draws docs/images/memory-long-run.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
import torch
from record import ROOT, add_result

import sgenas
from sgenas.engine import (
    AlphaSettings,
    DataSettings,
    EstimatorSettings,
    NetworkSettings,
    SearchConfig,
    SpaceSettings,
    TrainConfig,
    TrainingImageSettings,
    run_training,
)
from sgenas.nets.published import published

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURE = ROOT / "docs" / "images" / "memory-long-run.png"
SGE = EstimatorSettings(directions=3, control_variate="memory")
ESTIMATORS = {
    "first-order": EstimatorSettings(estimator="first-order"),
    "sge, streamed": replace(SGE, computation="streamed"),
    "sge, vectorised": replace(SGE, computation="vectorised"),
}
RUNS = (*ESTIMATORS, "training")
EPOCHS = 10_000
"""More than any run takes: it is stopped."""
FIGURES = ("rss_mb", "files", "threads", "children")


def search(name: str, out: Path, stop: Callable[[], bool]) -> None:
    """Seven steps an epoch; at each one's end the supernet and the derived cell are tested."""
    config = SearchConfig(
        epochs=EPOCHS,
        device="cpu",
        data=DataSettings(data="digits", train_images=240, batch_size=16),
        space=SpaceSettings(channels=2, layers=3, nodes=1),
        estimator=ESTIMATORS[name],
        alphas=AlphaSettings(warmup_epochs=2),
    )
    sgenas.run_search(config, out, stop=stop)


def training(out: Path, stop: Callable[[], bool]) -> None:
    """Ten steps an epoch."""
    config = TrainConfig(
        genotype=published("darts-v2"),
        epochs=EPOCHS,
        device="cpu",
        data=TrainingImageSettings(data="digits", train_images=160, test_images=60, batch_size=16, cutout=0),
        network=NetworkSettings(channels=2, layers=3, auxiliary_weight=0.0),
    )
    run_training(config, out, stop=stop)


def sample(name: str, steps: int, every: int) -> dict[str, list[float]]:
    """The run `name`, of so many steps, in this process: {figure: its value at each sample}."""
    process, taken = psutil.Process(), 0
    found: dict[str, list[float]] = {figure: [] for figure in ("step", *FIGURES)}

    def stop() -> bool:
        nonlocal taken
        taken += 1
        if taken % every == 0:
            with process.oneshot():
                values = (process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())
            for figure, value in zip(found, (taken, *values, len(process.children())), strict=True):
                found[figure].append(round(value, 2))
        return taken >= steps

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        training(out, stop) if name == "training" else search(name, out, stop)
    return found


def slope(found: dict[str, list[float]], settled: int) -> float:
    """MB for 1,000 steps, by least squares over the samples after the first `settled` steps."""
    step, rss = np.array(found["step"]), np.array(found["rss_mb"])
    later = step > settled
    return float(np.polyfit(step[later], rss[later], 1)[0] * 1000)


def draw(samples: dict[str, dict[str, list[float]]], settled: int) -> None:
    """Memory less that at the step where the slope begins, a line for each run; that memory and the slope.

    The axis has at least 20 MB: what the allocator gives and takes is not to look like a leak.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    lowest, highest = -10.0, 10.0
    for name, found in samples.items():
        rss = np.array(found["rss_mb"])
        start = rss[np.searchsorted(found["step"], settled)]
        label = f"{name}: {start:.0f} MB, {slope(found, settled):+.1f} MB per 1,000 steps"
        axes.plot(found["step"], rss - start, label=label, linewidth=1.5)
        lowest, highest = min(lowest, *(rss - start)), max(highest, *(rss - start))
    axes.axvline(settled, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps", ylabel=f"MB more than after {settled} steps", xlim=(0, None))
    axes.set_ylim(lowest, 1.6 * highest)
    axes.set_title(f"Resident memory of long runs; slopes after {settled} steps", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150)
    plt.close(figure)


def measured(name: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """`sample` in a process of its own, or what it gave before."""
    size = ["--steps", str(arguments.steps), "--every", str(arguments.every)]
    path = arguments.out / f"{name}-{arguments.steps}-{arguments.every}.json"
    if not path.exists():
        done = subprocess.run(
            [sys.executable, __file__, "--here", name, *size],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(done.stdout)
    found: dict[str, list[float]] = json.loads(path.read_text())
    return found


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="memory, files, threads and processes of long runs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20, help="steps between two samples")
    parser.add_argument("--settled", type=int, default=500, help="steps that the slope leaves out")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--out", type=Path, default=Path("runs/long-run"), help="folder of the samples")
    parser.add_argument("--here", choices=RUNS, help="run this one in this process and print its samples")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.here:
        print(json.dumps(sample(arguments.here, arguments.steps, arguments.every)))
        return

    samples: dict[str, dict[str, list[float]]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in arguments.runs:
        found = samples[name] = measured(name, arguments)
        at = {figure: [values[0], values[-1]] for figure, values in found.items() if figure in FIGURES}
        most = {f"most_{figure}": max(found[figure]) for figure in FIGURES[1:]}
        rows[name] = {"mb_per_1000_steps": round(slope(found, arguments.settled), 3), **at, **most}
        print(
            f"{name:18}{rows[name]['mb_per_1000_steps']:+8.2f} MB per 1,000 steps;"
            f" {at['rss_mb'][0]:.0f} to {at['rss_mb'][1]:.0f} MB; files {at['files']},"
            f" threads {at['threads']}, children {at['children']} at the first and last sample",
            flush=True,
        )
    draw(samples, arguments.settled)
    size = {name: getattr(arguments, name) for name in ("steps", "every", "settled")}
    curves = {name: found["rss_mb"] for name, found in samples.items()}
    add_result("long_run", {**size, "runs": rows, "rss_mb": curves})


if __name__ == "__main__":
    main()
