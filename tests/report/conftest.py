"""Run directories made by hand, complete enough for every panel and table of the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgenas.spaces.genotype import DARTS_OPERATIONS, Cell, Edge, Genotype

Make = Callable[..., Path]
EDGES = [(source, target) for target in range(2, 6) for source in range(target)]
CHOICES = {"block.0": ("conv3", "conv5", "skip"), "act": ("relu", "gelu")}


def _cell(*pairs: tuple[str, int]) -> Cell:
    """A cell in the form of DARTS: two (operation, source) per node, nodes 2 to 5."""
    edges = tuple(Edge(source, 2 + index // 2, operation) for index, (operation, source) in enumerate(pairs))
    return Cell(edges, (2, 3, 4, 5))


@pytest.fixture
def genotype() -> Genotype:
    """The cells published as DARTS_V2."""
    sep, skip, pool, dil = "sep_conv_3x3", "skip_connect", "max_pool_3x3", "dil_conv_3x3"
    normal = _cell(*((sep, 0), (sep, 1), (sep, 0), (sep, 1)), *((sep, 1), (skip, 0), (skip, 0), (dil, 2)))
    reduce = _cell(*((pool, 0), (pool, 1), (skip, 2), (pool, 1)), *((pool, 0), (skip, 2), (skip, 2), (pool, 1)))
    return Genotype("darts", (("normal", normal), ("reduce", reduce)))


def write_head(path: Path, config: Any, environment: Any, kind: str = "search", version: int = 2) -> None:
    head = {"format": "sgenas-run", "version": version, "kind": kind}
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(head | {"config": config, "environment": environment}))


@pytest.fixture
def make_run(tmp_path: Path, genotype: Genotype) -> Make:
    """make_run(name, epochs, config, environment) writes the directory of a search for cells."""

    def make(name: str = "run", epochs: int = 3, config: Any = None, environment: Any = None) -> Path:
        path = tmp_path / name
        if config is None:
            config = {
                "method": "darts",
                "data": {"name": "cifar10", "batch_size": 64},
                "estimator": {"name": "sge", "num_directions": 10, "smoothing": 0.01},
            }
        write_head(path, config, environment or {"git_commit": None, "classes": list("abcdefghij")})
        (path / "metrics.jsonl").write_text("".join(_metrics(epochs, genotype)), encoding="utf-8")
        if epochs:
            np.savez(path / "alphas.npz", **_alphas(epochs))  # type: ignore[arg-type]
            (path / "genotype.json").write_text(genotype.to_json(), encoding="utf-8")
        return path

    return make


@pytest.fixture
def module_run(tmp_path: Path) -> Path:
    """The directory of a search in a module after two epochs: block.0 is conv5 (0.5), act is gelu (0.52)."""
    path = tmp_path / "module"
    write_head(path, {"method": "darts"}, {})
    mixing = {"block.0": [0.2, 0.5, 0.3], "act": [0.48, 0.52]}
    chosen = {"block.0": "conv5", "act": "gelu"}
    arrays: dict[str, Any] = {"epoch": np.arange(3)}
    for name, options in CHOICES.items():
        equal = np.full(len(options), 1 / len(options))
        arrays |= {f"{name}_mixing": np.stack([equal, equal, mixing[name]])}
        arrays |= {f"{name}_options": np.array(options), name: np.zeros((3, len(options)))}
    np.savez(path / "alphas.npz", **arrays)
    (path / "choices.json").write_text(json.dumps(chosen))
    rows = [
        {"kind": "epoch", "epoch": epoch, "step": 5 * epoch + 5, "inner_loss": 1.0, "architecture": chosen}
        for epoch in range(2)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _metrics(epochs: int, genotype: Genotype) -> list[str]:
    lines = []
    for epoch in range(epochs):
        for step in range(10 * epoch + 1, 10 * epoch + 11):
            row: dict[str, Any] = {"kind": "step", "epoch": epoch, "step": step}
            row |= {"inner_loss": 2.3 - step / 50}
            if epoch > 0:
                row |= {"outer_loss": 2.4 - step / 50, "direct_norm": 0.02, "indirect_norm": 0.001 * step}
            lines.append(json.dumps(row | {"lr": 0.025, "seconds": 0.5 * step}) + "\n")
        row = {
            "kind": "epoch",
            "epoch": epoch,
            "step": 10 * epoch + 10,
            "inner_loss": 2.2 - 0.2 * epoch,
            "outer_loss": 2.3 - 0.2 * epoch if epoch > 0 else None,
            "val_loss": 2.1,
            "val_accuracy": 0.25 + 0.125 * epoch,
            "seconds": 5.0 * (epoch + 1),
            "forward": 1200 * (epoch + 1),
            "backward": 300 * (epoch + 1),
            "images": 12800 * (epoch + 1),
            "architecture": genotype.to_dict(),
        }
        lines.append(json.dumps(row) + "\n")
    return lines


def _alphas(epochs: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "epoch": np.arange(epochs + 1),
        "edges": np.array(EDGES),
    }
    for name in ("normal", "reduce"):
        raw = 0.3 * rng.standard_normal((epochs + 1, len(EDGES), len(DARTS_OPERATIONS)))
        arrays |= {name: raw, f"{name}_options": np.array(DARTS_OPERATIONS)}
        arrays[f"{name}_mixing"] = np.exp(raw) / np.exp(raw).sum(axis=-1, keepdims=True)
    return arrays
