"""Searches of a tabulated benchmark in the protocol of `--preset nasbench201`, and the accuracies that they find.

    python benchmarks/tabulated_study.py [--arms preset] [--methods beta-darts] [--seeds 30 31] [--jobs 2]
    python benchmarks/tabulated_study.py --arms first-order sge [--methods darts ...] [--seeds 10 11] [--jobs 2]
    python benchmarks/tabulated_study.py --arms table
    python benchmarks/tabulated_study.py --space nasbench-macro --methods darts beta-darts --arms first-order sge

Each run is a process with one thread, ``--jobs`` at a time. Runs below ``--out`` are kept: a study that was stopped
goes on, also in the middle of a run, and can be extended. What is chosen is chosen on seeds 0 to 3; other seeds judge.

Prints per method and arm the tabulated test accuracies of the final cells on the table's datasets: mean and standard
deviation over the seeds, on CIFAR-10 also of the cell that the run had when it had taken as many passes as
``first-order`` takes in all (equal passes), and each arm's paired difference from first order with as many inner
steps, or from ``--reference``, with its 95 % confidence interval; then per arm the differences of a seed averaged
over the methods. The arm ``preset`` is that command, of which the cells of the alphas are shown too. Others are an
estimator, whose alphas choose the cell, or a strategy that has no method. ``table`` is random search and evolution of
as many candidates by tabulated accuracy: what the strategies would find with a supernet that ranks perfectly.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from statistics import mean
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

from record import (
    CIFAR10,
    SHARED_DATA,
    add_result,
    difference_text,
    finished,
    flags,
    interval,
    mean_text,
    python,
    run_unfinished,
)

import sgenas
from sgenas.methods import METHODS
from sgenas.random import generator
from sgenas.report import read_run
from sgenas.report.run_record import RunRecord
from sgenas.run.config import first_difference
from sgenas.searching.selection import SELECTIONS, TrainingSelection
from sgenas.spaces import AccuracyTable, Genotype, load_table

SGE: dict[str, Any] = {"estimator.name": "sge", "estimator.num_directions": 10}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "first-order": {},
    "second-order": {"estimator.name": "finite-difference"},
    # the paper's network and the smoothing of its reference; and what this library recommends
    "sge-plain": SGE | {"space.activation": "relu", "estimator.smoothing": 0.01},
    "sge": SGE,
    # the activation of `sge`, so that its share in a difference is known
    "first-order-silu": {"space.activation": "silu"},
    "first-order-5": {"inner_steps": 5},
    "unrolled-5": {"estimator.name": "unrolled", "inner_steps": 5},
    # about as many passes as SGE
    "neumann": {"estimator.name": "neumann", "estimator.max_hvps": 3},
    "conjugate-gradient": {"estimator.name": "conjugate-gradient", "estimator.max_hvps": 3},
    "evolution-strategies": {"estimator.name": "evolution-strategies"},
}
REFERENCES = {"unrolled-5": "first-order-5"}
"""Arm -> first order with as many inner steps; ``first-order`` for others."""
ARMS: dict[str, dict[str, Any]] = {"preset": {}} | {
    name: settings | {"selection": None} for name, settings in ESTIMATORS.items()
}
"""Settings of each arm, in place of the preset's."""
STRATEGIES = ("random", "evolution")
"""Arms without a method: the supernet is trained on random architectures, candidates are measured with its weights."""
TABLES = {"nasbench201": "nasbench201-200epochs.csv", "nasbench-macro": "nasbench-macro.json"}
SPACES: dict[str, dict[str, Any]] = {
    "nasbench201": {},
    "nasbench-macro": {"space.name": "nasbench-macro", "space.channels": 8},
}
"""Settings of each space, in place of the preset's."""


def main() -> None:
    given = flags(
        __doc__,
        space={"default": "nasbench201", "choices": list(SPACES)},
        data=CIFAR10,
        table={"help": "file of the benchmark [that of the space in the shared data]"},
        methods={"nargs": "+", "choices": METHODS.names(), "help": "[all of the space]"},
        arms={"nargs": "+", "default": ["preset"], "choices": [*ARMS, *STRATEGIES, "table"]},
        reference={"choices": list(ESTIMATORS), "help": "arm to compare with [first order with as many steps]"},
        seeds=[10, 11, 12, 13, 14],
        changes={
            "default": "{}",
            "help": "other settings than the preset's, a JSON object [%(default)s]",
        },
        name={"default": "preset", "help": "folder of the runs with these changes [%(default)s]"},
        jobs=os.cpu_count() or 1,
        out=Path("runs"),
        one={"nargs": 3, "help": argparse.SUPPRESS},
    )
    given.table = given.table or str(SHARED_DATA / TABLES[given.space])
    given.methods = given.methods or [name for name in METHODS if given.space in METHODS.get(name).spaces]
    if given.one:
        method, arm, seed = given.one
        configuration(given, method, arm, int(seed)).run(directory(given, method, arm, int(seed)), progress=False)
        return
    table = load_table(given.table)
    # seed by seed, so that a study cut short has pairs
    pairs = [(method, arm) for arm in given.arms for method in methods_of(arm, given.methods)]
    run_unfinished(
        [(*pair, seed) for seed, pair in itertools.product(given.seeds, pairs) if pair[1] != "table"],
        given.jobs,
        directory=lambda run: directory(given, *run),
        start=lambda run: start(given, *run),
        result=lambda record: f"{accuracies(record, table)['cifar10']:.2f} in {record.epochs[-1]['seconds']:.0f} s",
    )
    rows = [row(given, table, method, arm) for method, arm in pairs if arm != "table"]
    for arm in given.arms:
        differences = [each["differences"] for each in rows if each["arm"] == arm and each["differences"]]
        show_average(arm, reference_of(given, arm), differences)
    if "table" in given.arms:
        rows += [from_table(given, table, kind) for kind in STRATEGIES]
    add_result("tabulated_study", {**vars(given), "rows": rows})


def reference_of(given: argparse.Namespace, arm: str) -> str:
    """The arm with which an arm is compared."""
    return given.reference or REFERENCES.get(arm, "first-order")


def methods_of(arm: str, methods: list[str]) -> list[str]:
    return methods if arm in ARMS else ["-"]


def directory(given: argparse.Namespace, method: str, arm: str, seed: int) -> Path:
    return Path(given.out) / given.space / given.name / f"{method}_{arm}_{seed}"


def configuration(given: argparse.Namespace, method: str, arm: str, seed: int) -> sgenas.SearchConfig:
    """The preset with the settings of the arm."""
    same = {"seed": seed, "threads": 1, "log_every": 50, "table": given.table, "data.data": given.data}
    same |= SPACES[given.space] | json.loads(given.changes)
    if arm in STRATEGIES:
        return sgenas.SearchConfig.of_method("darts", same | {"strategy": arm}, preset="nasbench201")
    return sgenas.SearchConfig.of_method(method, same | ARMS[arm], preset="nasbench201")


def start(given: argparse.Namespace, method: str, arm: str, seed: int) -> "CompletedProcess[str]":
    """One run in a process of its own."""
    names = ("space", "data", "table", "changes", "name", "out")
    same = [text for name in names for text in (f"--{name}", getattr(given, name))]
    return python(__file__, *same, "--one", method, arm, seed, check=False)


def run_of(given: argparse.Namespace, method: str, arm: str, seed: int) -> RunRecord | None:
    """A finished run, None if it is not finished.

    Ends the study if the run has other settings, of an earlier version of the preset for example.
    """
    record = finished(directory(given, method, arm, seed))
    if record is None:
        return None
    plain = configuration(given, method, arm, seed).to_dict()
    # files are recorded with their absolute paths
    ours, theirs = (each | {"table": "", "data": each["data"] | {"data": ""}} for each in (plain, record.config))
    if difference := first_difference(ours, theirs):
        sys.exit(f"{record.path}: {difference}; delete it, or give the study another --name")
    return record


def accuracies(record: RunRecord, table: AccuracyTable) -> dict[str, float]:
    """Tabulated accuracies of the final cell, in percent."""
    assert record.genotype is not None
    return table.query(record.genotype)


def row(given: argparse.Namespace, table: AccuracyTable, method: str, arm: str) -> dict[str, Any]:
    """Figures of a method and arm over the finished seeds, printed as a line."""
    found: dict[str, Any] = {"method": method, "arm": arm, "seeds": [], "final": [], "at_equal_passes": []}
    found |= {"differences": [], "passes": [], "seconds": [], "by_alphas": []}
    reference = reference_of(given, arm)
    for seed in given.seeds:
        record = run_of(given, method, arm, seed)
        if record is None:
            continue
        found["seeds"].append(seed)
        found["final"].append(accuracies(record, table))
        found["passes"].append(record.epochs[-1]["forward"])
        found["seconds"].append(record.epochs[-1]["seconds"])
        if arm == "preset" and isinstance(configuration(given, method, arm, seed).selection, TrainingSelection):
            first_candidate = read_run(directory(given, method, arm, seed)).candidates[0]
            derived = sgenas.Genotype.from_dict(first_candidate["architecture"])
            found["by_alphas"].append(table.query(derived)["cifar10"])
        first = run_of(given, method, "first-order", seed) if method != "-" else None
        if first:
            limit = first.epochs[-1]["forward"]
            within = [each["tabulated_cifar10"] for each in record.epochs if each["forward"] <= limit]
            found["at_equal_passes"].append(within[-1] if within else None)
        same = run_of(given, method, reference, seed) if method != "-" else None
        if same:
            found["differences"].append(accuracies(record, table)["cifar10"] - accuracies(same, table)["cifar10"])
    text = f"{method:12}{arm:21}{spreads(found)}  at equal passes "
    # an epoch may take more passes than all of first order
    known = [value for value in found["at_equal_passes"] if value is not None]
    text += mean_text(known) if len(known) == len(found["at_equal_passes"]) else "less than an epoch"
    if arm != reference and len(found["differences"]) > 1:
        found["interval"] = interval(found["differences"])
        text += f"  minus {reference} {difference_text(found['differences'])}"
    if found["by_alphas"]:
        text += f"  by the alphas alone {mean_text(found['by_alphas'])}"
    if found["passes"]:
        text += f"  {mean(found['passes']):.0f} passes, {mean(found['seconds']) / 60:.1f} min"
    print(text, flush=True)
    return found


def show_average(arm: str, reference: str, differences: list[list[float]]) -> None:
    """Prints what an arm gains in the mean over methods: the methods of a seed share its images."""
    if arm not in (reference, "preset") and len(differences) > 1 and len({len(each) for each in differences}) == 1:
        by_seed = [mean(each) for each in zip(*differences, strict=True)]
        print(f"{arm:21}minus {reference}, mean of {len(differences)} methods: {difference_text(by_seed)}", flush=True)


def spreads(found: dict[str, Any]) -> str:
    """Mean and deviation of the final cells on each dataset."""
    final = found["final"]
    columns = {name: [each[name] for each in final] for name in (final[0] if final else ())}
    return "  ".join(
        [f"{len(found['seeds'])} seeds", *(f"{name} {mean_text(column)}" for name, column in columns.items())]
    )


class TablePool:
    """The candidates of a selection, measured by the table in place of a supernet."""

    def __init__(self, table: AccuracyTable) -> None:
        space = sgenas.spaces.SPACES.get(table.space)().build()
        self.search = SimpleNamespace(space=space, costs=None, derive=space.derive)
        self.known: dict[Genotype, float] = {}
        self._table = table

    def __len__(self) -> int:
        return len(self.known)

    def measure(self, cell: Genotype) -> tuple[float, float]:
        self.known[cell] = self._table.query(cell)["cifar10"]
        return self.known[cell], 0.0


def from_table(given: argparse.Namespace, table: AccuracyTable, kind: str) -> dict[str, Any]:
    """The selection of a strategy by tabulated accuracy on CIFAR-10, printed as a line."""
    found: dict[str, Any] = {"method": "table", "arm": kind, "seeds": given.seeds, "final": []}
    for seed in given.seeds:
        pool: Any = TablePool(table)
        selection: Any = SELECTIONS.get(kind)()
        selection.fill(pool, generator(seed, "selection"))
        found["final"].append(table.query(max(pool.known, key=pool.known.__getitem__)))
    print(f"{'table':12}{kind:21}{spreads(found)}", flush=True)
    return found


if __name__ == "__main__":
    main()
