"""Random directions in the space of the alphas, all with E[u u^T] = I."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sgenas import tree
from sgenas.device import moved
from sgenas.errors import require, require_choice
from sgenas.tree import Tree

Normal = Callable[[int], Tensor]
"""rows -> that many independent draws of N(0, I), (rows, p)."""


def _gaussian(count: int, size: int, normal: Normal) -> Tensor:
    return normal(count)


def _orthogonal(count: int, size: int, normal: Normal) -> Tensor:
    """Rows of uniformly random frames, of norm sqrt(p); from p directions on every frame is a basis."""
    frames = []
    for first in range(0, count, size):
        # in double precision, since Q R loses orthogonality with the digits
        columns = normal(min(size, count - first)).T.double()
        basis, upper = torch.linalg.qr(columns)
        # the signs that make Q R unique: without them the frames are not uniform
        frames.append(basis * upper.diagonal().sign())
    rows = math.sqrt(size) * torch.cat(frames, dim=1).T
    return rows.to(normal(0).dtype)


def _antithetic(count: int, size: int, normal: Normal) -> Tensor:
    half = normal(count // 2)
    return torch.stack([half, -half], dim=1).flatten(0, 1)


DIRECTIONS: dict[str, Callable[[int, int, Normal], Tensor]] = {
    "gaussian": _gaussian,
    "orthogonal": _orthogonal,
    "antithetic": _antithetic,
}
"""gaussian: independent N(0, I), as in the paper. orthogonal: at right angles, of norm sqrt(p), so that none
measures again what another has. antithetic: pairs u, -u, which make central differences."""


def check(owner: str, kind: str, count: int) -> None:
    """Raises InvalidValueError, naming fields of ``owner``, unless ``draw`` can draw so many."""
    require(isinstance(count, int) and count >= 1, f"{owner}.num_directions", "a whole number >= 1", count)
    require_choice(f"{owner}.directions", kind, tuple(DIRECTIONS))
    even = kind != "antithetic" or count % 2 == 0
    require(even, f"{owner}.num_directions", "even with antithetic directions", count)


def draw(kind: str, count: int, alphas: Tree, generator: torch.Generator) -> Tensor:
    """``count`` directions over p alphas, (count, p), on the device of the alphas.

    All numbers are drawn on the generator's device and then moved, so that a seed gives the same directions
    on every device and in every process.
    """
    first, size = tree.tensors(alphas)[0], tree.size(alphas)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, device=generator.device, dtype=first.dtype)

    return moved(DIRECTIONS[kind](count, size, normal), first.device)


def perturbed(alphas: Tree, directions: Tensor, smoothing: float) -> list[Tree]:
    """alpha + mu u_j for each row u_j of ``directions`` (Q, p)."""
    return [tree.add(alphas, tree.unflatten(row, alphas), smoothing) for row in directions]
