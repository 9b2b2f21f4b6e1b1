"""What only POSIX systems have is never needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

POORER = """
import os, signal, sys
sys.modules["resource"] = sys.modules["pwd"] = sys.modules["grp"] = sys.modules["termios"] = None
for name in ("O_NOFOLLOW", "sched_getaffinity", "getuid", "geteuid", "mkfifo"):
    delattr(os, name)
for name in ("pthread_sigmask", "SIGKILL", "SIGHUP", "SIGUSR1"):
    delattr(signal, name)
"""
SEARCH = """
from tiny_searches import module_search
from sgenas.experiments.launchers import Local
from sgenas.device import usable_cores
assert module_search(run_dir=sys.argv[1]).finished
assert Local(jobs=1).slots() and usable_cores() >= 1
import sgenas.cli.main
"""


@pytest.mark.slow
def test_search_needs_nothing_that_windows_lacks(tmp_path: Path) -> None:
    support = str(Path(__file__).parents[1] / "support")
    environment = os.environ | {"PYTHONPATH": support, "OMP_NUM_THREADS": "1"}
    # torch and its dependencies are loaded first: they have their own guards
    script = "import torch, numpy, psutil, filelock, safetensors.torch, multiprocessing\n" + POORER + SEARCH
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["fcntl", "resource", "pwd", "grp", "termios", "pty"])
def test_no_file_imports_a_posix_module_at_its_top(module: str) -> None:
    source = Path(__file__).parents[2] / "src" / "sgenas"
    lines = {line for path in source.rglob("*.py") for line in path.read_text().splitlines()}
    assert not lines & {f"import {module}", f"from {module} import *"}
