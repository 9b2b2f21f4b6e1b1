"""Does a search cost what `sgenas plan` says? Predicted over measured passes, seconds and memory.

    python benchmarks/plan_check.py [--data digits] [--channels 8] [--layers 3] [--batch-size 64] [--epochs 2]

For each row of SETTINGS `sgenas plan --json` and then the search itself, both commands in processes of their
own, `--repeats` times in turn: the machine drifts, and a plan is as good as the minute that it was made in.
The search's figures are those of the last row of its metrics.jsonl. Passes must be equal; of the other ratios
the table has the median and the extremes. A set of images in parquet files is `--data parquet:FOLDER
--train-images 1000`. Adds a JSON line to benchmarks/results/plan_check.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import add_result

SETTINGS: dict[str, tuple[str, ...]] = {
    "first-order": ("--estimator", "first-order"),
    "second-order": ("--estimator", "second-order"),
    "sge, Q = 4": ("--directions", "4"),
    "sge, Q = 10": (),
    "sge, Q = 10, alphas every 5": ("--alpha-every", "5"),
    "sge, Q = 4, N = 2": ("--directions", "4", "--inner-steps", "2"),
    "sge, Q = 4, separate": ("--directions", "4", "--weights", "separate"),
}
RATIOS = ("seconds", "peak_memory_bytes")


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="predicted against measured cost of small searches")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--method", default="darts")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    pairs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.settings}
    for repeat in range(arguments.repeats):
        for name, found in pairs.items():
            found.append(predicted_and_measured(arguments, SETTINGS[name]))
            planned, taken = (found[-1][side]["seconds"] for side in ("plan", "run"))
            print(f"{repeat + 1}: {name}: {planned:.1f} s planned, {taken:.1f} s taken", flush=True)
    print(f"\n{'predicted over measured':30}{'passes':>8}{'seconds':>10}{'of':>8}{'memory':>20}{'of':>9}")
    rows = {}
    for name, found in pairs.items():
        ratios = {key: spread([each["plan"][key] / each["run"][key] for each in found]) for key in RATIOS}
        ratios |= {
            key: spread([each["plan"][key] / each["run"][key] for each in found])
            for key in ("forward", "backward")
        }
        rows[name] = {"pairs": found, "ratios": ratios}
        last = found[-1]["run"]
        seconds, memory = (ratios[key] for key in RATIOS)
        print(
            f"{name:30}{ratios['forward']['median']:8.4f}"
            f"{seconds['median']:10.2f} ({seconds['min']:.2f}-{seconds['max']:.2f})"
            f"{last['seconds']:8.1f} s{memory['median']:8.2f} ({memory['min']:.2f}-{memory['max']:.2f})"
            f"{last['peak_memory_bytes'] / 1e6:8.0f} MB",
            flush=True,
        )
    for key in RATIOS:
        errors = [abs(each["plan"][key] / each["run"][key] - 1) for found in pairs.values() for each in found]
        middle, worst = 100 * statistics.median(errors), 100 * max(errors)
        print(f"{key}: off by {middle:.0f} % in the median, by {worst:.0f} % at most")
    add_result("plan_check", vars(arguments) | {"rows": rows}, device=arguments.device)


def predicted_and_measured(arguments: argparse.Namespace, settings: tuple[str, ...]) -> dict[str, Any]:
    """What the plan says of the search, and what the search then logs."""
    flags = ["--data", arguments.data, "--method", arguments.method, "--device", arguments.device]
    for name in ("channels", "layers", "batch_size", "epochs", "train_images"):
        value = getattr(arguments, name)
        if value is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    flags += settings
    plan = json.loads(sgenas(arguments, "plan", *flags, "--json"))
    with tempfile.TemporaryDirectory() as folder:
        sgenas(arguments, "search", *flags, "--out", str(Path(folder) / "run"))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    run = json.loads(lines[-1])
    kept = ("seconds", "device_seconds", "peak_memory_bytes", "forward", "backward", "images", "step")
    return {
        "plan": plan["rows"][0],
        "constants": plan["constants"],
        "run": {name: run[name] for name in kept},
    }


def sgenas(arguments: argparse.Namespace, *command: str) -> str:
    """What the command prints, with that many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(
        [sys.executable, "-m", "sgenas", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"sgenas {' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
