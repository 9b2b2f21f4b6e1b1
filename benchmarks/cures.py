"""What protects DARTS from its collapse: cures compared in NAS-Bench-201 on CIFAR-10.

    python benchmarks/cures.py [--arms darts darts-pt ...] [--seeds 0 1 2 3 4] [--jobs 2] [--out runs/cures]

Each run is a process with one thread, `--jobs` at a time. Finished runs in `--out` are kept and unfinished ones
resumed, so that the comparison can be stopped and extended. Sizes that are not given are those of `--preset
nasbench201`. Appends a line to benchmarks/results/cures.jsonl and prints a table: per arm the tabulated test accuracy
(%) of the cell of each seed, mean and standard deviation, the paired difference to `darts` over the seeds with its
95 % confidence interval, skip connections of the 6 edges, and cost (passes without those of eigenvalues).

    darts        first order, nothing else
    darts-pt     the same search, its cell chosen by perturbation, fine-tuned between two decisions for a tenth of
                 the epochs, at least 1
    sdarts-rs    noise on the mixing weights in the inner loss, rising to 0.3
    sdarts-pt    sdarts-rs, its cell chosen by perturbation
    early-stop   by the largest eigenvalue, measured in each epoch; needs --epochs 9 or more, and is left out by default
    training     the same search as darts, its cell compared with its neighbors by short training
    beta-darts   beta decay; beta-training: with that selection
"""

import argparse
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from subprocess import CompletedProcess
from typing import Any

from record import (
    CIFAR10,
    SHARED_DATA,
    add_result,
    difference_text,
    finished,
    flags,
    mean_text,
    python,
    run_unfinished,
)

import sgenas
from sgenas.report.run_record import RunRecord
from sgenas.searching.callbacks.collapse import FEWEST
from sgenas.spaces import AccuracyTable

PERTURBATION: dict[str, Any] = {"selection": {"name": "perturbation"}}
TRAINING: dict[str, Any] = {"selection": {"name": "training", "candidates": 7}}
SMOOTHING: dict[str, Any] = {"alpha_noise": 0.3}
ARMS: dict[str, dict[str, Any]] = {
    "darts": {},
    "darts-pt": PERTURBATION,
    "sdarts-rs": SMOOTHING,
    "sdarts-pt": SMOOTHING | PERTURBATION,
    "early-stop": {"eigenvalue_every": 1, "early_stop": True},
    "training": TRAINING,
    "beta-darts": {"method": "beta-darts"},
    "beta-training": {"method": "beta-darts"} | TRAINING,
}
EARLIEST = 10 / 50
"""Share of the epochs before an early stop may take a cell: the source's 10 of 50."""
COLUMNS = ("arm", "each seed", "CIFAR-10", "against darts", "CIFAR-100", "ImageNet16-120", "skips", "passes", "minutes")
SIZES = {"train_images": "data.train_images", "channels": "space.channels", "layers": "space.layers"}
SIZES |= {"batch_size": "data.batch_size", "epochs": "epochs"}
"""Flag -> path of the setting."""


def main() -> None:
    given = flags(
        __doc__,
        data=CIFAR10,
        table=str(SHARED_DATA / "nasbench201-200epochs.csv"),
        arms={"nargs": "+", "default": [arm for arm in ARMS if arm != "early-stop"], "choices": list(ARMS)},
        seeds=[0, 1, 2, 3, 4],
        jobs=os.cpu_count() or 1,
        out=Path("runs/cures"),
        one={"nargs": 2, "help": argparse.SUPPRESS},
        **dict.fromkeys(SIZES, int),
    )
    if given.one:
        arm, seed = given.one[0], int(given.one[1])
        configuration(given, arm, seed).run(directory(given, arm, seed), progress=False)
        return
    accuracies, epochs = AccuracyTable.load(given.table), configuration(given, "darts", 0).epochs
    if "early-stop" in given.arms and epochs < FEWEST:
        sys.exit(f"--arms early-stop needs --epochs of at least {FEWEST}, got {epochs}; leave the arm out")

    def result(record: RunRecord) -> str:
        assert record.genotype is not None
        return f"{accuracies.query(record.genotype)['cifar10']:.2f} in {record.epochs[-1]['seconds']:.0f} s"

    # seed by seed, so that a comparison cut short has all arms
    run_unfinished(
        [(arm, seed) for seed, arm in itertools.product(given.seeds, given.arms)],
        given.jobs,
        directory=lambda run: directory(given, *run),
        start=lambda run: start(given, *run),
        result=result,
    )
    rows = [row(given, accuracies, arm) for arm in given.arms]
    add_result("cures", {**vars(given), "rows": rows})
    print(table(rows))


def configuration(given: argparse.Namespace, arm: str, seed: int) -> sgenas.SearchConfig:
    """The preset with the settings of an arm."""
    chosen = dict(ARMS[arm])
    method = chosen.pop("method", "darts")
    settings: dict[str, Any] = {"seed": seed, "threads": 1, "log_every": 20, "table": given.table}
    settings |= {path: getattr(given, name) for name, path in SIZES.items() if getattr(given, name) is not None}
    settings |= {"data.data": given.data, "selection": None} | chosen
    config = sgenas.SearchConfig.of_method(method, settings, preset="nasbench201")
    return replace(config, early_stop_from=max(1, round(EARLIEST * config.epochs))) if config.early_stop else config


def directory(given: argparse.Namespace, arm: str, seed: int) -> Path:
    """Run directory; runs of other sizes have other ones."""
    sizes = "-".join(f"{name[0]}{getattr(given, name)}" for name in SIZES if getattr(given, name) is not None)
    return Path(given.out) / (sizes or "preset") / f"{arm}_{seed}"


def start(given: argparse.Namespace, arm: str, seed: int) -> "CompletedProcess[str]":
    """One run in a process of its own."""
    same = [text for name in ("data", "table", "out") for text in (f"--{name}", getattr(given, name))]
    for name in SIZES:
        if getattr(given, name) is not None:
            same += [f"--{name.replace('_', '-')}", getattr(given, name)]
    return python(__file__, *same, "--one", arm, seed, check=False)


def row(given: argparse.Namespace, accuracies: AccuracyTable, arm: str) -> dict[str, Any]:
    """Figures of an arm over the finished seeds."""
    found: dict[str, Any] = {"arm": arm, "seeds": [], "tabulated": [], "skips": [], "forward": [], "seconds": []}
    found |= {"darts": []}
    for seed in given.seeds:
        record, plain = (finished(directory(given, name, seed)) for name in (arm, "darts"))
        if record is None:
            continue
        assert record.genotype is not None
        last = record.epochs[-1]
        found["seeds"].append(seed)
        found["tabulated"].append(accuracies.query(record.genotype))
        found["skips"].append(sum(edge.operation == "skip_connect" for edge in record.genotype["cell"].edges))
        found["forward"].append(last["forward"])
        found["seconds"].append(last["seconds"])
        found["darts"].append(None if plain is None else plain.epochs[-1]["tabulated_cifar10"])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for each in rows:
        if not each["seeds"]:
            continue
        names = list(each["tabulated"][0])
        columns = [[found[name] for found in each["tabulated"]] for name in names]
        values = " ".join(f"{value:.2f}" for value in columns[0])
        pairs = [ours - theirs for ours, theirs in zip(columns[0], each["darts"], strict=True) if theirs is not None]
        cells = [each["arm"], values, mean_text(columns[0]), difference_text(pairs), *map(mean_text, columns[1:])]
        costs = [f"{mean(each['skips']):.1f}", f"{mean(each['forward']):.0f}", f"{mean(each['seconds']) / 60:.1f}"]
        lines.append(f"| {' | '.join([*cells, *costs])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
