"""Learning-rate schedules of the weights: epoch by epoch, constant within one."""

import math
from dataclasses import dataclass
from typing import Protocol

from sgenas.errors import require


class Schedule(Protocol):
    """The learning rate of an epoch."""

    def __call__(self, lr: float, epoch: int, epochs: int) -> float:
        """The rate of ``epoch`` (from 0) of ``epochs``, given the optimizer's own ``lr``."""
        ...


@dataclass(frozen=True)
class Cosine:
    """final + (lr - final) (1 + cos(pi epoch / epochs)) / 2, as DARTS has it (arXiv:1806.09055).

    Args:
        final: Rate that the cosine falls to.
    """

    final: float = 0.001

    def __post_init__(self) -> None:
        require(0 <= self.final < math.inf, "lr_min", ">= 0 and finite", self.final)

    def __call__(self, lr: float, epoch: int, epochs: int) -> float:
        return self.final + (lr - self.final) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclass(frozen=True)
class Constant:
    """The optimizer's own rate in every epoch."""

    def __call__(self, lr: float, epoch: int, epochs: int) -> float:
        return lr
