"""Random architectures of a space: different ones for random search and rank correlations, and mutations."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sgenas.spaces.base import SearchSpace
from sgenas.spaces.costs import CostModel
from sgenas.tree import TensorDict

TRIES = 1000
"""Draws in a row without a new architecture after which there is taken to be no other one."""


def key_of(space: SearchSpace, architecture: Any) -> str:
    """The same text for equal architectures only."""
    return json.dumps(space.architecture_to_dict(architecture), sort_keys=True)


def different_architectures(space: SearchSpace, draw: torch.Generator, costs: CostModel | None = None) -> Iterator[Any]:
    """Random architectures, each once, until `TRIES` draws in a row give no new one.

    They are uniform: draws outside the limits of ``costs`` are rejected. A budget that few architectures meet may need
    more draws for the next one than that; then the best architecture within the budget is taken for each draw, which
    is not uniform any more.
    """
    known: set[str] = set()
    for rejects in (True, False) if costs is not None and costs.budget.limits else (False,):
        missed = 0
        while missed < TRIES:
            missed += 1
            alphas = space.random_alphas(draw)
            architecture = space.derive(alphas)
            if costs is not None and not costs.is_within(architecture):
                if rejects:
                    continue
                architecture = costs.best(alphas)
            key = key_of(space, architecture)
            if key not in known:
                known.add(key)
                missed = 0
                yield architecture


def random_alphas(space: SearchSpace, draw: torch.Generator, costs: CostModel | None = None) -> TensorDict:
    """Alphas of a random architecture: uniform among those within the budget if one of `TRIES` draws is."""
    for _ in range(TRIES):
        alphas = space.random_alphas(draw)
        if costs is None or costs.is_within(space.derive(alphas)):
            break
    return alphas


def mutated(
    derive: Callable[[TensorDict], Any], space: SearchSpace, parent: tuple[TensorDict, Any], draw: torch.Generator
) -> tuple[TensorDict, Any] | None:
    """A pair (alphas, their architecture) with one row drawn again, so that the architecture is another one.

    None if `TRIES` draws give none.
    """
    alphas, before = parent
    for _ in range(TRIES):
        child = space.mutated_alphas(alphas, draw)
        architecture = derive(child)
        if architecture != before:
            return child, architecture
    return None
