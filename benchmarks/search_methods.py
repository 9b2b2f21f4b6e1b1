"""Every method with every estimator: small searches on CIFAR-10, one table of twelve rows.

    python benchmarks/search_methods.py [FOLDER_WITH_CIFAR10_PARQUET] [--images 1000] [--epochs 3] ...

Each method from its own settings (alpha learning rate, regulariser, derivation ...), but for those that a
search of minutes cannot have: batch size, epochs, warm-up. All from the same seed, with the same images and
the same number of steps, so not at equal cost. Steps are timed apart from the searches, in turn, each method
by itself; medians of `--repeats`, weights included. Prints the table and adds a JSON line to
benchmarks/results/search_methods.jsonl.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from record import SHARED_DATA, add_result
from search_cifar10 import ESTIMATORS, time_steps

from sgenas.engine import DataSettings, EstimatorSettings, SearchConfig, run_search
from sgenas.methods import METHODS


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="small searches on CIFAR-10 with each method")
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED_DATA)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    rows: list[dict[str, Any]] = []
    device = "cpu"
    for method in METHODS:
        configs = {name: settings(arguments, method, name) for name in ESTIMATORS}
        steps, device = time_steps(configs, arguments.repeats)
        for name, config in configs.items():
            with tempfile.TemporaryDirectory() as folder:
                result = run_search(config, folder, overwrite=True)
            last = result.epochs[-1]
            rows.append(
                {
                    "method": method,
                    "estimator": name,
                    "val_accuracy": last["val_accuracy"],
                    "derived_accuracy": last["derived_accuracy"],
                    "seconds_per_step": steps["seconds"][name]["median"],
                    "seconds": last["seconds"],
                    "genotype": result.genotype.to_dict(),
                    "cell": str(result.genotype),
                }
            )
            print(f"{method} {name}: done", flush=True)
    show(rows)
    add_result("search_methods", {**vars(arguments), "folder": None, "rows": rows}, device=device)


def settings(arguments: argparse.Namespace, method: str, estimator: str) -> SearchConfig:
    """The method's own settings, at this size."""
    config = SearchConfig.of_method(method)
    return dataclasses.replace(
        config,
        epochs=arguments.epochs,
        seed=arguments.seed,
        data=DataSettings(
            data=f"parquet:{arguments.folder}",
            train_images=arguments.images,
            batch_size=arguments.batch_size,
        ),
        space=dataclasses.replace(config.space, channels=arguments.channels, layers=arguments.layers),
        estimator=EstimatorSettings(estimator=estimator),
        alphas=dataclasses.replace(config.alphas, warmup_epochs=arguments.warmup_epochs),
    )


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table; accuracies are the supernet's and, with its weights, the derived cell's."""
    print(f"\n{'method':12}{'estimator':14}{'supernet %':>11}{'cell %':>8}{'s/step':>8}  cell")
    for row in rows:
        cells = row["cell"].splitlines()
        print(
            f"{row['method']:12}{row['estimator']:14}{100 * row['val_accuracy']:11.1f}"
            f"{100 * row['derived_accuracy']:8.1f}{row['seconds_per_step']:8.2f}  {cells[0]}"
        )
        for line in cells[1:]:
            print(f"{'':55}{line}")


if __name__ == "__main__":
    main()
