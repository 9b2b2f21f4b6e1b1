"""Searches of NAS-Bench-201 in the protocol of `--preset nasbench201`, and the tabulated accuracies that they find.

    python benchmarks/nasbench201_study.py --arms first-order sge [--methods darts ...] [--seeds 10 11] [--jobs 2]
    python benchmarks/nasbench201_study.py --arms table

Each run is a process with one thread, ``--jobs`` at a time. Runs below ``--out`` are kept: a study that was stopped
goes on, also in the middle of a run, and can be extended. What is chosen is chosen on seeds 0 to 3; other seeds judge.

Prints per method and arm the tabulated test accuracies of the final cells on the three datasets: mean and standard
deviation over the seeds, on CIFAR-10 also of the cell that the run had when it had taken as many passes as
``first-order`` takes in all (equal passes), and each arm's paired difference from ``first-order`` with its 95 %
confidence interval. An arm is an estimator, or a strategy that has no method. ``table`` draws and evolves cells by
their tabulated accuracy: no search can beat it.
"""

import argparse
import itertools
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from record import CIFAR10, SHARED_DATA, add_result, flags, interval, python

import sgenas
from sgenas.methods import METHODS
from sgenas.report.run_record import RunRecord, read_run
from sgenas.spaces import AccuracyTable

SGE: dict[str, Any] = {"estimator.name": "sge", "estimator.num_directions": 10}
ARMS: dict[str, dict[str, Any]] = {
    "first-order": {},
    "second-order": {"estimator.name": "finite-difference"},
    # the paper's network and the smoothing of its reference; and what this library recommends
    "sge-plain": SGE | {"space.activation": "relu", "estimator.smoothing": 0.01},
    "sge": SGE,
    "first-order-5": {"inner_steps": 5},
    "unrolled-5": {"estimator.name": "unrolled", "inner_steps": 5},
}
"""Settings of each arm, in place of the preset's."""
STRATEGIES = ("random", "evolution")
"""Arms without a method: the supernet is trained on random architectures, candidates are measured with its weights."""
DATASETS = ("cifar10", "cifar100", "imagenet16")


def main() -> None:
    methods = [name for name in METHODS if "nasbench201" in METHODS.get(name).spaces]
    given = flags(
        __doc__,
        data=CIFAR10,
        table=str(SHARED_DATA / "nasbench201-200epochs.csv"),
        methods={"nargs": "+", "default": methods, "choices": methods},
        arms={"nargs": "+", "default": ["first-order"], "choices": [*ARMS, *STRATEGIES, "table"]},
        seeds=[10, 11, 12, 13, 14],
        changes={
            "default": "{}",
            "help": "other settings than the preset's, a JSON object [%(default)s]",
        },
        name={"default": "preset", "help": "folder of the runs with these changes [%(default)s]"},
        candidates=100,
        jobs=os.cpu_count() or 1,
        out=Path("runs/nasbench201"),
        one={"nargs": 3, "help": argparse.SUPPRESS},
    )
    if given.one:
        method, arm, seed = given.one
        configuration(given, method, arm, int(seed)).run(directory(given, method, arm, int(seed)), progress=False)
        return
    table = AccuracyTable.load(given.table)
    # seed by seed, so that a study cut short has pairs
    pairs = [(method, arm) for arm in given.arms for method in methods_of(arm, given.methods)]
    searches = [(seed, *pair) for seed, pair in itertools.product(given.seeds, pairs) if pair[1] != "table"]
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda run: run_one(given, run[1], run[2], run[0]), searches))
    rows = [row(given, table, method, arm) for method, arm in pairs if arm != "table"]
    if "table" in given.arms:
        rows += [from_table(given, table, kind) for kind in STRATEGIES]
    add_result("nasbench201_study", {**vars(given), "rows": rows})


def methods_of(arm: str, methods: list[str]) -> list[str]:
    return methods if arm in ARMS else ["-"]


def directory(given: argparse.Namespace, method: str, arm: str, seed: int) -> Path:
    return Path(given.out) / given.name / f"{method}_{arm}_{seed}"


def configuration(given: argparse.Namespace, method: str, arm: str, seed: int) -> sgenas.SearchConfig:
    """The preset with the settings of the arm."""
    same = {"seed": seed, "threads": 1, "log_every": 50, "table": given.table, "data.data": given.data}
    same |= json.loads(given.changes)
    if arm in STRATEGIES:
        return sgenas.SearchConfig.of_method("darts", same | {"strategy": arm}, preset="nasbench201")
    return sgenas.SearchConfig.of_method(method, same | ARMS[arm], preset="nasbench201")


def finished(given: argparse.Namespace, method: str, arm: str, seed: int) -> RunRecord | None:
    """The run, if it has a result."""
    path = directory(given, method, arm, seed)
    record = read_run(path) if (path / "genotype.json").exists() else None
    return record if record and len(record.epochs) == record.config["epochs"] else None


def run_one(given: argparse.Namespace, method: str, arm: str, seed: int) -> None:
    """One run in a process of its own, unless it exists; a failure is reported."""
    if finished(given, method, arm, seed) is not None:
        return
    names = ("data", "table", "changes", "name", "out")
    same = [text for name in names for text in (f"--{name}", getattr(given, name))]
    done = python(__file__, *same, "--one", method, arm, seed, check=False)
    found = finished(given, method, arm, seed)
    result = (
        f"{accuracies(found, AccuracyTable.load(given.table))['cifar10']:.2f} in {found.epochs[-1]['seconds']:.0f} s"
        if found
        else f"FAILED: {done.stderr.strip()[-200:]}"
    )
    print(f"{method} {arm} seed {seed}: {result}", flush=True)


def accuracies(record: RunRecord, table: AccuracyTable) -> dict[str, float]:
    """Tabulated accuracies of the final cell, in percent."""
    assert record.genotype is not None
    return dict(zip(DATASETS, table.query(record.genotype).values(), strict=True))


def row(given: argparse.Namespace, table: AccuracyTable, method: str, arm: str) -> dict[str, Any]:
    """Figures of a method and arm over the finished seeds, printed as a line."""
    found: dict[str, Any] = {"method": method, "arm": arm, "seeds": [], "final": [], "at_equal_passes": []}
    found |= {"differences": [], "passes": [], "seconds": []}
    for seed in given.seeds:
        record = finished(given, method, arm, seed)
        if record is None:
            continue
        found["seeds"].append(seed)
        found["final"].append(accuracies(record, table))
        found["passes"].append(record.epochs[-1]["forward"])
        found["seconds"].append(record.epochs[-1]["seconds"])
        first = finished(given, method, "first-order", seed) if method != "-" else None
        if first:
            limit = first.epochs[-1]["forward"]
            found["at_equal_passes"] += [
                each["tabulated_cifar10"] for each in record.epochs if each["forward"] <= limit
            ][-1:]
            found["differences"].append(accuracies(record, table)["cifar10"] - accuracies(first, table)["cifar10"])
    text = f"{method:12}{arm:15}{len(found['seeds'])} seeds"
    for name in DATASETS:
        text += f"  {name} {spread([each[name] for each in found['final']])}"
    text += f"  at equal passes {spread(found['at_equal_passes'])}"
    if arm != "first-order" and len(found["differences"]) > 1:
        found["interval"] = interval(found["differences"])
        low, high = found["interval"]
        text += f"  minus first order {mean(found['differences']):+.2f} [{low:+.2f}, {high:+.2f}]"
    if found["passes"]:
        text += f"  {mean(found['passes']):.0f} passes, {mean(found['seconds']) / 60:.1f} min"
    print(text, flush=True)
    return found


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0.0:.2f}" if values else "-"


def from_table(given: argparse.Namespace, table: AccuracyTable, kind: str) -> dict[str, Any]:
    """Upper bound: as many candidates as the strategies measure, by their tabulated accuracy on CIFAR-10."""
    space = sgenas.spaces.nasbench201()
    operations, shape = space.operations, space.shapes["cell"]
    final = []
    for seed in given.seeds:
        draw = random.Random(seed)

        def accuracy(cell: tuple[str, ...]) -> float:
            return table.query(genotype(space, cell))["cifar10"]

        def drawn(draw: random.Random = draw) -> tuple[str, ...]:
            return tuple(draw.choice(operations) for _ in range(shape[0]))

        seen: dict[tuple[str, ...], float] = {}
        population: list[tuple[str, ...]] = []
        while len(seen) < given.candidates:
            if kind == "random" or len(population) < 50:
                cell = drawn()
            else:
                parent = max(draw.sample(population, 10), key=seen.__getitem__)
                edge = draw.randrange(shape[0])
                cell = (*parent[:edge], draw.choice(operations), *parent[edge + 1 :])
            if cell in seen and kind == "random":
                continue
            seen.setdefault(cell, accuracy(cell))
            population = [*population, cell][-50:]
        best = max(seen, key=seen.__getitem__)
        final.append(dict(zip(DATASETS, table.query(genotype(space, best)).values(), strict=True)))
    text = "  ".join(f"{name} {spread([each[name] for each in final])}" for name in DATASETS)
    print(f"{'table':12}{kind:15}{len(final)} seeds  {text}", flush=True)
    return {"method": "table", "arm": kind, "seeds": given.seeds, "final": final}


def genotype(space: Any, cell: tuple[str, ...]) -> Any:
    """The cell of one operation per edge."""
    chosen = torch.tensor([space.operations.index(operation) for operation in cell])
    return space.derive({"cell": torch.nn.functional.one_hot(chosen, len(space.operations)).double()})


if __name__ == "__main__":
    main()
