"""Whether a long run takes more and more: memory, open files, threads and child processes over 2,000 steps.

    python benchmarks/long_run.py [--steps 2000] [--runs first-order ...] [--every 20] [--settled 500]

Each run is a search or a training of a tiny network on digits, in a process of its own with one thread; epochs are
short, so that hundreds of epochs end and as many checkpoints are written. Every `--every` steps the process notes its
resident memory (RSS), file descriptors, threads and children. Prints the slope of the memory after the first
`--settled` steps, by least squares, and draws docs/images/memory-long-run.png.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import matplotlib
import numpy as np
import psutil
import torch
from record import ROOT, add_result, flags

import sgenas
from sgenas.spaces.darts_space.published import published

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SGE = {"estimator.name": "sge", "estimator.num_directions": 3, "estimator.computation": "sequential"}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "first-order": {"estimator.name": "first-order"},
    "sge, sequential": SGE,
    "sge, batched": {**SGE, "estimator.computation": "batched"},
}
RUNS = (*ESTIMATORS, "training")
EPOCHS = 10_000
"""More than a run takes: it is stopped."""
FIGURES = ("rss_mb", "files", "threads", "children")
Samples = dict[str, list[float]]


def start(name: str, folder: str, stop: Callable[[], bool]) -> None:
    """Seven steps per epoch for a search, ten for a training; both are tested after each epoch."""
    common = {"epochs": EPOCHS, "device": "cpu", "threads": 1, "data.data": "digits", "data.batch_size": 16}
    if name == "training":
        sizes = {"channels": 2, "layers": 3, "auxiliary_weight": 0.0, "data.cutout": 0}
        sizes |= {"data.train_images": 160, "data.test_images": 60}
        recipe = sgenas.TrainConfig.of_recipe("source", published("darts-v2"), common | sizes)
        recipe.run(folder, stop=stop, progress=False)
    else:
        sizes = {"space.channels": 2, "space.layers": 3, "space.nodes": 1, "data.train_images": 240}
        config = sgenas.SearchConfig.of_method("darts", common | sizes | {"warmup_epochs": 2} | ESTIMATORS[name])
        config.run(folder, stop=stop, progress=False)


def sample(name: str, steps: int, every: int) -> Samples:
    """Takes a run in this process: {figure: its value at each sample}."""
    torch.set_num_threads(1)
    process, taken = psutil.Process(), 0
    found: Samples = {figure: [] for figure in ("step", *FIGURES)}

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
        start(name, f"{folder}/run", stop)
    return found


def slope(found: Samples, settled: int) -> float:
    """MB per 1,000 steps, by least squares over the samples after the first ``settled`` steps."""
    step, rss = np.array(found["step"]), np.array(found["rss_mb"])
    return float(np.polyfit(step[step > settled], rss[step > settled], 1)[0] * 1000)


def draw(samples: dict[str, Samples], settled: int) -> None:
    """One line per run: memory minus that at the step where the slope begins.

    The axis spans at least 20 MB, so that what the allocator takes and returns doesn't look like a leak.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    lowest, highest = -10.0, 10.0
    for name, found in samples.items():
        rss = np.array(found["rss_mb"])
        base = rss[np.searchsorted(found["step"], settled)]
        label = f"{name}: {base:.0f} MB, {slope(found, settled):+.1f} MB per 1,000 steps"
        axes.plot(found["step"], rss - base, label=label, linewidth=1.5)
        lowest, highest = min(lowest, *(rss - base)), max(highest, *(rss - base))
    axes.axvline(settled, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps", ylabel=f"MB more than after {settled} steps", xlim=(0, None))
    axes.set_ylim(lowest, 1.6 * highest)
    axes.set_title(f"Resident memory of long runs; slopes after {settled} steps", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "images" / "memory-long-run.png", dpi=150)


def main() -> None:
    given = flags(
        __doc__,
        steps=2000,
        every=20,
        settled=500,
        runs={"nargs": "+", "default": list(RUNS), "choices": list(RUNS)},
        no_picture=False,
    )
    os.environ["OMP_NUM_THREADS"] = "1"
    samples: dict[str, Samples] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in given.runs:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = samples[name] = pool.submit(sample, name, given.steps, given.every).result()
        ends = {figure: [found[figure][0], found[figure][-1]] for figure in FIGURES}
        most = {f"most_{figure}": max(found[figure]) for figure in FIGURES[1:]}
        rows[name] = {"mb_per_1000_steps": round(slope(found, given.settled), 3), **ends, **most}
        print(name, rows[name], flush=True)
    if not given.no_picture:
        draw(samples, given.settled)
    curves = {name: found["rss_mb"] for name, found in samples.items()}
    add_result("long_run", vars(given) | {"runs": rows, "rss_mb": curves})


if __name__ == "__main__":
    main()
