"""Random directions in the space of the alphas, all with E[u u^T] = I."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


def draw(kind: str, count: int, alphas: Tree, generator: torch.Generator) -> list[Tree]:
    """`count` directions u_j over all alphas jointly, each shaped as `alphas`; kind: a name in KINDS.

    All numbers are drawn at once on the generator's device and then moved, so that the same seed gives the
    same directions on every device, on one process or many. Raises InvalidValueError when there are no
    alphas, and for an odd number of antithetic directions.
    """
    if not alphas:
        raise InvalidValueError("alphas must hold at least one tensor, got none")
    if kind == "antithetic" and count % 2:
        raise InvalidValueError(f"num_directions must be even with antithetic directions, got {count}")
    dtype = next(iter(alphas.values())).dtype
    size = trees.size(alphas)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, size, generator=generator, device=generator.device, dtype=dtype)

    return [trees.unflatten(row, alphas) for row in KINDS[kind](count, size, normal)]


def gaussian(count: int, alphas: Tree, generator: torch.Generator) -> list[Tree]:
    """`draw` of the paper's directions: independent, N(0, I)."""
    return draw("gaussian", count, alphas, generator)


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
