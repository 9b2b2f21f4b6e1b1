"""Named random generators: each use has its own, so that a new one never shifts the numbers of another."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


class Seed(int):
    """A seed that nothing reads but generators: a pass that draws no random numbers does not depend on it."""


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the use ``name`` of a run with ``seed``."""
    return torch.Generator().manual_seed(seed_of(seed, name))


def seed_of(seed: int, name: str) -> int:
    """The seed of ``generator(seed, name)``."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators with this seed; all as before afterwards."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if used else ()
    python, arrays, before = random.getstate(), np.random.get_state(), torch.initial_seed()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002
            if not used and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                # torch.manual_seed leaves its seed for GPUs that are used later
                torch.cuda.manual_seed_all(before)
