"""A thousand runs: how long it takes to list them, to report on them, and to go on with a table of them.

    python benchmarks/many_runs.py --out /tmp/many

makes OUT/runs, 1,000 run folders: a real tiny search and one that was stopped, copied with other settings,
seeds and figures; and OUT/grid, a `table1` of 125 seeds and 8 rows, of which one place was really run and
copied. What all copies have in common (checkpoints, pictures) are hard links. Then it runs the commands, each
in a process of its own, and adds wall-clock and processor seconds to results/many_runs.jsonl. A folder that
is there is used again.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from record import add_result

RUNS = 1000
SEEDS = 125
SEARCH = [
    *("--data", "digits", "--train-images", "60", "--batch-size", "10", "--channels", "2", "--layers", "3"),
    *("--nodes", "2", "--epochs", "4", "--estimator", "first-order", "--log-every", "1", "--device", "cpu"),
]
STOPPED_EVERY = 10
"""Every tenth run is one that was stopped."""
CHANGED = ("config.json", "metrics.jsonl", "outcome.json", "genotype.json")


def command(*arguments: str) -> dict[str, float]:
    """Runs `sgenas` with these arguments; its wall-clock and processor seconds, and its exit code."""
    # one thread: what is measured is reading and writing, on a machine that may be shared
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    words = [sys.executable, "-m", "sgenas", *arguments]
    ended = subprocess.run(words, capture_output=True, check=False, env=environment)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode not in (0, 1):
        raise RuntimeError(ended.stderr.decode())
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "exit_code": ended.returncode}


def copy(source: Path, target: Path) -> None:
    """A run folder like `source`; what a copy is to change is a file of its own, the rest hard links."""

    def link(old: str, new: str) -> None:
        (shutil.copy2 if Path(old).name in CHANGED else os.link)(old, new)

    shutil.copytree(source, target, copy_function=link)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON document."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=1))


def make_runs(out: Path) -> None:
    """OUT/runs: 100 learning rates of the alphas with 10 seeds each."""
    whole, stopped = out / "whole", out / "stopped"
    command("search", *SEARCH, "--out", str(whole))
    begun = [sys.executable, "-m", "sgenas", "search", *SEARCH, "--epochs", "1000", "--out", str(stopped)]
    process = subprocess.Popen(begun, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (stopped / "genotype.json").exists():
        time.sleep(0.05)
    process.terminate()
    process.wait()
    draw = random.Random(0)
    for number in range(RUNS):
        group, seed = divmod(number, 10)
        folder = out / "runs" / f"run-{number:04}"
        copy(stopped if number % STOPPED_EVERY == 0 else whole, folder)
        rewrite(folder / "config.json", partial(set_settings, seed, 3e-4 * (1 + group)))
        shift = 0.2 * draw.random()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if "val_accuracy" in row:
                row["val_accuracy"] = min(1.0, row["val_accuracy"] + shift)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def make_grid(out: Path) -> None:
    """OUT/grid: a table of 1,000 places that are done."""
    from sgenas.experiments.grid import load_grid

    grid = out / "grid"
    seeds = ",".join(map(str, range(SEEDS)))
    wanted = ["table1", "--preset", "smoke", "--seeds", seeds, "--out", str(grid)]
    # writes the plan, runs nothing
    command(*wanted, "--submit", "slurm")
    places = load_grid(grid).places
    first = places[0]
    command("table1", "--out", str(grid), "--place", first.name)
    draw = random.Random(0)
    for place in places[1:]:
        copy(first.folder, place.folder)
        settings, accuracy = place.search.to_dict(), 0.5 * draw.random()
        rewrite(place.search_folder / "config.json", partial(dict.update, config=settings))
        rewrite(place.folder / "outcome.json", partial(set_accuracy, accuracy))


def set_settings(seed: int, alpha_lr: float, document: dict[str, Any]) -> None:
    """In a config.json; the one that was stopped was to be longer."""
    document["config"] |= {"seed": seed, "epochs": 4}
    document["config"]["alphas"]["alpha_lr"] = alpha_lr


def set_accuracy(accuracy: float, outcome: dict[str, Any]) -> None:
    """In an outcome.json."""
    outcome["figures"]["test_accuracy"] = accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--what", default="", help="a word on the state of the code, for the record")
    parser.add_argument("--only-make", action="store_true", help="make the folders and measure nothing")
    given = parser.parse_args()
    out = given.out
    if not out.exists():
        out.mkdir(parents=True)
        make_runs(out)
        make_grid(out)
    if given.only_make:
        return
    grid = str(out / "grid")
    paths = [str(path) for path in sorted((out / "runs").iterdir())]
    page = out / "report.html"
    found = {
        "nothing": command("--version"),
        "status": command("table1", "--out", grid, "--status"),
        "only tables": command("table1", "--out", grid, "--only-tables"),
        "go on": command("table1", "--out", grid),
        "report": command("report", *paths, "--out", str(page)),
    }
    add_result(
        "many_runs",
        {
            "what": given.what,
            "runs": RUNS,
            # wall-clock seconds say little where others compute beside
            "load_average": round(os.getloadavg()[0], 1),
            "commands": found,
            "report_bytes": page.stat().st_size,
        },
    )
    for name, figures in found.items():
        sys.stdout.write(f"{name:12} {figures}\n")


if __name__ == "__main__":
    main()
