"""Searches in NAS-Bench-201 on real CIFAR-10, whose cells' true accuracies are known.

    python benchmarks/nasbench201_study.py --arms first sge [--methods darts ...] [--seeds 0 1 2] ...

Each run is a process with one thread, `--jobs` of them at a time. A run that `--out` holds already is not
taken again, so that the study can be stopped and extended. Prints, for every method and arm, mean and
standard deviation over the seeds of the true test accuracies of the found cell (in per cent, from the table),
and the same for CIFAR-10 and the cell that a search had when it had taken as many passes as `first` takes in
all. Adds a JSON line to benchmarks/results/nasbench201_study.jsonl.

Scaled down for a CPU: `--channels` and `--cells` of the supernet, `--images` of CIFAR-10 (half train the
weights, half the alphas), `--epochs`. Alphas would hardly move in so few steps, so each method's own alpha
learning rate is taken `--alpha-lr-scale` times. The arms, each with the method's other settings:

    first       first-order, the same number of steps as sge
    first-time  first-order, six times as many epochs: as many passes as sge with Q = 10, N = 1
    second      second-order, the same number of steps
    sge         Algorithm 1 with the settings of docs/choosing.md: Q = 10, N = 1, mu = 0.01
    and sge with one change: see ARMS.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import SHARED_DATA, add_result

from sgenas.engine import (
    DataSettings,
    EstimatorSettings,
    SearchConfig,
    SpaceSettings,
    WatchSettings,
    run_search,
)
from sgenas.methods import METHODS
from sgenas.report import read_run
from sgenas.spaces import AccuracyTable
from sgenas.spaces.nasbench201_strings import to_string

TABLE = SHARED_DATA / "nasbench201-200epochs.csv"


def _with(**changes: Any) -> Callable[[SearchConfig], SearchConfig]:
    """A change of settings, group by group; epochs is a factor."""

    def change(config: SearchConfig) -> SearchConfig:
        parts: dict[str, Any] = {}
        for name, value in changes.items():
            if name == "epochs":
                parts[name] = round(value * config.epochs)
            elif callable(value):
                parts[name] = value(config)
            else:
                parts[name] = dataclasses.replace(getattr(config, name), **value)
        return dataclasses.replace(config, **parts)

    return change


def _plain_descent(config: SearchConfig) -> Any:
    """The paper's optimiser of the alphas; its step in units of alpha is scaled as the others' are."""
    return dataclasses.replace(
        config.alphas, alpha_optimizer="sgd", alpha_lr=1.0, alpha_weight_decay=0.0, alpha_beta1=0.5
    )


FIRST, SECOND = EstimatorSettings(estimator="first-order"), EstimatorSettings(estimator="second-order")

ARMS: dict[str, Callable[[SearchConfig], SearchConfig]] = {
    "first": lambda config: dataclasses.replace(config, estimator=FIRST),
    "first-time": lambda config: dataclasses.replace(config, estimator=FIRST, epochs=6 * config.epochs),
    "second": lambda config: dataclasses.replace(config, estimator=SECOND),
    "sge": _with(),
    "sge-mu0.1": _with(estimator={"smoothing": 0.1}),
    "sge-mu1": _with(estimator={"smoothing": 1.0}),
    "sge-smooth": _with(space={"activation": "silu"}),
    "sge-orthogonal": _with(estimator={"direction_kind": "orthogonal"}),
    "sge-variate": _with(estimator={"directions": 8, "control_variate": "finite-difference"}),
    "sge-variate-smooth": _with(
        estimator={"directions": 8, "control_variate": "finite-difference"}, space={"activation": "silu"}
    ),
    "second-smooth": lambda config: _with(space={"activation": "silu"})(ARMS["second"](config)),
    "sge-q40": _with(estimator={"directions": 40}),
    "sge-separate": _with(weights={"weights": "separate"}),
    "sge-no-momentum": _with(weights={"momentum": 0.0}),
    "sge-batch256": _with(data={"batch_size": 256}, epochs=4),
    "sge-every5": _with(alphas={"alpha_every": 5}, epochs=3.75),
    "sge-sgd": _with(alphas=_plain_descent),
    "sge-lr0.1": lambda config: _with(alphas={"alpha_lr": 0.1 * config.alphas.alpha_lr})(config),
    "first-smooth": lambda config: _with(space={"activation": "silu"})(ARMS["first"](config)),
}
"""name -> what it changes. batch256: as many steps as sge, of four times the images. every5: 5 steps of the
weights to one of the alphas: 16 passes where sge takes 60, so that 3.75 times the epochs cost the same."""


def main() -> None:
    """Runs the study; see the module's docstring."""
    parser = argparse.ArgumentParser(description="searches in NAS-Bench-201 on CIFAR-10")
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED_DATA)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--arms", nargs="+", default=["first", "first-time", "sge"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--alpha-lr-scale", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/nasbench201"))
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "ARM", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, arm, seed = arguments.one
        result = run_search(settings(arguments, method, arm, int(seed)), folder_of(arguments, *arguments.one))
        (folder_of(arguments, *arguments.one) / "done").write_text(to_string(result.genotype))
        return

    # arm by arm, so that a study cut short has whole arms
    grid = [
        (method, arm, seed)
        for arm in arguments.arms
        for method in arguments.methods
        for seed in arguments.seeds
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda place: run_one(arguments, *place), grid))
    rows = [row(arguments, method, arm) for method in arguments.methods for arm in arguments.arms]
    show(rows, arguments)
    kept = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("folder", "table", "out", "one")
    }
    add_result("nasbench201_study", {**kept, "rows": rows})


def folder_of(arguments: argparse.Namespace, method: str, arm: str, seed: str | int) -> Path:
    """Folder of a run; runs of other sizes have other folders."""
    size = f"c{arguments.channels}n{arguments.cells}i{arguments.images}e{arguments.epochs}"
    return Path(arguments.out) / size / f"{method}_{arm}_{seed}"


def settings(arguments: argparse.Namespace, method: str, arm: str, seed: int) -> SearchConfig:
    """The method's own settings at this size, with the change of the arm."""
    source = SearchConfig.of_method(method, without=["operations"])
    config = dataclasses.replace(
        source,
        epochs=arguments.epochs,
        seed=seed,
        log_every=20,
        data=DataSettings(
            data=f"parquet:{arguments.folder}",
            train_images=arguments.images,
            batch_size=arguments.batch_size,
        ),
        space=SpaceSettings(
            space="nasbench201", activation="relu", channels=arguments.channels, cells=arguments.cells
        ),
        alphas=dataclasses.replace(
            source.alphas,
            alpha_lr=arguments.alpha_lr_scale * source.alphas.alpha_lr,
            # PC-DARTS waits for 15 of 50 epochs
            warmup_epochs=round(0.3 * arguments.epochs) if source.alphas.warmup_epochs else 0,
        ),
        watch=WatchSettings(table=str(arguments.table)),
    )
    return ARMS[arm](config)


def run_one(arguments: argparse.Namespace, method: str, arm: str, seed: int) -> None:
    """One run in a process of its own, unless it is there already; a failure is reported and passed over."""
    folder = folder_of(arguments, method, arm, seed)
    if (folder / "done").exists():
        return
    sizes = ("images", "channels", "cells", "batch_size", "epochs", "alpha_lr_scale", "out", "table")
    flags = [text for key in sizes for text in (f"--{key.replace('_', '-')}", str(getattr(arguments, key)))]
    command = [sys.executable, __file__, str(arguments.folder), *flags, "--one", method, arm, str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{method} {arm} seed {seed} FAILED: {last}", flush=True)
    else:
        print(f"{method} {arm} seed {seed}: {read_run(folder).epochs[-1]['true_cifar10']:.2f}", flush=True)


def row(arguments: argparse.Namespace, method: str, arm: str) -> dict[str, Any]:
    """The figures of a method and arm over those seeds that are done."""
    table = AccuracyTable.load(arguments.table)
    found: dict[str, Any] = {
        "method": method,
        "arm": arm,
        "cells": [],
        "true": [],
        "at_equal_passes": [],
        "forward": [],
        "seconds": [],
    }
    for seed in arguments.seeds:
        folder = folder_of(arguments, method, arm, seed)
        if not (folder / "done").exists():
            continue
        epochs = read_run(folder).epochs
        found["cells"].append((folder / "done").read_text())
        found["true"].append(table.query(found["cells"][-1]))
        budget = passes_of_first(arguments, method, seed)
        within = [each for each in epochs if each["forward"] <= budget]
        found["at_equal_passes"].append(within[-1]["true_cifar10"] if within else None)
        found["forward"].append(epochs[-1]["forward"])
        found["seconds"].append(epochs[-1]["seconds"])
    return found


def passes_of_first(arguments: argparse.Namespace, method: str, seed: int) -> float:
    """Forward passes that the first-order search of that method and seed took; 0 where it is not there."""
    folder = folder_of(arguments, method, "first", seed)
    return float(read_run(folder).epochs[-1]["forward"]) if (folder / "done").exists() else 0.0


def show(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Prints the table."""
    names = AccuracyTable.load(arguments.table).datasets
    print(
        f"\n{'method':12}{'arm':16}"
        + "".join(f"{name:>18}" for name in names)
        + f"{'at equal passes':>18}{'passes':>9}{'s':>7}  skips"
    )
    for each in rows:
        if not each["true"]:
            continue
        text = f"{each['method']:12}{each['arm']:16}"
        early = [value for value in each["at_equal_passes"] if value is not None]
        for values in [*([true[name] for true in each["true"]] for name in names), early]:
            spread = stdev(values) if len(values) > 1 else 0.0
            text += f"{mean(values):11.2f} ± {spread:4.2f}" if values else f"{'-':>18}"
        skips = [cell.count("skip_connect") for cell in each["cells"]]
        print(f"{text}{mean(each['forward']):9.0f}{mean(each['seconds']):7.0f}  {skips}")


if __name__ == "__main__":
    main()
