"""Named random generators: each use has its own, so that a new one never shifts the numbers of another."""

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the use ``name`` of a run with ``seed``."""
    return torch.Generator().manual_seed(seed_of(seed, name))


def seed_of(seed: int, name: str) -> int:
    """The seed of ``generator(seed, name)``."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
