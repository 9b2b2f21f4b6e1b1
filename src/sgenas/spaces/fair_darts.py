"""The space of Fair DARTS (arXiv:1911.12126): DARTS' cells with operations that do not compete."""

from collections.abc import Sequence
from typing import Any

import torch

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces import relaxation
from sgenas.spaces.darts import CELL_KINDS, DartsSpace
from sgenas.spaces.derivation import edges_above, strongest_edges
from sgenas.spaces.genotype import Cell, Genotype
from sgenas.trees import Tree

DERIVATIONS = ("top2", "threshold", "threshold-edges")


class FairDartsSpace(DartsSpace):
    """DartsSpace with sigmoids for mixing weights, alphas that start at 0 (weights of 1/2), and no `none`.

    derivation: how a cell is read. `top2`: the DARTS rule. `threshold`: of those edges, the ones whose weight
    is at least `threshold`. `threshold-edges`: on every edge the up to 2 best operations with at least that
    weight. With a threshold a node may have no edge and a cell be empty: what to do then is the reader's
    business, the genotype says so plainly. The other settings are DartsSpace's; `operations` is `paper`.

    Raises InvalidValueError for an unknown derivation, a threshold outside (0, 1), `none` among the
    operations (no sigmoid competes with it) and partial channels.
    """

    def __init__(
        self,
        *,
        operations: str | Sequence[str] = "paper",
        derivation: str = "threshold",
        threshold: float = 0.85,
        **settings: Any,
    ) -> None:
        if derivation not in DERIVATIONS:
            raise InvalidValueError(f"derivation must be one of {', '.join(DERIVATIONS)}, got {derivation!r}")
        if not 0 < threshold < 1:
            raise InvalidValueError(f"threshold must be in (0, 1), got {threshold}")
        if settings.get("partial", 1) != 1:
            raise InvalidValueError(f"partial must be 1 with sigmoids, got {settings['partial']}")
        super().__init__(operations=operations, **settings)
        if "none" in self.operations:
            raise InvalidValueError(f"operations must not hold none with sigmoids, got {self.operations}")
        self.derivation, self.threshold = derivation, threshold

    def initial_alphas(self, generator: torch.Generator) -> Tree:  # noqa: ARG002
        """Zeros: nothing is drawn."""
        shape = (len(self.edges), len(self.operations))
        return {kind: torch.zeros(shape) for kind in CELL_KINDS}

    def mixing(self, alphas: Tree) -> Tree:
        """1 / (1 + exp(-alpha)), entry by entry."""
        return relaxation.sigmoid(alphas)

    def derive(self, alphas: Tree) -> Genotype:
        """The cells of the moment by `derivation`."""
        mixing = trees.detach(self.mixing(alphas))

        def cell(kind: str) -> Cell:
            if self.derivation == "threshold-edges":
                return edges_above(mixing[kind], self.operations, self.nodes, self.threshold)
            least = 0.0 if self.derivation == "top2" else self.threshold
            return strongest_edges(mixing[kind], self.operations, self.nodes, least=least)

        return Genotype("fair-darts", tuple((kind, cell(kind)) for kind in CELL_KINDS))
