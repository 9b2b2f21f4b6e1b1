"""Whether a search costs what `sgenas plan` predicts: predicted over measured passes, seconds and memory.

    python benchmarks/plan_check.py [--data digits] [--channels 8] [--layers 3] [--batch-size 64] [--epochs 2]

Each row of SETTINGS is planned and then searched, in processes of their own, `--repeats` times in turn. What was
measured is the last row of metrics.jsonl. Passes must be equal; of the other ratios, median and extremes are shown.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from record import add_result, flags, python, spread

SGE = ("--estimator", "sge", "--directions")
SETTINGS: dict[str, tuple[str, ...]] = {
    "first-order": ("--estimator", "first-order"),
    "finite-difference": ("--estimator", "finite-difference"),
    "sge, Q = 4": (*SGE, "4"),
    "sge, Q = 10": (*SGE, "10"),
    "sge, Q = 10, alphas every 5": (*SGE, "10", "--alpha-every", "5"),
    "sge, Q = 4, N = 2": (*SGE, "4", "--inner-steps", "2"),
    "sge, Q = 4, separate weights": (*SGE, "4", "--trajectory-lr", "0.01"),
}
QUANTITIES = ("forward", "backward", "seconds", "peak_memory_bytes")


def main() -> None:
    given = flags(
        __doc__,
        data="digits",
        train_images=int,
        method="darts",
        channels=8,
        layers=3,
        batch_size=64,
        epochs=2,
        settings={"nargs": "+", "default": list(SETTINGS), "choices": list(SETTINGS)},
        repeats=5,
        device="cpu",
    )
    pairs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.settings}
    for repeat in range(given.repeats):
        for name, found in pairs.items():
            found.append(predicted_and_measured(given, SETTINGS[name]))
            planned, taken = (found[-1][side]["seconds"] for side in ("plan", "run"))
            print(f"{repeat + 1}: {name}: {planned:.1f} s planned, {taken:.1f} s taken", flush=True)
    print(f"\n{'predicted over measured':30}" + "".join(f"{name:>24}" for name in QUANTITIES))
    rows = {}
    for name, found in pairs.items():
        ratios = {key: spread([each["plan"][key] / each["run"][key] for each in found]) for key in QUANTITIES}
        rows[name] = {"pairs": found, "ratios": ratios}
        texts = [f"{each['median']:.4g} ({each['min']:.4g}-{each['max']:.4g})" for each in ratios.values()]
        print(f"{name:30}" + "".join(f"{text:>24}" for text in texts), flush=True)
    for key in QUANTITIES:
        errors = [abs(each["plan"][key] / each["run"][key] - 1) for found in pairs.values() for each in found]
        print(f"{key}: off by {statistics.median(errors):.1%} in the median, by {max(errors):.1%} at most")
    add_result("plan_check", vars(given) | {"rows": rows}, device=given.device)


def predicted_and_measured(given: argparse.Namespace, settings: tuple[str, ...]) -> dict[str, Any]:
    """The plan's row, and the last row of the search's log."""
    chosen = [*settings, "--threads", given.threads]
    for name in ("data", "method", "device", "channels", "layers", "batch_size", "epochs", "train_images"):
        value = getattr(given, name)
        if value is not None:
            chosen += [f"--{name.replace('_', '-')}", value]
    plan = json.loads(python("-m", "sgenas", "plan", *chosen, "--json", threads=given.threads).stdout)
    with tempfile.TemporaryDirectory() as folder:
        python("-m", "sgenas", "search", *chosen, "--out", f"{folder}/run", threads=given.threads)
        run = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {"plan": plan["rows"][0], "run": {name: run[name] for name in (*QUANTITIES, "step")}}


if __name__ == "__main__":
    main()
