"""Alphas and metrics after 20 steps of every method with every estimator, at a tiny size, on one thread.

`--out FILE` records them; `--compare FILE` computes them again and prints the largest difference to those in
FILE, relative to the largest number of its kind. Used to check that a change of structure changed no number:

    python benchmarks/same_numbers.py --out benchmarks/results/same-numbers.json
    python benchmarks/same_numbers.py --compare benchmarks/results/same-numbers.json
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import machine
from torch import Tensor, nn

import sgenas
from sgenas.searching import loop

STEPS, BATCH = 20, 8
BEFORE = ("darts", "pc-darts", "fair-darts", "beta-darts")


def sge(**settings: Any) -> dict[str, Any]:
    fields = {"estimator.name": "sge", "estimator.num_directions": 4} | {
        f"estimator.{name}": value for name, value in settings.items()
    }
    return fields


ESTIMATORS: dict[str, dict[str, Any]] = {
    "first-order": {"estimator.name": "first-order"},
    "finite-difference": {"estimator.name": "finite-difference"},
    "sge": sge(),
    "sge-sequential": sge(computation="sequential"),
    "sge-two-steps": {**sge(), "inner_steps": 2},
    "sge-orthogonal": sge(directions="orthogonal"),
    "sge-antithetic": sge(directions="antithetic"),
    "sge-control-variate": sge(control_variate="finite-difference"),
    "sge-least-squares": sge(aggregate="least-squares"),
    "sge-auto-smoothing": {**sge(smoothing="auto"), "estimator.num_directions": 2},
    "unrolled": {"estimator.name": "unrolled", "inner_steps": 2},
    "neumann": {"estimator.name": "neumann", "estimator.max_hvps": 2},
    "conjugate-gradient": {"estimator.name": "conjugate-gradient", "estimator.max_hvps": 2},
    "evolution": {"estimator.name": "evolution-strategies", "estimator.num_directions": 4},
}


def cell_search(method: str, space: str, estimator: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    sizes = {"space.name": space, "space.channels": 8}
    sizes |= {"space.layers": 3, "space.nodes": 1} if space == "darts" else {"space.layers": 1}
    steps = estimator.get("inner_steps", 1)
    settings = {
        "epochs": 1,
        "warmup_epochs": 0,
        "device": "cpu",
        "threads": 1,
        "log_every": 1,
        "data.data": "digits",
        "data.train_images": 2 * STEPS * BATCH * steps,
        "data.batch_size": BATCH,
        "weight_optimizer.lr": 0.025,
        "lr_min": 0.001,
        "arch_optimizer.lr": 0.01,
        "arch_optimizer.betas": (0.5, 0.999),
    }
    config = sgenas.SearchConfig.of_method(method, {**settings, **sizes, **estimator, **more})
    with tempfile.TemporaryDirectory() as folder:
        config.run(Path(folder) / "run", progress=False)
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
    # a list, whose order nothing draws
    data = [(part, part[:, 0] * part[:, 1]) for part in torch.split(x, BATCH)]
    choice = sgenas.Choice({"silu": nn.SiLU(), "tanh": nn.Tanh(), "none": nn.Identity()}, name="activation")
    width = sgenas.WidthChoice([4, 16], name="width", dim=-1)
    model = nn.Sequential(nn.Linear(5, 16), choice, width, nn.Linear(16, 1), nn.Flatten(0))

    def loss(model: Any, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    found = sgenas.search(
        sgenas.ModuleSpace(model),
        data,
        data,
        loss,
        method=method,
        estimator=estimator,
        weight_optimizer=sgenas.optim.SGD(0.025, momentum=0.9, weight_decay=3e-4, grad_clip=5.0),
        arch_optimizer=sgenas.optim.Adam(0.01, betas=(0.5, 0.999), weight_decay=1e-3),
        epochs=1,
        inner_steps=steps,
        progress=False,
    )
    keys = ("inner_loss", "outer_loss", "direct_norm", "indirect_norm")
    row = {name: found.history[-1][name] for name in keys}
    weights = sum(float(tensor.double().square().sum()) for tensor in found.weights.values())
    return {"alphas": {name: alpha.tolist() for name, alpha in found.alphas.items()}, "weights": weights, **row}


def with_torch(optimizer: Any, alphas: dict[str, Tensor]) -> torch.optim.Optimizer:
    """torch's form of the default optimizer of the alphas, whose sums round otherwise than sgenas.optim's."""
    return torch.optim.Adam(
        list(alphas.values()), lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay
    )


def runs() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, what computes it) of every run."""
    for method in BEFORE:
        for space in ("darts", "nasbench201"):
            for name, estimator in ESTIMATORS.items():
                if space == "darts" or not name.startswith("sge-"):
                    yield f"{method}/{space}/{name}", partial(cell_search, method, space, estimator, {})
    separate = {"trajectory_lr": 0.01}
    yield "darts/darts/sge/separate", partial(cell_search, "darts", "darts", ESTIMATORS["sge"], separate)
    modules: dict[str, tuple[Any, int]] = {
        "first-order": (sgenas.FirstOrder(), 1),
        "finite-difference": (sgenas.FiniteDifference(), 1),
        "sge": (sgenas.SGE(num_directions=4), 1),
        "unrolled": (sgenas.Unrolled(), 2),
        "neumann": (sgenas.Neumann(2), 1),
        "conjugate-gradient": (sgenas.ConjugateGradient(2), 1),
        "evolution": (sgenas.EvolutionStrategies(4), 1),
    }
    for method in BEFORE:
        if method != "pc-darts":
            for name, (estimator, steps) in modules.items():
                yield f"{method}/module/{name}", partial(module_search, method, estimator, steps)


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two lists of numbers, relative to the largest of them."""
    first, second = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (ours, theirs))
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(first - second).max() / max(np.abs(second).max(), 1e-30))


def compared(found: dict[str, Any], before: dict[str, Any]) -> str:
    """The largest difference of a run to the one before."""
    parts = {name: difference(before[name], found[name]) for name in before if name != "alphas"}
    for kind, table in before["alphas"].items():
        parts[f"alphas {kind}"] = difference(table, found["alphas"][kind])
    name = max(parts, key=parts.__getitem__)
    return "equal" if parts[name] == 0 else f"{parts[name]:.1e} ({name})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--only", default="", help="runs whose name has this text")
    parser.add_argument(
        "--torch-adam", action="store_true", help="move the alphas with torch.optim.Adam, as the first edition did"
    )
    arguments = parser.parse_args()
    if arguments.torch_adam:
        setattr(loop, "make_arch_optimizer", with_torch)  # noqa: B010
    torch.set_num_threads(1)
    before = {} if arguments.compare is None else json.loads(arguments.compare.read_text(encoding="utf-8"))["runs"]
    found = {}
    for key, compute in runs():
        if arguments.only in key:
            found[key] = compute()
            print(f"{key:50} {compared(found[key], before[key]) if key in before else ''}", flush=True)
    if arguments.out is not None:
        head = {"environment": machine("cpu"), "runs": found}
        arguments.out.write_text(json.dumps(head) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
