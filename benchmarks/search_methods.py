"""Every method with every estimator: small searches on CIFAR-10, one table.

    python benchmarks/search_methods.py [--train-images 1000] [--epochs 3] [--methods darts ...] ...

Each method has its own settings, except those that a search of minutes can't have: batch size, epochs, warm-up. All
use the same seed, images and number of steps, so the costs differ. Seconds per step are the median over the alpha
steps of the search, weights included.
"""

import argparse
import statistics
from typing import Any

from record import CIFAR10, StepTimes, add_result, flags

import sgenas
from sgenas.methods import METHODS

ESTIMATORS = ("first-order", "finite-difference", "sge")


def main() -> None:
    methods = [name for name in METHODS if "darts" in METHODS.get(name).spaces]
    given = flags(
        __doc__,
        data=CIFAR10,
        methods={"nargs": "+", "default": methods, "choices": methods},
        estimators={"nargs": "+", "default": list(ESTIMATORS), "choices": list(ESTIMATORS)},
        train_images=1000,
        channels=8,
        layers=3,
        batch_size=64,
        epochs=3,
        warmup_epochs=1,
        seed=0,
        device="auto",
    )
    rows = []
    print(f"{'method':12}{'estimator':20}{'supernet %':>11}{'cell %':>8}{'s/step':>8}  operations")
    for method in given.methods:
        for estimator in given.estimators:
            rows.append(row := measure(given, method, estimator))
            print(
                f"{method:12}{estimator:20}{100 * row['val_accuracy']:11.1f}{100 * row['derived_accuracy']:8.1f}"
                f"{row['seconds_per_step']:8.2f}  {row['operations']}",
                flush=True,
            )
    add_result("search_methods", {**vars(given), "rows": rows})


def measure(given: argparse.Namespace, method: str, estimator: str) -> dict[str, Any]:
    """One search; the accuracies are of the supernet and, with its weights, of the derived cell."""
    own = {name: getattr(given, name) for name in ("epochs", "warmup_epochs", "seed", "device", "threads")}
    own |= {f"data.{name}": getattr(given, name) for name in ("data", "train_images", "batch_size")}
    own |= {"space.channels": given.channels, "space.layers": given.layers, "estimator.name": estimator}
    steps = given.train_images // 2 // given.batch_size
    times = StepTimes(skip=given.warmup_epochs * steps + 1)
    result = sgenas.SearchConfig.of_method(method, own).run(callbacks=[times], progress=False)
    last, cells = result.history[-1], [cell for _, cell in result.genotype.cells]
    names = [edge.operation for cell in cells for edge in cell.edges]
    return {
        "method": method,
        "estimator": estimator,
        "val_accuracy": last["val_accuracy"],
        "derived_accuracy": last["derived_accuracy"],
        "seconds_per_step": statistics.median(times.seconds),
        "seconds": last["seconds"],
        "operations": {kind: sum(kind in name for name in names) for kind in ("conv", "pool", "skip")},
        "genotype": result.genotype.to_dict(),
    }


if __name__ == "__main__":
    main()
