import json
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgenas.cli import main
from sgenas.engine.meter import MEASURED

# The tests' networks are tiny: one thread is as fast as two, and does not suffer when the machine is shared.
torch.set_num_threads(1)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*command: str) -> str:
        """The one line that the command fails with."""
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("sgenas: ")
        return captured.err.strip()

    return run


@pytest.fixture
def wait_for_rows() -> Callable[[Path, int, subprocess.Popen[str]], None]:
    def wait(path: Path, count: int, process: subprocess.Popen[str]) -> None:
        """Returns once the run has logged `count` rows; its checkpoints bring them to the disk."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            log = path / "metrics.jsonl"
            if log.exists() and log.read_bytes().count(b"\n") >= count:
                return
            time.sleep(0.01)
        raise AssertionError(f"no {count} rows: {process.communicate()}")

    return wait


def _outcome(path: Path) -> dict[str, Any]:
    """All that a run came to, but for the time that it took."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    for name in ("measured", "metrics_bytes"):
        del state[name]
    alphas = np.load(path / "alphas.npz") if (path / "alphas.npz").exists() else {}
    return {
        "metrics": _without_measures(rows),
        "alphas": {name: array.tolist() for name, array in alphas.items()},
        "genotype": (path / "genotype.json").read_text(),
        "state": state,
    }


def _module_outcome(path: Path) -> dict[str, Any]:
    """The same of a search in a module, whose rows stand in its checkpoint, and what it left in result.pt."""
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    del state["measured"]
    rows = _without_measures(state.pop("history"))
    result = torch.load(path / "result.pt", weights_only=True)
    return {"history": rows, "state": state, "result": result}


def _without_measures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


def _assert_same(outcome: Callable[[Path], dict[str, Any]], first: Path, second: Path) -> None:
    ours, theirs = outcome(first), outcome(second)
    for part in ours:
        assert _same(ours[part], theirs[part]), f"{part} differs between {first} and {second}"


@pytest.fixture
def assert_same_runs() -> Callable[[Path, Path], None]:
    """Fails unless two run folders hold the same run, bit for bit."""
    return partial(_assert_same, _outcome)


@pytest.fixture
def assert_same_module_searches() -> Callable[[Path, Path], None]:
    """Fails unless two folders hold the same search in a module, bit for bit, and its result.pt."""
    return partial(_assert_same, _module_outcome)
