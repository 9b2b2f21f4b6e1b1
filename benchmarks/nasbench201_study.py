"""Search runs in NAS-Bench-201 on CIFAR-10, with the tabulated accuracies of the cells that they find.

    python benchmarks/nasbench201_study.py --arms first sge [--methods darts ...] [--seeds 0 1 2] [--jobs 2]

Each run is a process with one thread, `--jobs` at a time. Runs in `--out` are kept, so that the study can be stopped
and extended. Prints, per method and arm, mean and standard deviation over the seeds of the tabulated test accuracy of
the derived cell (in percent), and on CIFAR-10 also of the cell that a search had when it had taken as many passes as
`first` takes in all.

Scaled down for a CPU. Alphas would hardly move in so few steps, so each method's learning rate of the alphas is
multiplied by `--alpha-lr-scale`. The arms, each with the method's other settings:

    first       first order, the same number of steps as sge
    first-time  first order, six times as many epochs: as many passes as sge with Q = 10, N = 1
    second      finite difference, the same number of steps
    sge         Algorithm 1 with Q = 10, N = 1, mu = 0.01 in the ReLU network
    and sge with one change: see ARMS.
"""

import argparse
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import CIFAR10, SHARED_DATA, add_result, flags, python

import sgenas
from sgenas.methods import METHODS
from sgenas.report.run_record import RunRecord, read_run
from sgenas.spaces import AccuracyTable

SGE: dict[str, Any] = {"estimator.name": "sge", "estimator.num_directions": 10, "estimator.smoothing": 0.01}
FIRST: dict[str, Any] = {"estimator.name": "first-order"}
SECOND: dict[str, Any] = {"estimator.name": "finite-difference"}
SMOOTH: dict[str, Any] = {"space.activation": "silu"}
VARIATE = {**SGE, "estimator.num_directions": 8, "estimator.control_variate": "finite-difference"}
ARMS: dict[str, dict[str, Any]] = {
    "first": FIRST,
    "first-time": FIRST | {"epochs": 6},
    "second": SECOND,
    "sge": SGE,
    "sge-mu0.1": SGE | {"estimator.smoothing": 0.1},
    "sge-mu1": SGE | {"estimator.smoothing": 1.0},
    "sge-smooth": SGE | SMOOTH,
    "sge-orthogonal": SGE | {"estimator.directions": "orthogonal"},
    "sge-variate": VARIATE,
    "sge-variate-smooth": VARIATE | SMOOTH,
    "second-smooth": SECOND | SMOOTH,
    "sge-q40": SGE | {"estimator.num_directions": 40},
    "sge-separate": SGE | {"trajectory_lr": 0.01},
    "sge-no-momentum": SGE | {"weight_optimizer.momentum": 0.0},
    "sge-batch256": SGE | {"data.batch_size": 256, "epochs": 4},
    "sge-every5": SGE | {"alpha_every": 5, "epochs": 3.75},
    # the paper's optimizer of the alphas
    "sge-sgd": SGE | {"arch_optimizer": {"name": "sgd", "lr": 1.0}},
    "sge-lr0.1": SGE | {"arch_optimizer.lr": 0.1},
    "first-smooth": FIRST | SMOOTH,
}
"""Settings of each arm; ``epochs`` and ``arch_optimizer.lr`` are factors. batch256: as many steps as sge, of four
times the images. every5: 16 passes where sge takes 60, so that 3.75 times the epochs cost the same."""


def main() -> None:
    methods = [name for name in METHODS if "nasbench201" in METHODS.get(name).spaces]
    given = flags(
        __doc__,
        data=CIFAR10,
        table=str(SHARED_DATA / "nasbench201-200epochs.csv"),
        methods={"nargs": "+", "default": methods, "choices": methods},
        arms={"nargs": "+", "default": ["first", "first-time", "sge"], "choices": list(ARMS)},
        seeds=[0, 1, 2],
        train_images=4000,
        channels=8,
        layers=1,
        batch_size=64,
        epochs=8,
        alpha_lr_scale=10.0,
        jobs=os.cpu_count() or 1,
        out=Path("runs/nasbench201"),
        one={"nargs": 3, "help": argparse.SUPPRESS},
    )
    if given.one:
        method, arm, seed = given.one
        configuration(given, method, arm, int(seed)).run(directory(given, method, arm, int(seed)), progress=False)
        return
    # arm by arm, so that a study cut short has whole arms
    runs = list(itertools.product(given.arms, given.methods, given.seeds))
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda run: run_one(given, run[1], run[0], run[2]), runs))
    rows = [row(given, method, arm) for method in given.methods for arm in given.arms]
    add_result("nasbench201_study", {**vars(given), "rows": rows})


def directory(given: argparse.Namespace, method: str, arm: str, seed: int) -> Path:
    """Run directory; runs of other sizes have other ones."""
    size = f"c{given.channels}n{given.layers}i{given.train_images}e{given.epochs}"
    return Path(given.out) / size / f"{method}_{arm}_{seed}"


def configuration(given: argparse.Namespace, method: str, arm: str, seed: int) -> sgenas.SearchConfig:
    """The method's own settings at this size, with those of the arm."""
    source, chosen = sgenas.SearchConfig.of_method(method), dict(ARMS[arm])
    sizes = {
        "space": {"name": "nasbench201", "channels": given.channels, "layers": given.layers, "activation": "relu"},
        "seed": seed,
        "threads": 1,
        "log_every": 20,
        "table": given.table,
        "epochs": round(chosen.pop("epochs", 1) * given.epochs),
        # methods that wait take the same share of the epochs
        "warmup_epochs": round(0.3 * given.epochs) if source.warmup_epochs else 0,
        "data.data": given.data,
        "data.train_images": given.train_images,
        "data.batch_size": given.batch_size,
    }
    if "arch_optimizer" not in chosen:
        rate = source.arch_optimizer.lr
        chosen["arch_optimizer.lr"] = chosen.get("arch_optimizer.lr", 1.0) * given.alpha_lr_scale * rate
    return sgenas.SearchConfig.of_method(method, sizes | chosen)


def finished(given: argparse.Namespace, method: str, arm: str, seed: int) -> RunRecord | None:
    """The run, if it has all its epochs."""
    path = directory(given, method, arm, seed)
    record = read_run(path) if (path / "genotype.json").exists() else None
    return record if record and len(record.epochs) == record.config["epochs"] else None


def run_one(given: argparse.Namespace, method: str, arm: str, seed: int) -> None:
    """One run in a process of its own, unless it exists; a failure is reported."""
    if finished(given, method, arm, seed) is not None:
        return
    sizes = ("data", "table", "train_images", "channels", "layers", "batch_size", "epochs", "alpha_lr_scale", "out")
    same = [text for name in sizes for text in (f"--{name.replace('_', '-')}", getattr(given, name))]
    done = python(__file__, *same, "--one", method, arm, seed, check=False)
    found = finished(given, method, arm, seed)
    result = found.epochs[-1]["tabulated_cifar10"] if found else f"FAILED: {done.stderr.strip()[-200:]}"
    print(f"{method} {arm} seed {seed}: {result}", flush=True)


def row(given: argparse.Namespace, method: str, arm: str) -> dict[str, Any]:
    """Figures of a method and arm over the finished seeds, printed as a line."""
    table = AccuracyTable.load(given.table)
    found: dict[str, Any] = {"method": method, "arm": arm, "tabulated": [], "at_equal_passes": [], "forward": []}
    for seed in given.seeds:
        record = finished(given, method, arm, seed)
        if record is None:
            continue
        assert record.genotype is not None
        found["tabulated"].append(table.query(record.genotype))
        found["forward"].append(record.epochs[-1]["forward"])
        first = finished(given, method, "first", seed)
        limit = first.epochs[-1]["forward"] if first else 0
        within = [each["tabulated_cifar10"] for each in record.epochs if each["forward"] <= limit]
        found["at_equal_passes"] += within[-1:]
    columns = {name: [each[name] for each in found["tabulated"]] for name in table.datasets}
    text = f"{method:12}{arm:20}"
    for name, values in (columns | {"at equal passes": found["at_equal_passes"]}).items():
        deviation = stdev(values) if len(values) > 1 else 0.0
        text += f"  {name} {mean(values):.2f} ± {deviation:.2f}" if values else f"  {name} -"
    print(text + f"  {mean(found['forward'] or [0]):.0f} passes", flush=True)
    return found


if __name__ == "__main__":
    main()
