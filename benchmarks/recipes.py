"""Recipes of training against each other at a small size: accuracy for the epochs that they are given.

    python benchmarks/recipes.py [FOLDER_WITH_CIFAR10_PARQUET] [--arms source fast ...] [--epochs 5 10 20] ...

The network of a published cell, narrow and shallow, is trained on some of CIFAR-10's training images and
tested on some of its test images, by each arm for each number of epochs and seed; every run has its whole
schedule in its epochs. Each run is a process with one thread, `--jobs` of them at a time; one that `--out`
holds already is not taken again, one that was stopped goes on. Arms: see ARMS. Prints mean and standard
deviation over the seeds of the test accuracy of the last epoch, and adds a JSON line to
benchmarks/results/recipes.jsonl.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import SHARED_DATA, add_result

from sgenas.report import read_run

FAST = ["--recipe", "fast", "--drop-path", "0", "--auxiliary-weight", "0"]
ARMS = {
    "source": ["--recipe", "source"],
    "source, auxiliary head and drop path off": [
        "--recipe", "source", "--drop-path", "0", "--auxiliary-weight", "0",
    ],
    "fast": FAST,
    "fast, no running average": [*FAST, "--ema", "None"],
    "fast, no label smoothing": [*FAST, "--label-smoothing", "0"],
    "fast, cutout 16": [*FAST, "--cutout", "16"],
    "fast, no cutout": [*FAST, "--cutout", "0"],
    "fast, lr 0.05": [*FAST, "--lr", "0.05"],
    "fast, lr 0.2": [*FAST, "--lr", "0.2"],
    "fast, lr 0.4": [*FAST, "--lr", "0.4"],
    "fast, batch 64": [*FAST, "--batch-size", "64"],
    "fast, no warm-up": [*FAST, "--warmup", "0"],
}  # fmt: skip
"""name -> flags of `sgenas train`: the recipes, and `fast` with one change."""


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="accuracy of training recipes for few epochs")
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED_DATA)
    parser.add_argument("--arms", nargs="+", default=["source", "fast"], choices=list(ARMS))
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--genotype", default="darts-v2")
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    arguments = parser.parse_args()

    places = [(e, arm, seed) for e in arguments.epochs for arm in arguments.arms for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        finals = list(pool.map(lambda place: trained(arguments, *place), places))
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (epochs, arm, _), final in zip(places, finals, strict=True):
        if final is not None:
            rows.setdefault((arm, epochs), []).append(final)
    print(f"\n{'arm':44}{'epochs':>7}{'test accuracy, %':>20}{'seconds':>9}")
    for (arm, epochs), found in rows.items():
        values = [100 * final["test_accuracy"] for final in found]
        spread = stdev(values) if len(values) > 1 else 0.0
        seconds = mean(final["seconds"] for final in found)
        print(f"{arm:44}{epochs:7}{mean(values):13.2f} ± {spread:4.2f}{seconds:9.0f}")
    kept = {name: value for name, value in vars(arguments).items() if name not in ("folder", "out")}
    figures = [
        {"arm": arm, "epochs": epochs, "test_accuracy": [final["test_accuracy"] for final in found]}
        for (arm, epochs), found in rows.items()
    ]
    add_result("recipes", kept | {"rows": figures})


def trained(arguments: argparse.Namespace, epochs: int, arm: str, seed: int) -> dict[str, Any] | None:
    """The last epoch's row of one run, taken, gone on with or found done; None where it failed."""
    size = f"{arguments.genotype}-c{arguments.channels}l{arguments.layers}i{arguments.images}e{epochs}"
    folder = arguments.out / size / f"{arm.replace(', ', '_').replace(' ', '-')}_{seed}"
    final = last_epoch(folder)
    if final is None or final["epoch"] + 1 < epochs:
        command = ["resume", str(folder)] if (folder / "checkpoint.pt").exists() else fresh(
            arguments, epochs, arm, seed, folder
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "sgenas", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{arm}, {epochs} epochs, seed {seed} FAILED: {last}", flush=True)
            return None
        final = last_epoch(folder)
    assert final is not None
    print(f"{arm}, {epochs} epochs, seed {seed}: {100 * final['test_accuracy']:.2f} %", flush=True)
    return final


def fresh(arguments: argparse.Namespace, epochs: int, arm: str, seed: int, folder: Path) -> list[str]:
    """The command line of a run from its start."""
    sizes = {
        "--genotype": arguments.genotype,
        "--data": f"parquet:{arguments.folder}",
        "--train-images": arguments.images,
        "--test-images": arguments.test_images,
        "--channels": arguments.channels,
        "--layers": arguments.layers,
        "--epochs": epochs,
        "--seed": seed,
        "--out": folder,
    }
    flags = [text for name, value in sizes.items() for text in (name, str(value))]
    return ["train", *ARMS[arm], *flags]


def last_epoch(folder: Path) -> dict[str, Any] | None:
    """The last epoch row of a run folder, None where there is none."""
    epochs = read_run(folder).epochs if (folder / "config.json").exists() else ()
    return epochs[-1] if epochs else None


if __name__ == "__main__":
    main()
