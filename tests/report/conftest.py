"""A made-up run folder, complete enough for every panel and table of the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgenas.spaces.genotype import DARTS_OPERATIONS, Cell, Edge, Genotype


def _cell(*pairs: tuple[str, int]) -> Cell:
    """A cell in DARTS' way: two (operation, source) per node, nodes 2 to 5."""
    edges = tuple(Edge(source, 2 + index // 2, operation) for index, (operation, source) in enumerate(pairs))
    return Cell(edges, (2, 3, 4, 5))


@pytest.fixture
def genotype() -> Genotype:
    """The cells published as DARTS_V2."""
    sep, skip, pool = "sep_conv_3x3", "skip_connect", "max_pool_3x3"
    dil = "dil_conv_3x3"
    # fmt: off
    normal = _cell((sep, 0), (sep, 1), (sep, 0), (sep, 1), (sep, 1), (skip, 0), (skip, 0), (dil, 2))
    reduce = _cell((pool, 0), (pool, 1), (skip, 2), (pool, 1), (pool, 0), (skip, 2), (skip, 2), (pool, 1))
    # fmt: on
    return Genotype("darts", (("normal", normal), ("reduce", reduce)))


@pytest.fixture
def make_run(tmp_path: Path, genotype: Genotype) -> Callable[..., Path]:
    """make_run(name, epochs, config=None, environment=None) writes a run folder below tmp_path."""

    def make(
        name: str = "run", epochs: int = 3, config: Any = None, environment: dict[str, Any] | None = None
    ) -> Path:
        path = tmp_path / name
        path.mkdir()
        if config is None:
            config = {
                "method": "darts",
                "data": {"name": "cifar10", "batch_size": 64},
                "estimator": {"name": "sge", "directions": 10, "mu": 0.01},
            }
        environment = environment or {"sgenas": "0.1.0", "git_commit": None, "classes": list("abcdefghij")}
        head = {"format": "sgenas-run", "version": 1, "config": config, "environment": environment}
        (path / "config.json").write_text(json.dumps(head), encoding="utf-8")
        (path / "metrics.jsonl").write_text("".join(_metrics(epochs, genotype)), encoding="utf-8")
        if epochs:
            np.savez(path / "alphas.npz", **_alphas(epochs))  # type: ignore[arg-type]
            (path / "genotype.json").write_text(genotype.to_json(), encoding="utf-8")
        return path

    return make


def _metrics(epochs: int, genotype: Genotype) -> list[str]:
    lines = []
    for epoch in range(epochs):
        for step in range(10 * epoch + 1, 10 * epoch + 11):
            row: dict[str, Any] = {
                "kind": "step",
                "epoch": epoch,
                "step": step,
                "inner_loss": 2.3 - step / 50,
            }
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
            "cell": {name: str(cell) for name, cell in genotype.cells},
        }
        lines.append(json.dumps(row) + "\n")
    return lines


def _alphas(epochs: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    edges = [(source, target) for target in range(2, 6) for source in range(target)]
    arrays: dict[str, Any] = {
        "epoch": np.arange(epochs + 1),
        "operations": np.array(DARTS_OPERATIONS),
        "edges": np.array(edges),
    }
    for name in ("normal", "reduce"):
        raw = 0.3 * rng.standard_normal((epochs + 1, len(edges), len(DARTS_OPERATIONS)))
        arrays[name] = raw
        arrays[f"{name}_mixing"] = np.exp(raw) / np.exp(raw).sum(axis=-1, keepdims=True)
    return arrays
