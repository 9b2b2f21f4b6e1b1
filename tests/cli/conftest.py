"""Runs of the command line in this process, and two tiny runs that several tests read."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_lines import SEARCH, TRAIN

from sgenas.cli.main import main

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*command: str) -> str:
        """The one line with which the command fails."""
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("sgenas: ")
        return captured.err.removeprefix("sgenas: ").strip()

    return run


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search; tests must not change it."""
    path = tmp_path_factory.mktemp("runs") / "searched"
    assert main([*SEARCH, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training; tests must not change it."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    assert main([*TRAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture
def start() -> Start:
    def run(*command: str) -> "subprocess.Popen[str]":
        """A process of the command line with one thread."""
        return subprocess.Popen(
            [sys.executable, "-m", "sgenas", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    return run


@pytest.fixture
def wait_for_rows() -> Callable[[Path, int, "subprocess.Popen[str]"], None]:
    def wait(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
        """Returns once the run has logged ``count`` rows; its checkpoints bring them to the disk."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            log = path / "metrics.jsonl"
            if log.exists() and log.read_bytes().count(b"\n") >= count:
                return
            time.sleep(0.01)
        raise AssertionError(f"no {count} rows: {process.communicate()}")

    return wait
