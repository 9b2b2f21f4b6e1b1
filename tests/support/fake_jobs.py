"""What processes of `sgenas.experiments.launchers.Local` do in tests, instead of a search. Imports no PyTorch."""

import os
import signal
import sys
import time
from pathlib import Path


def fails_by_name(out: str, name: str) -> None:
    """Ends as its method says: killed, with an error, or with an exit code and no word."""
    if "/pc-darts-" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "/fair-darts-" in name:
        raise ValueError("the last word")
    if "/beta-darts-" in name:
        os._exit(3)
    environment = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    sys.stdout.write(f"{environment} torch imported: {'torch' in sys.modules}\n")


def waits_for_stop(out: str, name: str) -> None:
    """Runs until it is asked to stop."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not (Path(out) / "stop").exists():
        time.sleep(0.02)


def sleeps(out: str, name: str) -> None:
    """Ignores requests to stop."""
    time.sleep(600)
