"""Compares two run directories bit for bit, apart from times and memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgenas.run.checkpoint import load_checkpoint
from sgenas.run.meter import MEASURED


def assert_same_runs(first: Path, second: Path) -> None:
    """Fails unless two run directories hold the same run, bit for bit."""
    ours, theirs = _outcome(first), _outcome(second)
    for part in ours:
        assert _same(ours[part], theirs[part]), f"{part} differs between {first} and {second}"


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def _outcome(path: Path) -> dict[str, Any]:
    state = load_checkpoint(path / "checkpoint.safetensors")
    for name in ("measured", "log_bytes", "config"):
        del state[name]
    state["history"] = [without_measures(row) for row in state["history"]]
    found: dict[str, Any] = {"metrics": [without_measures(row) for row in rows(path)], "state": state}
    for name in ("genotype.json", "choices.json"):
        found[name] = (path / name).read_text() if (path / name).exists() else None
    arrays = np.load(path / "alphas.npz") if (path / "alphas.npz").exists() else {}
    found["alphas"] = {name: array.tolist() for name, array in arrays.items()}
    return found


def without_measures(row: dict[str, Any]) -> dict[str, Any]:
    """A row without times and memory."""
    return {name: value for name, value in row.items() if name not in MEASURED}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)
