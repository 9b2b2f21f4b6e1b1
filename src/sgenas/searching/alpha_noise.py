"""Random smoothing of the inner loss (SDARTS-RS): the weights train under noise on the architecture."""

from dataclasses import dataclass
from math import inf

import torch

from sgenas import tree
from sgenas.bilevel.sharding import Whole
from sgenas.errors import require
from sgenas.random import generator
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.relaxations import Relaxation
from sgenas.spaces.wrapped import Decided, Shifted
from sgenas.tree import TensorDict

FIRST = 0.1
"""Noise of the first epoch in units of the last one's: the released code goes from 0.03 to 0.3."""


@dataclass(frozen=True)
class AlphaNoise:
    """The noise of SDARTS-RS (Chen and Hsieh, arXiv:2002.05283), with which the weights minimize

        E L_train(w, A + d),   d ~ U[-epsilon, epsilon] entry by entry.

    The outer loss has none. Each inner batch has its own d, the same in every pass on that batch, perturbed or not,
    so that hypergradients are those of this loss. epsilon rises linearly, from a tenth of its value at the end:
    epsilon (1/10 + 9/10 epoch / epochs).

    A are the mixing weights, as in the released code: noise is added after the softmax, then each row is clamped to
    [0, 1] and scaled to sum 1.

    Args:
        epsilon: Half width of the noise at the end of the search, at least 0; 0 for none. The source has 0.3.
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.epsilon < inf, "alpha_noise", ">= 0 and finite", self.epsilon)

    def draw(self, space: SearchSpace, alphas: TensorDict, seed: int, epoch: int, epochs: int) -> "Shift | None":
        """The noise of a batch in ``epoch`` (from 0) of ``epochs``, from ``seed`` alone; None without noise."""
        if not self.epsilon:
            return None
        width = self.epsilon * (FIRST + (1 - FIRST) * epoch / epochs)
        draw, like = generator(seed, "alpha noise"), next(iter(alphas.values()))
        drawn = {name: torch.rand(shape, generator=draw, dtype=torch.float64) for name, shape in space.shapes.items()}
        shift = tree.map(lambda uniform: (width * (2 * uniform - 1)).to(like.dtype), drawn)
        return Shift(tree.to(shift, like.device))


class Shift(Whole):
    """A drawn noise, part of a batch."""

    def around(self, relaxation: Relaxation) -> Relaxation:
        """``relaxation`` with this noise; rows that are decided have none."""
        if isinstance(relaxation, Decided):
            return Decided(self.around(relaxation.base), relaxation.decided, relaxation.rows)
        return Shifted(relaxation, self.tables)
