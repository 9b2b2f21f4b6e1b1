"""Relaxations around another one: with noise added, or with rows that are decided; and given mixing weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from sgenas.spaces.relaxations import Relaxation
from sgenas.tree import TensorDict


@dataclass(frozen=True)
class Wrapped(Relaxation):
    """Base of the relaxations around ``base``, which keeps its alphas and its noise."""

    base: Relaxation

    @property
    def weighs_edges(self) -> bool:  # type: ignore[override]
        return self.base.weighs_edges

    @property
    def competes(self) -> bool:  # type: ignore[override]
        return self.base.competes

    def at_epoch(self, epoch: int, epochs: int) -> Self:
        return replace(self, base=self.base.at_epoch(epoch, epochs))

    def initial_alphas(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> TensorDict:
        return self.base.initial_alphas(shapes, generator)

    def draw_noise(self, alphas: TensorDict, generator: torch.Generator) -> TensorDict | None:
        return self.base.draw_noise(alphas, generator)


@dataclass(frozen=True)
class Shifted(Wrapped):
    """A relaxation with a fixed shift of the mixing weights: m = kept(base(alpha) + d).

    ``kept`` clamps to [0, 1] and scales each row to the sum that it had, which for a softmax is 1. If all entries of
    a row are clamped to 0, the largest takes the sum. Sigmoids, which do not compete, are only clamped. With weights of
    edges d is in units of the edge's weight, as the shift is one of the softmax over operations.

    Args:
        base: The relaxation.
        shift: d, with the tables of the mixing weights.
    """

    shift: TensorDict = field(compare=False)

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        found = self.base(alphas, noise)
        if not self.weighs_edges:
            return {name: _kept(table, self.shift[name], self.competes) for name, table in found.items()}
        weights = {name: table.sum(dim=-1, keepdim=True) for name, table in found.items()}
        return {
            name: weights[name] * _kept(table / weights[name], self.shift[name], True) for name, table in found.items()
        }


def _kept(mixing: Tensor, shift: Tensor, rescale: bool) -> Tensor:
    moved = mixing + shift
    clamped = moved.clamp(0, 1)
    if not rescale:
        return clamped
    total = clamped.sum(dim=-1, keepdim=True)
    largest = torch.zeros_like(moved).scatter(-1, moved.detach().argmax(dim=-1, keepdim=True), 1.0)
    shares = torch.where(total > 0, clamped / total.clamp_min(torch.finfo(total.dtype).tiny), largest)
    return mixing.sum(dim=-1, keepdim=True) * shares


@dataclass(frozen=True)
class Decided(Wrapped):
    """A relaxation some of whose rows are decided: their mixing weights are fixed, whatever the alphas.

    A decided row is its fixed one, times the weight of its edge if the relaxation weighs edges (the sum of the row).

    Args:
        base: The relaxation.
        decided: {table: bool mask of the rows that are decided}, without the last dimension of the table.
        rows: {table: mixing weights of the decided rows}, like the table; the other rows are not used.
    """

    decided: TensorDict = field(compare=False)
    rows: TensorDict = field(compare=False)

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        found = {}
        for name, table in self.base(alphas, noise).items():
            fixed, decided = self.rows[name].to(table), self.decided[name].to(table.device)
            if self.weighs_edges:
                fixed = fixed * table.sum(dim=-1, keepdim=True)
            found[name] = torch.where(decided.unsqueeze(-1), fixed, table)
        return found


@dataclass(frozen=True)
class Given(Relaxation):
    """Mixing weights that do not depend on the alphas.

    Args:
        mixing: The mixing weights, by table.
    """

    mixing: TensorDict = field(compare=False)

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        return self.mixing
