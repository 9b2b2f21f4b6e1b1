"""Seconds and peak memory of a search step: this checkout against an older one of either edition, in turn.

    git worktree add ../first 1dfbeb5
    python benchmarks/step_against_commit.py --other ../first [--channels 16] [--layers 8] [--repeats 5]

Both search the DARTS space on the same random images of CIFAR's shape, each in a process of its own with its own
PYTHONPATH. After each step of its search a process waits, so that the steps of the two alternate. The first step of
each warms up. A search step is everything the loop does: batches, augmentation, the estimate, both optimizers.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ESTIMATORS = ("first-order", "finite-difference", "sge")
STEPS_PER_EPOCH = 50
"""More than any measurement takes, so that no epoch ends in it."""


# -- one process per side -------------------------------------------------------------------------------------


def second_edition(settings: dict[str, Any], images: Any, labels: Any, stop: Any) -> None:
    """A search by this checkout."""
    import sgenas
    from sgenas.data import ImageData, ImageSet

    changes = {
        "epochs": 1,
        "warmup_epochs": 0,
        "device": settings["device"],
        "threads": settings["threads"],
        "log_every": STEPS_PER_EPOCH,
        "checkpoint_every": STEPS_PER_EPOCH,
        "data.batch_size": settings["batch_size"],
        "space.channels": settings["channels"],
        "space.layers": settings["layers"],
        "space.activation": "relu",
        "estimator.name": settings["estimator"],
    }
    if settings["estimator"] == "sge":
        changes |= {"estimator.num_directions": 2, "estimator.smoothing": 0.1, "estimator.computation": "sequential"}
    found = ImageData("python:random", ImageSet(images, labels), None, tuple("0123456789"))
    config = sgenas.SearchConfig.of_method("darts", changes)
    config.run(settings["out"], images=found, stop=stop, progress=False)


def first_edition(settings: dict[str, Any], images: Any, labels: Any, stop: Any) -> None:
    """The same search by the other checkout."""
    from sgenas import engine, run_search
    from sgenas.data import ImageData, ImageSet

    sge = {"estimator": "sge", "directions": 2, "smoothing": 0.1, "computation": "streamed"}
    name = {"finite-difference": "second-order"}.get(settings["estimator"], settings["estimator"])
    config = engine.SearchConfig(
        epochs=1,
        device=settings["device"],
        log_every=STEPS_PER_EPOCH,
        checkpoint_every=STEPS_PER_EPOCH,
        data=engine.DataSettings(batch_size=settings["batch_size"], data="python:random"),
        space=engine.SpaceSettings(channels=settings["channels"], layers=settings["layers"], activation="relu"),
        estimator=engine.EstimatorSettings(**(sge if name == "sge" else {"estimator": name})),
    )
    fields: dict[str, Any] = {"name": "python:random", "train": ImageSet(images, labels), "test": None, "mirror": True}
    found = ImageData(classes=tuple("0123456789"), **fields)
    run_search(config, settings["out"], images=found, stop=stop)


def work(settings: dict[str, Any]) -> None:
    """Runs one side: a line on standard input is a step, its seconds are a line on standard output."""
    output, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(settings["threads"])
    draw = torch.Generator().manual_seed(0)
    count, side = 2 * STEPS_PER_EPOCH * settings["batch_size"], settings["size"]
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw)
    labels = torch.arange(count) % 10
    start = 0.0

    def stop() -> bool:
        nonlocal start
        if settings["device"].startswith("cuda"):
            torch.cuda.synchronize()
        print(json.dumps([time.perf_counter() - start, peak_megabytes(settings["device"])]), file=output, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        start = time.perf_counter()
        return False

    (second_edition if settings["edition"] == "second" else first_edition)(settings, images, labels, stop)


def edition_of(checkout: Path) -> str:
    """Which of the two searches the sources have."""
    return "second" if (checkout / "src/sgenas/searching").is_dir() else "first"


def peak_megabytes(device: str) -> float:
    """The most memory that this process, or its tensors on a GPU, has taken."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Side:
    """A process that takes steps of a search.

    Args:
        checkout: Its sources.
        settings: What `work` reads.
    """

    def __init__(self, checkout: Path, settings: dict[str, Any]) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(checkout.resolve() / "src"),
            "OMP_NUM_THREADS": str(settings["threads"]),
            "GOMP_SPINCOUNT": "10000",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()

    def _read(self) -> tuple[float, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a side ended with {self._process.wait()}")
        seconds, peak = json.loads(line)
        return seconds, peak

    def step(self) -> tuple[float, float]:
        """Takes a step; its seconds, and the peak memory so far in megabytes."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    if sys.argv[1] == "--work":
        work(json.loads(sys.argv[2]))
        return
    from record import ROOT, add_result, flags, spread

    given = flags(
        __doc__,
        other={"type": Path, "default": Path("/tmp/old"), "help": "an older checkout [%(default)s]"},
        channels=16,
        layers=8,
        batch_size=64,
        size=32,
        estimators={"nargs": "+", "default": list(ESTIMATORS), "choices": list(ESTIMATORS)},
        repeats=5,
        device="cpu",
    )
    rows = []
    print(f"{'':20}{'before, s':>12}{'after, s':>12}{'ratio':>8}{'before, MB':>12}{'after, MB':>12}{'ratio':>8}")
    for estimator in given.estimators:
        with tempfile.TemporaryDirectory() as folder:
            common = {name: value for name, value in vars(given).items() if name not in ("other", "estimators")}
            sides = {
                name: Side(
                    checkout,
                    common | {"estimator": estimator, "edition": edition_of(checkout), "out": f"{folder}/{name}"},
                )
                for name, checkout in (("before", given.other), ("after", ROOT))
            }
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
            for _ in range(given.repeats):
                for name, side in sides.items():
                    taken[name].append(side.step())
            for side in sides.values():
                side.close()
        seconds = {name: spread([each for each, _ in values]) for name, values in taken.items()}
        memory = {name: values[-1][1] for name, values in taken.items()}
        ratio = seconds["after"]["median"] / seconds["before"]["median"]
        rows.append({"estimator": estimator, "seconds": seconds, "peak_megabytes": memory, "ratio": ratio})
        before, after = (seconds[name]["median"] for name in ("before", "after"))
        print(
            f"{estimator:20}{before:12.3f}{after:12.3f}{ratio:8.3f}{memory['before']:12.0f}{memory['after']:12.0f}"
            f"{memory['after'] / memory['before']:8.3f}",
            flush=True,
        )
    add_result("step_against_commit", vars(given) | {"rows": rows}, device=given.device)


if __name__ == "__main__":
    main()
