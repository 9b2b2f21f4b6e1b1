"""Alphas and metrics after 20 steps of every method with every estimator, at a tiny size, on one thread.

`--out FILE` records them; `--compare FILE` computes them again and prints the largest difference to those in
FILE, relative to the largest number of its kind. Used to check that a change of structure changed no number:

    python benchmarks/same_numbers.py --out benchmarks/results/same-numbers.json
    python benchmarks/same_numbers.py --compare benchmarks/results/same-numbers.json
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import machine
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas import bilevel
from sgenas.bilevel import SGE
from sgenas.engine import (
    AlphaSettings,
    DataSettings,
    EstimatorSettings,
    SearchConfig,
    SpaceSettings,
    WeightSettings,
    run_search,
)
from sgenas.methods import METHODS

STEPS, BATCH = 20, 8
MEASURED = ("seconds", "device_seconds", "peak_memory_bytes", "kind")

ESTIMATORS: dict[str, dict[str, Any]] = {
    "first-order": {"estimator": "first-order"},
    "finite-difference": {"estimator": "second-order"},
    "sge": {"estimator": "sge", "directions": 4},
    "sge-sequential": {"estimator": "sge", "directions": 4, "computation": "streamed"},
    "sge-two-steps": {"estimator": "sge", "directions": 4, "inner_steps": 2},
    "sge-orthogonal": {"estimator": "sge", "directions": 4, "direction_kind": "orthogonal"},
    "sge-antithetic": {"estimator": "sge", "directions": 4, "direction_kind": "antithetic"},
    "sge-control-variate": {"estimator": "sge", "directions": 4, "control_variate": "finite-difference"},
    "sge-least-squares": {"estimator": "sge", "directions": 4, "combine": "least-squares"},
    "sge-auto-smoothing": {"estimator": "sge", "directions": 2, "smoothing": "auto"},
    "unrolled": {"estimator": "unrolled", "inner_steps": 2},
    "neumann": {"estimator": "neumann", "products": 2},
    "conjugate-gradient": {"estimator": "conjugate-gradient", "products": 2},
    "evolution": {"estimator": "evolution", "directions": 4},
}


def cell_search(method: str, space: str, estimator: dict[str, Any], weights: WeightSettings) -> dict[str, Any]:
    sizes = {"space": space, "channels": 8}
    sizes |= {"layers": 3, "nodes": 1} if space == "darts" else {"cells": 1}
    steps = estimator.get("inner_steps", 1)
    config = SearchConfig(
        method=method,
        epochs=1,
        device="cpu",
        log_every=1,
        data=DataSettings(data="digits", train_images=2 * STEPS * BATCH * steps, batch_size=BATCH),
        space=SpaceSettings(**sizes),
        estimator=EstimatorSettings(**estimator),
        alphas=AlphaSettings(alpha_lr=0.01),
        weights=weights,
    )
    with tempfile.TemporaryDirectory() as folder:
        run_search(config, Path(folder) / "run")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        arrays = np.load(Path(folder) / "run" / "alphas.npz")
        tables = {kind: arrays[kind][-1].tolist() for kind in ("normal", "reduce", "cell") if kind in arrays}
    rows = [json.loads(line) for line in lines]
    names = ("inner_loss", "outer_loss", "direct_norm", "indirect_norm", "weight_grad_norm")
    steps_of = {name: [row[name] for row in rows if row["kind"] == "step"] for name in names}
    last = rows[-1]
    return {"alphas": tables, **steps_of, "val_loss": last["val_loss"], "val_accuracy": last["val_accuracy"]}


def module_search(method: str, estimator: Any, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS * BATCH * steps, 5, generator=draw)
    data = TensorDataset(x, x[:, 0] * x[:, 1])
    choice = sgenas.Choice({"silu": nn.SiLU(), "tanh": nn.Tanh(), "none": nn.Identity()}, name="activation")
    width = sgenas.WidthChoice([4, 16], name="width", dim=-1)
    model = nn.Sequential(nn.Linear(5, 16), choice, width, nn.Linear(16, 1), nn.Flatten(0))

    def loss(model: Any, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    found = sgenas.search(
        sgenas.ModuleSpace(model), data, data, loss,
        method=method, estimator=estimator, epochs=1, batch_size=BATCH, inner_steps=steps, progress=False,
    )  # fmt: skip
    keys = ("inner_loss", "outer_loss", "direct_norm", "indirect_norm")
    row = {name: found.history[-1][name] for name in keys}
    weights = sum(float(tensor.double().square().sum()) for tensor in found.weights.values())
    return {"alphas": {name: alpha.tolist() for name, alpha in found.alphas.items()}, "weights": weights, **row}


def record() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in METHODS:
        for space in ("darts", "nasbench201"):
            for name, estimator in ESTIMATORS.items():
                if space == "nasbench201" and name.startswith("sge-"):
                    continue
                key = f"{method}/{space}/{name}"
                found[key] = cell_search(method, space, estimator, WeightSettings())
                print(key, found[key]["val_loss"], flush=True)
    separate = WeightSettings(weights="separate")
    found["darts/darts/sge/separate"] = cell_search("darts", "darts", ESTIMATORS["sge"], separate)
    modules: dict[str, tuple[Any, int]] = {
        "first-order": (bilevel.FirstOrder(), 1),
        "finite-difference": (bilevel.FiniteDifference(), 1),
        "sge": (SGE(num_directions=4), 1),
        "unrolled": (bilevel.Unrolled(), 2),
        "neumann": (bilevel.Neumann(2), 1),
        "conjugate-gradient": (bilevel.ConjugateGradient(2), 1),
        "evolution": (bilevel.EvolutionStrategies(4), 1),
    }
    for method, row in METHODS.items():
        if row.relaxation is not None:
            for name, (estimator, steps) in modules.items():
                found[f"{method}/module/{name}"] = module_search(method, estimator, steps)
    return found


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two lists of numbers, relative to the largest of them."""
    first, second = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (ours, theirs))
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(first - second).max() / max(np.abs(second).max(), 1e-30))


def compare(found: dict[str, Any], before: dict[str, Any]) -> None:
    for key, run in before.items():
        if key not in found:
            print(f"{key:50} not computed any more")
            continue
        parts = {name: difference(run[name], found[key][name]) for name in run if name != "alphas"}
        for kind, table in run["alphas"].items():
            parts[f"alphas {kind}"] = difference(table, found[key]["alphas"][kind])
        name = max(parts, key=parts.__getitem__)
        print(f"{key:50} {'equal' if parts[name] == 0 else f'{parts[name]:.1e} ({name})'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = record()
    if arguments.out is not None:
        head = {"machine": machine("cpu"), "runs": found}
        arguments.out.write_text(json.dumps(head) + "\n", encoding="utf-8")
    if arguments.compare is not None:
        compare(found, json.loads(arguments.compare.read_text(encoding="utf-8"))["runs"])


if __name__ == "__main__":
    main()
