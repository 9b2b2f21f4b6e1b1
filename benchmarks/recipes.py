"""Training recipes compared at a small size: test accuracy for the epochs that they are given.

    python benchmarks/recipes.py [--arms source fast ...] [--epochs 5 10 20] [--seeds 0 1] [--jobs 2]

The network of a published cell is trained on CIFAR-10 by each arm for each number of epochs and seed; every run has
its whole schedule in its epochs. Runs are processes with one thread each, `--jobs` at a time; runs in `--out` are
kept, and stopped ones continue.
"""

import argparse
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from record import CIFAR10, add_result, flags, python

from sgenas.report.run_record import read_run

FAST = ("--recipe", "fast")
ARMS: dict[str, tuple[str, ...]] = {
    "source": ("--recipe", "source"),
    "source, auxiliary head and drop path off": ("--recipe", "source", "--drop-path", "0", "--auxiliary-weight", "0"),
    "fast": FAST,
    "fast, no moving average": (*FAST, "--ema", "None"),
    "fast, no label smoothing": (*FAST, "--label-smoothing", "0"),
    "fast, cutout 16": (*FAST, "--cutout", "16"),
    "fast, no cutout": (*FAST, "--cutout", "0"),
    "fast, lr 0.05": (*FAST, "--lr", "0.05"),
    "fast, lr 0.2": (*FAST, "--lr", "0.2"),
    "fast, lr 0.4": (*FAST, "--lr", "0.4"),
    "fast, batch 64": (*FAST, "--batch-size", "64"),
    "fast, no warm-up": (*FAST, "--warmup", "0"),
}
"""Flags of `sgenas train`: the recipes, and `fast` with one change."""


def main() -> None:
    given = flags(
        __doc__,
        data=CIFAR10,
        arms={"nargs": "+", "default": ["source", "fast"], "choices": list(ARMS)},
        epochs=[5, 10, 20],
        seeds=[0, 1],
        genotype="darts-v2",
        train_images=10000,
        test_images=5000,
        channels=8,
        layers=5,
        jobs=os.cpu_count() or 1,
        out=Path("runs/recipes"),
    )
    runs = list(itertools.product(given.epochs, given.arms, given.seeds))
    with ThreadPoolExecutor(given.jobs) as pool:
        found = dict(zip(runs, pool.map(lambda run: accuracy(given, *run), runs), strict=True))
    rows = []
    print(f"\n{'arm':44}{'epochs':>7}{'test accuracy, %':>20}")
    for epochs, arm in itertools.product(given.epochs, given.arms):
        values = [value for seed in given.seeds if (value := found[epochs, arm, seed]) is not None]
        if values:
            rows.append({"arm": arm, "epochs": epochs, "test_accuracy": values})
            deviation = stdev(values) if len(values) > 1 else 0.0
            print(f"{arm:44}{epochs:7}{100 * mean(values):13.2f} ± {100 * deviation:4.2f}")
    add_result("recipes", vars(given) | {"rows": rows})


def accuracy(given: argparse.Namespace, epochs: int, arm: str, seed: int) -> float | None:
    """Test accuracy of the last epoch of one run; None if the run failed."""
    sizes = f"{given.channels}x{given.layers}-{given.train_images}-{epochs}"
    out = given.out / f"{sizes}-{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    if (out / "checkpoint.safetensors").exists():
        done = python("-m", "sgenas", "resume", out, check=False)
    else:
        chosen = {name: getattr(given, name) for name in ("data", "genotype", "train_images", "test_images")}
        chosen |= {"channels": given.channels, "layers": given.layers, "epochs": epochs, "seed": seed, "out": out}
        settings = [text for name, value in chosen.items() for text in (f"--{name.replace('_', '-')}", value)]
        done = python("-m", "sgenas", "train", *ARMS[arm], *settings, "--threads", 1, "--overwrite", check=False)
    rows = read_run(out).epochs if done.returncode == 0 else ()
    last = f"{100 * rows[-1]['test_accuracy']:.2f} %" if rows else f"failed: {done.stderr.strip()[-200:]}"
    print(f"{arm}, {epochs} epochs, seed {seed}: {last}", flush=True)
    return float(rows[-1]["test_accuracy"]) if rows else None


if __name__ == "__main__":
    main()
