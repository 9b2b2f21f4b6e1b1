import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgenas.engine import DataSettings, EstimatorSettings, SearchConfig, SpaceSettings

SMALL = SearchConfig(
    epochs=3,
    log_every=2,
    checkpoint_every=2,
    data=DataSettings(data="digits", train_images=120, batch_size=16),
    space=SpaceSettings(channels=2, layers=3, nodes=1),
    estimator=EstimatorSettings(directions=2),
)
"""Three steps an epoch, about 20 ms a pass."""


def _small(**changes: Any) -> SearchConfig:
    """SMALL with changes by group: small(epochs=2, weights={"weights": "separate"})."""
    parts = {
        name: dataclasses.replace(getattr(SMALL, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(SMALL, **parts)


@pytest.fixture
def small() -> Callable[..., SearchConfig]:
    return _small


def _outcome(path: Path) -> dict[str, Any]:
    """All that a run came to, but for the time that it took."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    for name in ("seconds", "metrics_bytes"):
        del state[name]
    return {
        "metrics": [{name: value for name, value in row.items() if name != "seconds"} for row in rows],
        "alphas": {name: array.tolist() for name, array in np.load(path / "alphas.npz").items()},
        "genotype": (path / "genotype.json").read_text(),
        "state": state,
    }


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


@pytest.fixture
def assert_same_runs() -> Callable[[Path, Path], None]:
    """Fails unless two run folders hold the same run, bit for bit."""

    def check(first: Path, second: Path) -> None:
        ours, theirs = _outcome(first), _outcome(second)
        for part in ours:
            assert _same(ours[part], theirs[part]), f"{part} differs between {first} and {second}"

    return check
