"""Runs that are killed again and again end as if nothing had happened: `pytest -m slow -s` this file."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

KILLS = int(os.environ.get("SGENAS_KILLS", "50"))
SGENAS = ["-m", "sgenas"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *SGENAS]
CHOICES = [str(Path(__file__).parents[1] / "support" / "choices_search.py")]
SEARCH = [
    *("search", "--data", "digits", "--train-images", "240", "--batch-size", "16"),
    *("--channels", "2", "--layers", "3", "--nodes", "1"),
    *("--epochs", "200", "--log-every", "3", "--checkpoint-every", "1"),
]
TRAINING = [
    *("train", "--genotype", "darts-v2", "--data", "digits", "--train-images", "160", "--test-images", "60"),
    *("--batch-size", "16", "--channels", "2", "--layers", "3", "--auxiliary-weight", "0", "--cutout", "0"),
    *("--epochs", "60", "--log-every", "3", "--checkpoint-every", "1"),
]
VARIATE = ["--directions", "3", "--control-variate", "memory", "--warmup-epochs", "2"]
STREAMED = ["--directions", "2", "--computation", "streamed", "--epochs", "60"]


@dataclass(frozen=True)
class Kind:
    """start, resume: what Python is given to begin and to go on with a run, the folder being put behind it.

    same: the fixture that compares two folders.
    """

    start: list[str]
    resume: list[str]
    same: str = "assert_same_runs"


KINDS = {
    "search": Kind([*SGENAS, *SEARCH, "--estimator", "first-order", "--out"], [*SGENAS, "resume"]),
    "sge with a control variate": Kind([*SGENAS, *SEARCH, *VARIATE, "--out"], [*SGENAS, "resume"]),
    "training": Kind([*SGENAS, *TRAINING, "--out"], [*SGENAS, "resume"]),
    "two processes": Kind([*TWO, *SEARCH, *STREAMED, "--out"], [*TWO, "resume"]),
    "choices": Kind(CHOICES, CHOICES, same="assert_same_module_searches"),
}
"""name -> a run of about a thousand steps, each with its checkpoint."""


def python(command: list[str], path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *command, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """All of it at once, as a machine that is taken away; torchrun's workers have sessions of their own."""
    launcher = psutil.Process(process.pid)
    for part in [launcher, *launcher.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            part.kill()
    process.communicate()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes], nap: float) -> bool:
    """Whether it happens before the process ends."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(nap)
    return False


def kill_somewhere(
    process: subprocess.Popen[bytes], path: Path, draw: random.Random, startup: float, begun: bool
) -> str | None:
    """Kills the process at a moment drawn at random; which kind of moment, or None for one that has ended."""
    newest, writing = path / "checkpoint.pt", path / "checkpoint.pt.tmp"
    moment = draw.choice(["starting", "running", "writing"])
    before = newest.stat().st_mtime_ns if newest.exists() else 0
    if moment == "starting" and begun:
        time.sleep(draw.uniform(0, startup))
    else:

        def moved() -> bool:
            return newest.exists() and newest.stat().st_mtime_ns != before

        if not wait_until(moved, process, 0.01):
            return None
        time.sleep(draw.uniform(0, 0.4))
        if moment == "writing":
            wait_until(writing.exists, process, 0.0)
    if process.poll() is not None:
        return None
    kill(process)
    return "half a checkpoint left" if writing.exists() else moment


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_is_killed_again_and_again_is_the_same_run(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind, whole, path, draw = KINDS[name], tmp_path / "whole", tmp_path / "killed", random.Random(0)
    began = time.monotonic()
    process = python(kind.start, whole)
    assert wait_until((whole / "checkpoint.pt").exists, process, 0.01), process.communicate()
    startup = time.monotonic() - began
    _, err = process.communicate()
    assert process.returncode == 0, err

    moments: Counter[str] = Counter()
    process = python(kind.start, path)
    while moments.total() < KILLS:
        moment = kill_somewhere(process, path, draw, startup, begun=bool(moments))
        assert moment is not None, f"ended after {moments}: {process.communicate()}"
        moments[moment] += 1
        process = python(kind.resume, path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    request.getfixturevalue(kind.same)(whole, path)
    sys.stdout.write(f"\n{name}: {moments.total()} kills, {dict(moments)}, start-up {startup:.1f} s\n")
    if KILLS >= 50:
        assert moments["half a checkpoint left"] >= 3
