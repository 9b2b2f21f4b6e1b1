"""What a process of a job does. Imports nothing heavy: the environment must be set before PyTorch is imported."""

import os
import pkgutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgenas.files import open_for_appending
from sgenas.threads import spin_limit

RUN_NAMED = "sgenas.experiments.run_job:run_named"


def environment(threads: int, gpu: str | None = None) -> dict[str, str]:
    """Environment variables of a job that uses that many CPU threads and that GPU."""
    found = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | spin_limit()
    return found | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})


def log_to(path: Path) -> None:
    """Appends everything that this process prints to ``path``, also what other libraries write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_for_appending(path) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def work(log: Path, variables: Mapping[str, str], function: str, arguments: Sequence[Any]) -> None:
    """Calls ``function`` (``"module:name"``) in this process with all output in ``log``; imports it only when the
    environment variables are set.
    """
    log_to(log)
    os.environ.update(variables)
    try:
        pkgutil.resolve_name(function)(*arguments)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        sys.exit(1)
