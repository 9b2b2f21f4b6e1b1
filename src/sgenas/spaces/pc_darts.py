"""The spaces of PC-DARTS (arXiv:1907.05737): partially connected cells with normalised edges."""

from typing import Any

import torch

from sgenas.spaces import relaxation
from sgenas.spaces.darts import DartsSpace
from sgenas.spaces.nasbench201 import NasBench201Space
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree


class EdgeWeights(SupernetSpace):
    """What PC-DARTS adds to a space: every edge has a weight of its own.

    Node i is sum_j beta_ij * edge_ij(x_j), beta_ij the softmax of the edge parameters over the edges that
    enter i. For each table (E, O) of operations' alphas there is one "..._edges", (E,): edge parameters are
    alphas, and perturbed with the others. Mixing weights are those of both together,
    beta_ij softmax(alpha)_ijk, tables (E, O).
    """

    def initial_alphas(self, generator: torch.Generator) -> Tree:
        """1e-3 N(0, 1) for every entry, edge parameters too; on the CPU."""
        alphas = super().initial_alphas(generator)
        for kind in self.kinds:
            alphas[f"{kind}_edges"] = 1e-3 * torch.randn(len(self.edges), generator=generator)
        return alphas

    def mixing(self, alphas: Tree) -> Tree:
        """{kind: softmax(alpha) times the edge's weight}."""
        targets = [target for _, target in self.edges]
        tables = relaxation.softmax({kind: alphas[kind] for kind in self.kinds})
        return {
            kind: table * relaxation.over_incoming(alphas[f"{kind}_edges"], targets).unsqueeze(-1)
            for kind, table in tables.items()
        }


class PCDartsSpace(EdgeWeights, DartsSpace):
    """DartsSpace with 1 / K of the channels through the operations, and `EdgeWeights`.

    A cell is derived by the DARTS rule from the mixing weights. partial_channels: K, a divisor of `channels`
    with channels / K >= 2. The other settings are DartsSpace's. Raises InvalidValueError for a K that is
    none.
    """

    def __init__(self, *, channels: int = 16, partial_channels: int = 4, **settings: Any) -> None:
        super().__init__(channels=channels, partial=partial_channels, **settings)


class PCNasBench201Space(EdgeWeights, NasBench201Space):
    """NasBench201Space with 1 / K of the channels through the operations, and `EdgeWeights`.

    Every edge keeps its strongest operation: the edges' own weights shape the search but drop no edge.
    partial_channels: K, a divisor of `channels`. The other settings are NasBench201Space's. Raises
    InvalidValueError for a K that is none.
    """

    def __init__(self, *, channels: int = 16, partial_channels: int = 4, **settings: Any) -> None:
        super().__init__(channels=channels, partial=partial_channels, **settings)
