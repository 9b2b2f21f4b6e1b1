"""The space of PC-DARTS (arXiv:1907.05737): DARTS' cells, partially connected, with normalised edges."""

from typing import Any

import torch

from sgenas.spaces import relaxation
from sgenas.spaces.darts import CELL_KINDS, DartsSpace
from sgenas.trees import Tree


class PCDartsSpace(DartsSpace):
    """DartsSpace with 1 / K of the channels through the operations, and edges that have weights of their own.

    Node i is sum_j beta_ij * edge_ij(x_j), beta_ij the softmax of the edge parameters over the edges that
    enter i. The alphas are {"normal": (E, O), "reduce": (E, O), "normal_edges": (E,), "reduce_edges": (E,)}:
    edge parameters are alphas, and perturbed with the others. Mixing weights are those of both together,
    beta_ij softmax(alpha)_ijk, tables (E, O); a cell is derived from them by the DARTS rule.

    partial_channels: K, a divisor of `channels` with channels / K >= 2. The other settings are DartsSpace's.
    Raises InvalidValueError for a K that is none.
    """

    def __init__(self, *, channels: int = 16, partial_channels: int = 4, **settings: Any) -> None:
        super().__init__(channels=channels, partial=partial_channels, **settings)
        self._targets = [target for _, target in self.edges]

    def initial_alphas(self, generator: torch.Generator) -> Tree:
        """1e-3 N(0, 1) for every entry, edge parameters too; on the CPU."""
        alphas = super().initial_alphas(generator)
        for kind in CELL_KINDS:
            alphas[f"{kind}_edges"] = 1e-3 * torch.randn(len(self.edges), generator=generator)
        return alphas

    def mixing(self, alphas: Tree) -> Tree:
        """{kind: softmax(alpha) times the edge's weight}."""
        tables = relaxation.softmax({kind: alphas[kind] for kind in CELL_KINDS})
        return {
            kind: table * relaxation.over_incoming(alphas[f"{kind}_edges"], self._targets).unsqueeze(-1)
            for kind, table in tables.items()
        }
