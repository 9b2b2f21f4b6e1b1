"""The measurements of the evidence page: estimators on DARTS' supernet, by the hypergradient benchmark.

    python benchmarks/evidence.py [--studies hard smooth ...] [--out runs/evidence]

Each study is a directory of `benchmarks/hypergradients/run.py`; a study that was stopped continues.
"""

from pathlib import Path

from hypergradients.report import read_results
from record import CIFAR10, ROOT, add_result, flags, python

BASE = (
    *("--problem", "darts", "--space", "channels=4", "layers=3"),
    # float64 has no fast convolutions on a CPU; that float32 is enough, the smooth network shows
    *("--reference-dtype", "float32"),
)
SMOOTH = ("--space", "channels=4", "layers=3", "activation=silu", "pooling=smooth")
VARIATE = "sge:q=4,mu=0.1,control-variate=finite-difference"
ALL = (
    *("first-order", "finite-difference", "unrolled", "neumann:max-hvps=5", "sge:mu=0.01", "sge:mu=0.1"),
    *(VARIATE, "sge:mu=0.1,aggregate=least-squares", f"{VARIATE},aggregate=least-squares"),
)
FEW = ("first-order", "finite-difference", "unrolled", "unrolled:truncate=5", "sge:mu=0.1")
SAMPLES = ("--warmup-steps", "0", "60", "300", "--draws", "2")
REFERENCE = ("--reference-directions", "2", "--reference-steps", "0.1")
SHORT = (*SAMPLES, *REFERENCE, "--inner-steps", "1", "5", "--estimators", *ALL)
LONG = (*SAMPLES, "--reference-directions", "0", "--inner-steps", "20", "--estimators", *FEW)
AXIS = (
    *("--warmup-steps", "60", "--draws", "3", "--reference-directions", "0", "--inner-steps", "1"),
    *("--estimators", "first-order", "finite-difference", "sge", "sge:control-variate=finite-difference"),
)
STUDIES = {
    "hard-64": (
        *(*SAMPLES, *REFERENCE, "--inner-steps", "1", "--batch-sizes", "64"),
        *("--estimators", *ALL, "evolution-strategies:mu=0.1"),
    ),
    "hard": SHORT,
    "smooth": (*SMOOTH, *SHORT),
    "hard-20": LONG,
    "smooth-20": (*SMOOTH, *LONG),
    "batch-size": (*AXIS, "--smoothings", "0.1", "--batch-sizes", "16", "64", "256"),
    "inner-lr": (*AXIS, "--smoothings", "0.1", "--inner-lrs", "0.005", "0.025", "0.1"),
    "smoothing": (*AXIS, "--smoothings", "0.001", "0.01", "0.1", "1"),
    "directions": (*AXIS, "--smoothings", "0.1", "--directions", "4", "10", "40"),
}
"""{study: flags}; hard is the published network with ReLU and max pooling."""


def main() -> None:
    given = flags(
        __doc__,
        data=CIFAR10,
        studies={"nargs": "+", "default": list(STUDIES), "choices": list(STUDIES)},
        batch_size=16,
        batches=5,
        train_images=8000,
        out=Path("runs/evidence"),
    )
    for study in given.studies:
        chosen, out = STUDIES[study], given.out / study
        size = () if "--batch-sizes" in chosen else ("--batch-sizes", given.batch_size)
        images = ("--data", given.data, "--train-images", given.train_images, "--batches", given.batches)
        script = ROOT / "benchmarks" / "hypergradients" / "run.py"
        print(python(script, *BASE, *chosen, *size, *images, "--out", out, threads=given.threads).stdout)
        add_result("evidence", {"study": study, "threads": given.threads, "flags": chosen, **read_results(out)})


if __name__ == "__main__":
    main()
