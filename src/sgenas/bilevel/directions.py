"""Random directions in the space of the alphas, all with E[u u^T] = I."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import blocks as sizes
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


@dataclass(frozen=True)
class Drawn:
    """Q directions over p alphas. matrix: (Q, p), a direction a row, zero outside its block.

    blocks: rows and columns of each block. group: directions that depend on each other, side by side.
    independent: whether groups do not depend on each other.
    """

    matrix: Tensor
    blocks: tuple[tuple[slice, slice], ...]
    group: int
    independent: bool

    def trees(self, alphas: Tree) -> list[Tree]:
        """The directions, each shaped as `alphas`."""
        return [trees.unflatten(row, alphas) for row in self.matrix]


def check(owner: str, kind: str, count: int) -> None:
    """Raises InvalidValueError, in the name of the estimator `owner`, unless `draw` can draw so many."""
    if count < 1:
        raise InvalidValueError(f"{owner}.num_directions must be >= 1, got {count}")
    if kind not in KINDS:
        raise InvalidValueError(f"{owner}.directions must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "antithetic" and count % 2:
        raise InvalidValueError(
            f"{owner}.num_directions must be even with antithetic directions, got {count}"
        )


def draw(kind: str, count: int, alphas: Tree, generator: torch.Generator, blocks: str = "joint") -> Drawn:
    """`count` directions u_j; kind: a name in KINDS, blocks: one in `blocks.BLOCKS`.

    Of more than one block, each gets its share of the directions, drawn as if it were all. All numbers are
    drawn on the generator's device and then moved, so that the same seed gives the same directions on every
    device, on one process or many. Raises InvalidValueError when there are no alphas, for an odd number of
    antithetic directions, and where there are fewer directions than blocks.
    """
    if not alphas:
        raise InvalidValueError("alphas must hold at least one tensor, got none")
    if kind == "antithetic" and count % 2:
        raise InvalidValueError(f"num_directions must be even with antithetic directions, got {count}")
    first = next(iter(alphas.values()))
    group = 2 if kind == "antithetic" else 1
    columns = sizes.columns(blocks, alphas)
    shares = sizes.deal(count, len(columns), group)
    matrix = torch.zeros(count, trees.size(alphas), device=generator.device, dtype=first.dtype)

    for rows, entries in zip(shares, columns, strict=True):
        size = entries.stop - entries.start

        def normal(number: int, size: int = size) -> Tensor:
            return torch.randn(number, size, generator=generator, device=generator.device, dtype=first.dtype)

        matrix[rows, entries] = KINDS[kind](rows.stop - rows.start, size, normal)
    pairs = tuple(zip(shares, columns, strict=True))
    return Drawn(matrix.to(first.device), pairs, group, independent=kind != "orthogonal")


def gaussian(count: int, alphas: Tree, generator: torch.Generator) -> list[Tree]:
    """`draw` of the paper's directions: independent, N(0, I)."""
    return draw("gaussian", count, alphas, generator).trees(alphas)


Normal = Callable[[int], Tensor]
"""rows -> that many independent draws of N(0, I), (rows, p)."""


def _gaussian(count: int, size: int, normal: Normal) -> Tensor:  # noqa: ARG001
    return normal(count)


def _sphere(count: int, size: int, normal: Normal) -> Tensor:
    rows = normal(count)
    return rows * (math.sqrt(size) / rows.norm(dim=1, keepdim=True))


def _orthogonal(count: int, size: int, normal: Normal) -> Tensor:
    """Rows of uniformly random frames, sqrt(p) long; from p directions on every frame is a basis."""
    frames = []
    for first in range(0, count, size):
        # in double precision where it is not, since Q R loses orthogonality with the digits
        columns = normal(min(size, count - first)).T.double()
        basis, upper = torch.linalg.qr(columns)
        # the signs that make Q R unique: without them the frames are not uniform
        frames.append(basis * upper.diagonal().sign())
    rows = math.sqrt(size) * torch.cat(frames, dim=1).T
    return rows.to(normal(0).dtype)


def _antithetic(count: int, size: int, normal: Normal) -> Tensor:  # noqa: ARG001
    half = normal(count // 2)
    return torch.stack([half, -half], dim=1).flatten(0, 1)


KINDS: dict[str, Callable[[int, int, Normal], Tensor]] = {
    "gaussian": _gaussian,
    "orthogonal": _orthogonal,
    "sphere": _sphere,
    "antithetic": _antithetic,
}
"""gaussian: independent N(0, I), the paper's. orthogonal: at right angles to each other, of length sqrt(p),
so that none measures again what another has. sphere: independent, of length sqrt(p). antithetic: pairs u, -u,
which make central differences."""
