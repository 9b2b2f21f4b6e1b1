"""The paper's claim, measured: which estimator of the hypergradient is closest to the truth, at what cost?

    python benchmarks/evidence.py [FOLDER_WITH_CIFAR10_PARQUET] [--studies hard smooth ...] [--batches 5] ...

Each study is a run of `sgenas lab` on DARTS' supernet and CIFAR-10, in a folder of its own under `--out`: a
study that was cut goes on, with more `--batches` it measures the new ones alone. Studies: see STUDIES. Adds
a JSON line with the tables' rows of each study to benchmarks/results/evidence.jsonl; docs/evidence.md says
what follows from them.
"""

import argparse
import sys
from pathlib import Path

import torch
from record import SHARED_DATA, add_result

from sgenas.cli import main as sgenas
from sgenas.report.lab_record import read_lab

BASE = [
    *("--problem", "darts", "--channels", "4", "--layers", "3", "--walk-batch-size", "64"),
    # float64 has no fast convolutions on a CPU; that float32 is enough, the smooth network shows
    *("--truth-dtype", "float32"),
]
SMOOTH = ["--activation", "silu", "--pooling", "smooth"]
ALL = [
    *("first-order", "second-order", "unrolled", "neumann:k=5", "sge:mu=0.01", "sge:mu=0.1"),
    *("sge:q=4,mu=0.1,variate", "sge:mu=0.1,least-squares", "sge:q=4,mu=0.1,variate,least-squares"),
]
FEW = ["first-order", "second-order", "unrolled", "unrolled:last=5", "sge:mu=0.1"]
MOMENTS = ["--moments", "0", "60", "300", "--draws", "2"]
SHORT = [
    *(*MOMENTS, "--inner-steps", "1", "5", "--truth-directions", "2", "--truth-steps", "0.1"),
    *("--estimators", *ALL),
]
LONG = [*MOMENTS, "--inner-steps", "20", "--truth-directions", "0", "--estimators", *FEW]
AXIS = [
    *("--moments", "60", "--inner-steps", "1", "--draws", "3", "--truth-directions", "0"),
    *("--estimators", "first-order", "second-order", "sge", "sge:variate"),
]
STUDIES = {
    "hard-64": [
        *(*MOMENTS, "--inner-steps", "1", "--batch-sizes", "64"),
        *("--truth-directions", "2", "--truth-steps", "0.1", "--estimators", *ALL, "evolution:mu=0.1"),
    ],
    "hard": SHORT,
    "smooth": [*SMOOTH, *SHORT],
    "hard-20": LONG,
    "smooth-20": [*SMOOTH, *LONG],
    "batch-size": [*AXIS, "--smoothings", "0.1", "--batch-sizes", "16", "64", "256"],
    "inner-lr": [*AXIS, "--smoothings", "0.1", "--inner-lrs", "0.005", "0.025", "0.1"],
    "smoothing": [*AXIS, "--smoothings", "0.001", "0.01", "0.1", "1"],
    "directions": [*AXIS, "--smoothings", "0.1", "--directions", "4", "10", "40"],
}
"""name -> flags of `sgenas lab`: hard is the published network with its ReLU and max pooling. Each draw of
batches goes through all conditions before the next, so that a study that was cut has all of them."""


def main() -> None:
    """Runs the studies; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description="errors and costs of hypergradient estimators on DARTS' supernet"
    )
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED_DATA)
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.studies:
        folder, flags = arguments.out / name, STUDIES[name]
        size = [] if "--batch-sizes" in flags else ["--batch-sizes", str(arguments.batch_size)]
        command = ["lab", *BASE, *flags, *size]
        command += ["--data", f"parquet:{arguments.folder}", "--batches", str(arguments.batches)]
        code = sgenas([*command, "--out", str(folder)])
        if code:
            sys.exit(code)
        found = read_lab(folder)
        rows = {key: found[key] for key in ("settings", "facts", "truth_rows", "rows")}
        add_result("evidence", {"study": name, "threads": arguments.threads, "flags": flags, **rows})
        print((folder / "lab.md").read_text())


if __name__ == "__main__":
    main()
