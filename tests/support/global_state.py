"""Guards the random state that a whole process shares."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def states() -> list[Any]:
    """Of random, numpy.random, torch, and of every GPU."""
    found = [
        random.getstate(),
        [str(part) for part in np.random.get_state()],
        np.random.get_state()[1].tolist(),
    ]
    found.append(torch.get_rng_state().tolist())
    if torch.cuda.is_available():
        found += [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return found


def disturb(seed: int) -> None:
    """Other numbers in every global generator."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def untouched() -> Iterator[None]:
    """Fails where what is inside draws from a global generator, or seeds one."""
    before = states()
    yield
    assert states() == before


def twice(run: Callable[[], Any]) -> list[Any]:
    """What ``run`` returns with two states of the global generators, which it leaves as they are."""
    found = []
    for seed in (1, 2):
        disturb(seed)
        with untouched():
            found.append(run())
    return found
