"""A found cell against random cells of its size: test accuracy after training from scratch for the same time.

    python benchmarks/retraining.py --cell runs/search [--minutes 6] [--seeds 0 1 2] [--jobs 2]

Each seed draws a random cell of the space of `--cell`, that of 1,000 whose network has most nearly as many parameters,
and trains both with this seed and the recipe `fast`. A training gets as many epochs as take `--minutes` on one thread
by a few timed steps of each network in turn, kept in epochs.json; its learning rate falls to the end in these
epochs. `--jobs` trainings run at a time, in processes of one thread. Those that are finished in `--out` are kept, and
interrupted ones resume. To repeat a training, delete its directory.

Prints, per dataset, mean and standard deviation of the test accuracy after the last epoch, and the mean difference
within a seed with its 95 % confidence interval (Student's t over the seeds, hence over random cells, too).
"""

import argparse
import itertools
import json
import os
import zlib
from pathlib import Path
from statistics import mean, median
from subprocess import CompletedProcess
from typing import Any

from record import CIFAR10, add_result, difference_text, finished, flags, interval, mean_text, python, run_unfinished

import sgenas
from sgenas.data import load_images
from sgenas.experiments.forecast import run_hours, timed
from sgenas.experiments.random_cells import random_cells
from sgenas.random import generator
from sgenas.report.run_record import RunRecord
from sgenas.spaces.darts_space.published import find_genotype
from sgenas.spaces.networks import network_size

DATA = {"cifar10": CIFAR10, "cifar100": CIFAR10.replace("cifar10", "cifar100")}
LAYERS = {"nasbench201": 1}
"""Space -> layers of a network for a CPU; 5 in the others."""
TIMINGS = 5
"""How often each network is timed, in turn with the others."""
IMAGES = ("train_images", "test_images", "batch_size")
CELLS = ("found", "random")
Run = tuple[str, str, int]
"""(dataset, one of CELLS, seed)."""


def main() -> None:
    given = flags(
        __doc__,
        cell={"required": True, "help": "published name, genotype, genotype file or run directory of a search"},
        data={"nargs": "+", "default": list(DATA), "choices": list(DATA)},
        minutes=6.0,
        seeds=[0, 1, 2],
        channels=8,
        layers={"type": int, "help": "[5; 1 per stage in nasbench201]"},
        train_images=5000,
        test_images=3000,
        batch_size=64,
        jobs=os.cpu_count() or 1,
        out=Path("runs/retraining"),
    )
    found = find_genotype(given.cell)
    given.layers = given.layers or LAYERS.get(found.space, 5)
    size = f"c{given.channels}l{given.layers}b{given.batch_size}i{given.train_images}t{given.test_images}"
    given.out /= f"{size}m{given.minutes:g}-{zlib.crc32(found.to_json().encode()):08x}"
    cells = {("found", seed): found for seed in given.seeds}
    for seed in given.seeds:
        sizes = {"channels": given.channels, "layers": given.layers}
        cells["random", seed] = random_cells(found, 1, generator(seed, "random cell"), **sizes)[0]
    runs: list[Run] = list(itertools.product(given.data, CELLS, given.seeds))
    runs.sort(key=lambda run: run[2])  # seed by seed, so that a study cut short has whole pairs
    configs = {run: configuration(given, run, cells[run[1:]]) for run in runs}
    epochs = chosen_epochs(given, configs)
    run_unfinished(
        runs,
        given.jobs,
        directory=lambda run: given.out / name_of(run),
        start=lambda run: start(given, run, configs[run], epochs[name_of(run)]),
        result=lambda record: f"{record.epochs[-1]['test_accuracy']:.2%}, {record.epochs[-1]['seconds']:.0f} s",
    )
    records = {run: finished(given.out / name_of(run)) for run in runs}
    tables = [summary(given, data, records) for data in given.data]
    add_result("retraining", {**vars(given), "genotype": str(found), "tables": tables})


def name_of(run: Run) -> str:
    """Name of a training and its directory."""
    return f"{run[0]}-{run[1]}-{run[2]}"


def configuration(given: argparse.Namespace, run: Run, cell: sgenas.Genotype) -> sgenas.TrainConfig:
    """The training, but for its number of epochs."""
    sizes = {name: getattr(given, name) for name in ("channels", "layers")}
    images = {f"data.{name}": getattr(given, name) for name in IMAGES}
    settings = {"seed": run[2], "threads": 1, "data.data": DATA[run[0]], **sizes, **images}
    return sgenas.TrainConfig.of_recipe("fast", cell, settings)


def chosen_epochs(given: argparse.Namespace, configs: dict[Run, sgenas.TrainConfig]) -> dict[str, int]:
    """Epochs of each training that take ``given.minutes``; what was chosen before is kept."""
    path = given.out / "epochs.json"
    kept: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = {run: config for run, config in configs.items() if name_of(run) not in kept}
    # the found cell is the same for every seed
    networks = {(run[0], config.genotype): config for run, config in missing.items()}
    images = {data: load_images(config.data, 0, test=True) for (data, _), config in networks.items()}
    minutes: dict[Any, list[float]] = {network: [] for network in networks}
    for _, (network, config) in itertools.product(range(TIMINGS), networks.items()):
        minutes[network].append(60 * run_hours(config, timed(config, images[network[0]])) / config.epochs)
    for run, config in missing.items():
        per_epoch = median(minutes[run[0], config.genotype])
        # the learning rate rises in the first epochs
        kept[name_of(run)] = max(config.warmup + 1, round(given.minutes / per_epoch))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return kept


def start(given: argparse.Namespace, run: Run, config: sgenas.TrainConfig, epochs: int) -> "CompletedProcess[str]":
    """Trains or resumes in a process of its own."""
    path = given.out / name_of(run)
    if (path / "checkpoint.safetensors").exists():
        return python("-m", "sgenas", "resume", path, check=False)
    genotype = path.with_suffix(".json")
    genotype.write_text(config.genotype.to_json(), encoding="utf-8")
    chosen = {name: getattr(given, name) for name in ("channels", "layers", *IMAGES)}
    chosen |= {"data": config.data.data, "genotype": genotype, "epochs": epochs, "seed": run[2], "out": path}
    settings = [text for name, value in chosen.items() for text in (f"--{name.replace('_', '-')}", value)]
    fixed = ("--recipe", "fast", "--threads", 1, "--overwrite")
    return python("-m", "sgenas", "train", *fixed, *settings, check=False)


def summary(given: argparse.Namespace, data: str, records: dict[Run, RunRecord | None]) -> dict[str, Any]:
    """Figures on a dataset, printed as a table; of seeds whose trainings are both finished."""
    seeds = [seed for seed in given.seeds if all(records[data, cell, seed] for cell in CELLS)]
    found: dict[str, Any] = {"data": data, "seeds": seeds}
    print(f"\n{data:10}{'parameters':>22}{'million mult.-adds':>22}{'epochs':>12}{'seconds':>16}{'top-1, %':>18}")
    for cell in CELLS if seeds else ():
        rows: dict[str, list[float]] = {}
        for seed in seeds:
            record = records[data, cell, seed]
            assert record is not None
            config = sgenas.TrainConfig.from_dict(record.config)
            classes = len(record.environment["classes"])
            sizes = {"channels": config.channels, "layers": config.layers}
            size = network_size(config.genotype, num_classes=classes, **sizes)
            last = record.epochs[-1]
            figures = {"params": size.params, "macs": size.macs, "epochs": config.epochs, "seconds": last["seconds"]}
            for name, value in (figures | {"top1": 100 * last["test_accuracy"]}).items():
                rows.setdefault(name, []).append(value)
        found[cell] = rows
        texts = [mean_text(rows["params"], 0), mean_text([value / 1e6 for value in rows["macs"]], 2)]
        texts += [mean_text(rows["epochs"], 0), mean_text(rows["seconds"], 0), mean_text(rows["top1"], 2)]
        widths = (22, 22, 12, 16, 18)
        print(f"{cell:10}" + "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True)))
    if seeds:
        differences = [ours - theirs for ours, theirs in zip(*(found[cell]["top1"] for cell in CELLS), strict=True)]
        found["difference"] = mean(differences)
        if len(seeds) > 1:
            found["interval"] = list(interval(differences))
        print(f"found - random: {difference_text(differences)} points ({len(seeds)} seeds)", flush=True)
    return found


if __name__ == "__main__":
    main()
