"""A thousand runs: seconds to list them, to report on them, and to continue a table of them.

    python benchmarks/many_runs.py --out /tmp/many [--runs 1000]

Makes OUT/runs, copies of a real tiny search with other settings, seeds and figures, and OUT/grid, a `table1` of as
many jobs, of which one was really run and copied. What all copies have in common (checkpoints, pictures) are hard
links. Then it runs the commands, each in a process of its own. A directory that exists is used again.
"""

import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from record import add_result, flags, python

from sgenas.experiments.grid import GridSettings, extend

SEARCH = (
    *("--data", "digits", "--train-images", "60", "--batch-size", "10", "--channels", "2", "--layers", "3"),
    *("--nodes", "2", "--epochs", "4", "--estimator", "first-order", "--log-every", "1", "--device", "cpu"),
)
CHANGED = ("config.json", "metrics.jsonl", "outcome.json", "genotype.json")


def command(*arguments: str) -> dict[str, float]:
    """Runs ``sgenas``; its wall-clock and processor seconds, and its exit code."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = python("-m", "sgenas", *arguments, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "exit_code": done.returncode}


def copy(source: Path, target: Path) -> None:
    """Copies a directory: files that will be changed are copied, the others hard links."""

    def link(old: str, new: str) -> None:
        (shutil.copy2 if Path(old).name in CHANGED else os.link)(old, new)

    shutil.copytree(source, target, copy_function=link)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON document."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=1))


def make_runs(out: Path, count: int) -> None:
    """OUT/runs: learning rates of the alphas with 10 seeds each."""

    def set_settings(seed: int, lr: float, document: dict[str, Any]) -> None:
        document["config"]["seed"] = seed
        document["config"]["arch_optimizer"]["lr"] = lr

    command("search", *SEARCH, "--out", str(out / "whole"))
    draw = random.Random(0)
    for number in range(count):
        group, seed = divmod(number, 10)
        run = out / "runs" / f"run-{number:04}"
        copy(out / "whole", run)
        rewrite(run / "config.json", partial(set_settings, seed, 3e-4 * (1 + group)))
        shift = 0.2 * draw.random()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if "val_accuracy" in row:
                row["val_accuracy"] = min(1.0, row["val_accuracy"] + shift)
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def make_grid(out: Path, count: int) -> None:
    """OUT/grid: a table whose jobs are all done."""
    asked = GridSettings("smoke", seeds=tuple(range(-(-count // 2))), methods=("darts",))
    grid, jobs = extend(out / "grid", asked, ("now", "benchmarks/many_runs.py"))
    grid.save()
    command("table1", "--out", str(out / "grid"), "--job", jobs[0].name)
    draw = random.Random(0)
    for job in jobs[1:]:
        copy(jobs[0].path, job.path)
        rewrite(job.search_dir / "config.json", partial(dict.update, config=job.search.to_dict()))
        found = {"test_accuracy": 0.5 * draw.random()}
        rewrite(job.path / "outcome.json", lambda outcome, found=found: outcome["figures"].update(found))  # type: ignore[misc]


def main() -> None:
    given = flags(__doc__, out={"type": Path, "required": True}, runs=1000)
    out, grid = given.out, str(given.out / "grid")
    if not out.exists():
        make_runs(out, given.runs)
        make_grid(out, given.runs)
    paths = [str(path) for path in sorted((out / "runs").iterdir())]
    found = {
        "nothing": command("--version"),
        "status": command("table1", "--out", grid, "--status"),
        "only tables": command("table1", "--out", grid, "--only-tables"),
        "continue": command("table1", "--out", grid),
        "report": command("report", *paths, "--out", str(out / "report.html")),
    }
    for name, figures in found.items():
        print(f"{name:12} {figures}")
    size = (out / "report.html").stat().st_size
    add_result("many_runs", {"runs": given.runs, "commands": found, "report_bytes": size})


if __name__ == "__main__":
    main()
