"""The spaces of Fair DARTS (arXiv:1911.12126): operations that do not compete, strong ones kept."""

from collections.abc import Sequence
from typing import Any

import torch

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces import relaxation
from sgenas.spaces.darts import DartsSpace
from sgenas.spaces.derivation import Rule, edges_above, strongest_edges
from sgenas.spaces.genotype import Cell, Genotype
from sgenas.spaces.nasbench201 import NasBench201Space
from sgenas.spaces.nasbench201_strings import KIND, genotype_of
from sgenas.spaces.nasbench201_strings import OPERATIONS as BENCHMARK_OPERATIONS
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree

DERIVATIONS = ("top2", "threshold", "threshold-edges")
BENCHMARK_DERIVATIONS = ("strongest", "threshold")
THRESHOLD = 0.85


class Sigmoids(SupernetSpace):
    """What Fair DARTS changes in a space: sigmoids for mixing weights, alphas that start at 0 (weights 1/2).

    No operation is `none`, which no sigmoid would compete with.
    """

    def initial_alphas(self, generator: torch.Generator) -> Tree:  # noqa: ARG002
        """Zeros: nothing is drawn."""
        return {kind: torch.zeros(len(self.edges), len(self.operations)) for kind in self.kinds}

    def mixing(self, alphas: Tree) -> Tree:
        """1 / (1 + exp(-alpha)), entry by entry."""
        return relaxation.sigmoid(alphas)


def _check(derivation: str, known: tuple[str, ...], threshold: float) -> None:
    if derivation not in known:
        raise InvalidValueError(f"derivation must be one of {', '.join(known)}, got {derivation!r}")
    if not 0 < threshold < 1:
        raise InvalidValueError(f"threshold must be in (0, 1), got {threshold}")


class FairDartsSpace(Sigmoids, DartsSpace):
    """DartsSpace with `Sigmoids`.

    derivation: how a cell is read. `top2`: the DARTS rule. `threshold`: of those edges, the ones whose weight
    is at least `threshold`. `threshold-edges`: on every edge the up to 2 best operations with at least that
    weight. With a threshold a node may have no edge and a cell be empty: what to do then is the reader's
    business, the genotype says so plainly. The other settings are DartsSpace's; `operations` is `paper`.

    Raises InvalidValueError for an unknown derivation, a threshold outside (0, 1), `none` among the
    operations and partial channels.
    """

    def __init__(
        self,
        *,
        operations: str | Sequence[str] = "paper",
        derivation: str = "threshold",
        threshold: float = THRESHOLD,
        **settings: Any,
    ) -> None:
        _check(derivation, DERIVATIONS, threshold)
        if settings.get("partial", 1) != 1:
            raise InvalidValueError(f"partial must be 1 with sigmoids, got {settings['partial']}")
        super().__init__(operations=operations, **settings)
        if "none" in self.operations:
            raise InvalidValueError(f"operations must not hold none with sigmoids, got {self.operations}")
        self.derivation, self.threshold = derivation, threshold

    @property
    def rule(self) -> Rule:
        if self.derivation == "threshold-edges":
            return Rule(keep=None, each=2, least=self.threshold)
        return Rule(keep=2, least=None if self.derivation == "top2" else self.threshold)

    def derive(self, alphas: Tree) -> Genotype:
        """The cells of the moment by `derivation`."""
        mixing = trees.detach(self.mixing(alphas))

        def cell(kind: str) -> Cell:
            if self.derivation == "threshold-edges":
                return edges_above(mixing[kind], self.operations, self.nodes, self.threshold)
            least = 0.0 if self.derivation == "top2" else self.threshold
            return strongest_edges(mixing[kind], self.operations, self.nodes, least=least)

        return Genotype("fair-darts", tuple((kind, cell(kind)) for kind in self.kinds))


class FairNasBench201Space(Sigmoids, NasBench201Space):
    """NasBench201Space with `Sigmoids` over the 4 operations besides `none`.

    The benchmark has one operation on an edge, so the published rules, which take several or none, do not
    all apply. derivation: `strongest` keeps the strongest operation of every edge; `threshold` puts `none`
    where that one's weight is below `threshold`, and may give an empty cell. The other settings are
    NasBench201Space's. Raises InvalidValueError for an unknown derivation and a threshold outside (0, 1).
    """

    def __init__(
        self, *, derivation: str = "strongest", threshold: float = THRESHOLD, **settings: Any
    ) -> None:
        _check(derivation, BENCHMARK_DERIVATIONS, threshold)
        chosen = tuple(name for name in BENCHMARK_OPERATIONS if name != "none")
        super().__init__(operations=chosen, **settings)
        self.derivation, self.threshold = derivation, threshold

    @property
    def rule(self) -> Rule:
        least = self.threshold if self.derivation == "threshold" else None
        return Rule(keep=None, least=least, hollow=True)

    def derive(self, alphas: Tree) -> Genotype:
        """The cell of the moment by `derivation`."""
        strongest = self.strongest(alphas)
        if self.derivation == "threshold":
            weights = trees.detach(self.mixing(alphas))[KIND].amax(dim=1).tolist()
            strongest = [
                name if weight >= self.threshold else "none"
                for name, weight in zip(strongest, weights, strict=True)
            ]
        return genotype_of(strongest)
