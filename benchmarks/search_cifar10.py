"""The same small search on CIFAR-10 with first-order, second-order and sge: accuracy, seconds, cells.

    python benchmarks/search_cifar10.py [FOLDER_WITH_CIFAR10_PARQUET] [--images 2000] [--epochs 4] ...

Two parts in one run. Steps: one alpha step of each estimator in turn, medians of `--repeats`, weights
included; and the share of it that the data costs. Searches: each estimator once from the same seed, the same
batches and the same number of steps, so not at equal cost. Prints both tables and adds a JSON line to
benchmarks/results/search_cifar10.jsonl.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from record import SHARED_DATA, add_result, time_in_turn

from sgenas.engine import (
    AlphaSettings,
    DataSettings,
    EstimatorSettings,
    Search,
    SearchConfig,
    SpaceSettings,
    run_search,
)
from sgenas.engine.run_folder import RunFolder

ESTIMATORS = ("first-order", "second-order", "sge")


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="small searches on CIFAR-10 with each estimator")
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED_DATA)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--alpha-lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: a temporary one)")
    arguments = parser.parse_args()

    config = SearchConfig(
        epochs=arguments.epochs,
        seed=arguments.seed,
        device=arguments.device,
        data=DataSettings(
            data=f"parquet:{arguments.folder}", train_images=arguments.images, batch_size=arguments.batch_size
        ),
        space=SpaceSettings(channels=arguments.channels, layers=arguments.layers),
        alphas=AlphaSettings(alpha_lr=arguments.alpha_lr, warmup_epochs=arguments.warmup_epochs),
    )
    configs = {
        name: dataclasses.replace(config, estimator=EstimatorSettings(estimator=name)) for name in ESTIMATORS
    }
    steps, device = time_steps(configs, arguments.repeats)
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        searches = {name: search(each, out / name) for name, each in configs.items()}
    add_result(
        "search_cifar10", {"config": config.to_dict(), "steps": steps, "searches": searches}, device=device
    )


def time_steps(configs: dict[str, SearchConfig], repeats: int) -> tuple[dict[str, Any], str]:
    """Seconds of one alpha step with each estimator, and of the two batches that it takes; prints a table."""
    # steps at the alphas' and weights' start, past the warm-up in which no alpha moves
    made = {name: Search(config, RunFolder("unused")) for name, config in configs.items()}
    for each in made.values():
        each.epoch = each.config.alphas.warmup_epochs
        each.step = each.epoch * each.steps_per_epoch
        while not each.schedule.moves_alphas(each.step):
            each.step += 1
    device = str(made["sge"].device)
    seconds = time_in_turn(
        {name: each._take_step for name, each in made.items()}, repeats=repeats, device=device
    )

    def batches() -> None:
        next(made["sge"].inner_stream), next(made["sge"].outer_stream)

    data = time_in_turn({"data": batches}, repeats=repeats, device=device, counts={"data": 50})["data"]
    base = seconds["first-order"]["median"]
    print(f"\n{'one alpha step':14}{'seconds':>10}{'min':>8}{'max':>8}{'ratio':>8}{'data':>10}")
    for name, times in seconds.items():
        share = data["median"] / times["median"]
        print(
            f"{name:14}{times['median']:10.3f}{times['min']:8.3f}{times['max']:8.3f}"
            f"{times['median'] / base:8.2f}{100 * share:8.3f} %"
        )
    return {"repeats": repeats, "seconds": seconds, "data_seconds": data}, device


def search(config: SearchConfig, path: Path) -> dict[str, Any]:
    """Runs one search, prints its line and its cells, returns its figures."""
    result = run_search(config, path, overwrite=True)
    last = result.epochs[-1]
    print(
        f"\n{config.estimator.estimator}: validation accuracy {100 * last['val_accuracy']:.2f} %"
        f" (chance 10 %), loss {last['val_loss']:.4f}, {last['seconds']:.0f} s, {last['forward']} passes"
    )
    print(result.genotype, flush=True)
    return {
        "val_accuracy": [row["val_accuracy"] for row in result.epochs],
        "val_loss": [row["val_loss"] for row in result.epochs],
        "seconds": last["seconds"],
        "forward": last["forward"],
        "backward": last["backward"],
        "genotype": result.genotype.to_dict(),
    }


if __name__ == "__main__":
    main()
