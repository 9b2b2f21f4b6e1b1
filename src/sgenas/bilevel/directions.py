"""Random directions in the space of the alphas."""

import torch

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


def gaussian(count: int, alphas: Tree, generator: torch.Generator) -> list[Tree]:
    """`count` independent draws u_j ~ N(0, I) over all alphas jointly, each shaped as `alphas`.

    All numbers are drawn at once on the generator's device and then moved, so that the same seed gives the
    same directions on every device, on one process or many. E[u u^T] = I. Raises InvalidValueError when
    there are no alphas.
    """
    if not alphas:
        raise InvalidValueError("alphas must hold at least one tensor, got none")
    dtype = next(iter(alphas.values())).dtype
    draws = torch.randn(count, trees.size(alphas), generator=generator, device=generator.device, dtype=dtype)
    return [trees.unflatten(draw, alphas) for draw in draws]
