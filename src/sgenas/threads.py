"""Threads of OpenMP. Imports nothing heavy: the environment must be set before PyTorch is imported."""

import os


def spin_limit() -> dict[str, str]:
    """How long OpenMP threads spin while they wait, an environment variable; empty if the user has said how they wait.

    10000 is as fast as libgomp's default on an idle machine, and 5 times as fast beside another busy process (docs:
    speed).
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000")}
