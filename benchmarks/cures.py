"""What protects DARTS from its collapse: cures compared in NAS-Bench-201 on CIFAR-10.

    python benchmarks/cures.py [--arms darts darts-pt ...] [--seeds 0 1 2 3 4] [--jobs 2] [--out runs/cures]

Each run is a process with one thread, `--jobs` at a time. Finished runs in `--out` are kept and unfinished ones
resumed, so that the comparison can be stopped and extended. Sizes that are not given are those of `--preset
nasbench201`. Appends a line to benchmarks/results/cures.jsonl and prints a table: per arm the tabulated test accuracy
(%) of the cell of each seed, mean and standard deviation, the paired difference to `darts` over the seeds with its
95 % confidence interval, skip connections of the 6 edges, and cost.

    darts        first order, nothing else
    darts-pt     the same search, its cell chosen by perturbation, with a tenth of the epochs between two decisions
    sdarts-rs    noise on the mixing weights in the inner loss, up to 0.3; -alphas: on the alphas
    sdarts-pt    sdarts-rs, its cell chosen by perturbation
    a2m          flatness with the rho of the released code for this space; a2m-1: with rho = 1
    early-stop   by the largest eigenvalue, measured in each epoch
    beta-darts   beta decay
"""

import argparse
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import CIFAR10, SHARED_DATA, add_result, flags, interval, python

import sgenas
from sgenas.report.run_record import RunRecord, read_run
from sgenas.spaces import AccuracyTable

PERTURBATION: dict[str, Any] = {"selection": {"name": "perturbation"}}
SMOOTHING: dict[str, Any] = {"alpha_noise": 0.3}
ARMS: dict[str, dict[str, Any]] = {
    "darts": {},
    "darts-pt": PERTURBATION,
    "sdarts-rs": SMOOTHING,
    "sdarts-pt": SMOOTHING | PERTURBATION,
    "a2m": {"flatness": 0.01},
    "a2m-1": {"flatness": 1.0},
    # the source's tenth of 50 epochs, as a share
    "early-stop": {"eigenvalue_every": 1, "early_stop": True, "early_stop_from": 4},
    "beta-darts": {"method": "beta-darts"},
}
COLUMNS = ("arm", "each seed", "CIFAR-10", "against darts", "CIFAR-100", "ImageNet16-120", "skips", "passes", "minutes")
SIZES = {"train_images": "data.train_images", "channels": "space.channels", "layers": "space.layers"}
SIZES |= {"batch_size": "data.batch_size", "epochs": "epochs"}
"""Flag -> path of the setting."""


def main() -> None:
    given = flags(
        __doc__,
        data=CIFAR10,
        table=str(SHARED_DATA / "nasbench201-200epochs.csv"),
        arms={"nargs": "+", "default": list(ARMS), "choices": list(ARMS)},
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
    # seed by seed, so that a comparison cut short has all arms
    runs = list(itertools.product(given.seeds, given.arms))
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda run: run_one(given, run[1], run[0]), runs))
    rows = [row(given, arm) for arm in given.arms]
    add_result("cures", {**vars(given), "rows": rows})
    print(table(rows))


def configuration(given: argparse.Namespace, arm: str, seed: int) -> sgenas.SearchConfig:
    """The preset with the settings of an arm."""
    chosen = dict(ARMS[arm])
    method = chosen.pop("method", "darts")
    settings: dict[str, Any] = {"seed": seed, "threads": 1, "log_every": 20, "table": given.table}
    settings |= {path: getattr(given, name) for name, path in SIZES.items() if getattr(given, name) is not None}
    settings |= {"data.data": given.data} | chosen
    return sgenas.SearchConfig.of_method(method, settings, preset="nasbench201")


def directory(given: argparse.Namespace, arm: str, seed: int) -> Path:
    """Run directory; runs of other sizes have other ones."""
    sizes = "-".join(f"{name[0]}{getattr(given, name)}" for name in SIZES if getattr(given, name) is not None)
    return Path(given.out) / (sizes or "preset") / f"{arm}_{seed}"


def finished(given: argparse.Namespace, arm: str, seed: int) -> RunRecord | None:
    """The run, if it has all its epochs or stopped early."""
    path = directory(given, arm, seed)
    record = read_run(path) if (path / "genotype.json").exists() else None
    if record is None or not record.epochs:
        return None
    done = len(record.epochs) == record.config["epochs"] or "stopped_early_with_epoch" in record.epochs[-1]
    return record if done else None


def run_one(given: argparse.Namespace, arm: str, seed: int) -> None:
    """One run in a process of its own, unless it is finished; a failure is reported."""
    if finished(given, arm, seed) is not None:
        return
    same = [text for name in ("data", "table", "out") for text in (f"--{name}", getattr(given, name))]
    for name in SIZES:
        if getattr(given, name) is not None:
            same += [f"--{name.replace('_', '-')}", getattr(given, name)]
    done = python(__file__, *same, "--one", arm, seed, check=False)
    found = finished(given, arm, seed)
    result = found.epochs[-1]["tabulated_cifar10"] if found else f"FAILED: {done.stderr.strip()[-200:]}"
    print(f"{arm} seed {seed}: {result}", flush=True)


def row(given: argparse.Namespace, arm: str) -> dict[str, Any]:
    """Figures of an arm over the finished seeds."""
    accuracies = AccuracyTable.load(given.table)
    found: dict[str, Any] = {"arm": arm, "seeds": [], "tabulated": [], "skips": [], "forward": [], "seconds": []}
    found |= {"darts": []}
    for seed in given.seeds:
        record, plain = finished(given, arm, seed), finished(given, "darts", seed)
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
        cells = [each["arm"], values, spread(columns[0]), difference(pairs), *map(spread, columns[1:])]
        costs = [f"{mean(each['skips']):.1f}", f"{mean(each['forward']):.0f}", f"{mean(each['seconds']) / 60:.1f}"]
        lines.append(f"| {' | '.join([*cells, *costs])} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def difference(pairs: list[float]) -> str:
    """Mean of paired differences with its 95 % confidence interval (Student's t)."""
    if len(pairs) < 2:
        return "-"
    low, high = interval(pairs)
    return f"{mean(pairs):+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
