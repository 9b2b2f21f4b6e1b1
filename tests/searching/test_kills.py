"""Searches that are killed again and again end as if nothing had happened: ``pytest -m slow -s`` this file."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from same_runs import assert_same_runs

KILLS = int(os.environ.get("SGENAS_KILLS", "20"))
RUN = """
import sys
import torch
from tiny_searches import cells, module_search
from sgenas import SGE
torch.set_num_threads(1)
kind, path = sys.argv[1:]
settings = {"epochs": 100, "log_every": 3, "checkpoint_every": 1}
sge = SGE(num_directions=2, smoothing=0.1, computation="sequential")
if kind == "module":
    module_search(run_dir=path, estimator=SGE(num_directions=3, smoothing=0.1), warmup_epochs=20,
                  method="gdas", inner_steps=2, alpha_every=2, **settings | {"epochs": 500})
elif kind == "first order":
    cells(data={"cutout": 2}, **settings).run(path, progress=False)
elif kind == "sge":
    cells(estimator=SGE(num_directions=2, control_variate="finite-difference"), **settings).run(path, progress=False)
else:
    cells(estimator=sge, **settings | {"epochs": 60}).run(path, progress=False)
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(kind: str, script: Path, path: Path) -> subprocess.Popen[bytes]:
    launcher = TORCHRUN if kind == "two processes" else []
    support = str(Path(__file__).parents[1] / "support")
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), kind, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": support},
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """All of it at once, as if the machine is taken away; torchrun's workers have sessions of their own."""
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
    """Kills the process at a random moment; which kind of moment, or None if it has ended."""
    newest, writing = path / "checkpoint.safetensors", path / "checkpoint.safetensors.tmp"
    moment = draw.choice(["starting", "running", "writing"])
    before = newest.stat().st_mtime_ns if newest.exists() else 0
    if moment == "starting" and begun:
        time.sleep(draw.uniform(0, startup))
    else:
        if not wait_until(lambda: newest.exists() and newest.stat().st_mtime_ns != before, process, 0.01):
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
@pytest.mark.parametrize("kind", ["first order", "sge", "module", "two processes"])
def test_search_that_is_killed_again_and_again_is_the_same(kind: str, tmp_path: Path) -> None:
    script, whole, path = tmp_path / "run.py", tmp_path / "whole", tmp_path / "killed"
    script.write_text(RUN)
    draw, began = random.Random(0), time.monotonic()
    process = start(kind, script, whole)
    assert wait_until((whole / "checkpoint.safetensors").exists, process, 0.01), process.communicate()
    startup = time.monotonic() - began
    _, err = process.communicate()
    assert process.returncode == 0, err

    moments: Counter[str] = Counter()
    process = start(kind, script, path)
    while moments.total() < KILLS:
        moment = kill_somewhere(process, path, draw, startup, begun=bool(moments))
        assert moment is not None, f"ended after {moments}: {process.communicate()}"
        moments[moment] += 1
        process = start(kind, script, path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_same_runs(whole, path)
    sys.stdout.write(f"\n{kind}: {moments.total()} kills, {dict(moments)}, start-up {startup:.1f} s\n")
