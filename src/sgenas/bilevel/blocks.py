"""Blocks of alphas that are perturbed one at a time, and how many directions each of them gets.

A block is a run of entries of the flattened alphas. A direction of a block is zero outside it.
"""

from collections.abc import Callable

from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


def _joint(alphas: Tree) -> list[int]:
    return [sum(alpha.numel() for alpha in alphas.values())]


def _tables(alphas: Tree) -> list[int]:
    return [alpha.numel() for alpha in alphas.values()]


def _edges(alphas: Tree) -> list[int]:
    sizes: list[int] = []
    for alpha in alphas.values():
        rows = alpha.shape[0] if alpha.ndim > 1 else 1
        sizes += [alpha.numel() // rows] * rows
    return sizes


BLOCKS: dict[str, Callable[[Tree], list[int]]] = {"joint": _joint, "table": _tables, "edge": _edges}
"""name -> sizes of the blocks, in the order of the flattened alphas. joint: all alphas are one. table: every
tensor. edge: every row of every tensor; one that has no rows (a vector, a scalar) as a whole."""


def columns(blocks: str, alphas: Tree) -> list[slice]:
    """The entries of each block in the flattened alphas."""
    found, first = [], 0
    for size in BLOCKS[blocks](alphas):
        found.append(slice(first, first + size))
        first += size
    return found


def deal(count: int, number: int, group: int = 1) -> list[slice]:
    """`count` directions dealt in turn to `number` blocks: those of each, side by side.

    group: directions that stay together, 2 for antithetic pairs. Raises InvalidValueError where a block would
    get none.
    """
    if count < group * number:
        raise InvalidValueError(
            f"num_directions must be at least {group * number}, {group} for each of {number} blocks, got"
            f" {count}"
        )
    found, first = [], 0
    groups = count // group
    for index in range(number):
        rows = group * (groups // number + (index < groups % number))
        found.append(slice(first, first + rows))
        first += rows
    return found
