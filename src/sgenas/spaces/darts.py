"""The DARTS search space (arXiv:1806.09055): a normal and a reduction cell, stacked."""

from collections.abc import Sequence

import torch

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces.darts_network import SearchNetwork
from sgenas.spaces.derivation import Rule, edges_of, strongest_edges
from sgenas.spaces.genotype import DARTS_OPERATIONS, Genotype
from sgenas.spaces.nonlinearity import Nonlinearity
from sgenas.spaces.supernet import SupernetSpace
from sgenas.trees import Tree

OPERATION_SETS: dict[str, tuple[str, ...]] = {
    "darts": DARTS_OPERATIONS,
    "paper": tuple(name for name in DARTS_OPERATIONS if name != "none"),
}
"""`darts`: the 8 of the DARTS code with `none`; `paper`: the 7 of the paper's section 3."""

CELL_KINDS = ("normal", "reduce")


class DartsSpace(SupernetSpace):
    """What can be searched: a supernet, its alphas, and how to read a cell out of them.

    channels: of the first cell (C); layers: number of cells, at least 3 so that both kinds occur; classes;
    input_channels: of the images; nodes: computed nodes of a cell; stem_multiplier: stem channels / C;
    partial: K of partially connected cells, see `pc_darts`; activation, pooling: see `nonlinearity`;
    operations: a name in OPERATION_SETS or a sequence of names; generator: draws the first weights (by
    default a fresh one with seed 0). Alphas are a tree {"normal": (E, O), "reduce": (E, O)} with
    E = nodes (nodes + 3) / 2 edges and O operations; weights are the tree of the supernet's parameters.

    Raises InvalidValueError for a size below its minimum and for an unknown operation.
    """

    kinds = CELL_KINDS

    def __init__(
        self,
        *,
        channels: int = 16,
        layers: int = 8,
        classes: int = 10,
        input_channels: int = 3,
        nodes: int = 4,
        stem_multiplier: int = 3,
        partial: int = 1,
        operations: str | Sequence[str] = "darts",
        activation: str = "relu",
        pooling: str = "hard",
        generator: torch.Generator | None = None,
    ) -> None:
        minima = {"channels": (channels, 2), "layers": (layers, 3), "classes": (classes, 2)}
        minima |= {"input_channels": (input_channels, 1), "nodes": (nodes, 1)}
        minima |= {"stem_multiplier": (stem_multiplier, 1)}
        for field, (value, least) in minima.items():
            if value < least:
                raise InvalidValueError(f"{field} must be >= {least}, got {value}")
        if partial < 1 or (partial > 1 and (channels % partial or channels // partial < 2)):
            raise InvalidValueError(
                f"partial_channels must divide channels {channels} into parts of at least 2, got {partial}"
            )
        nonlinearity = Nonlinearity(activation, pooling)
        self.operations = operation_set(operations)
        self.nodes = nodes
        self.partial = partial
        self.edges = edges_of(nodes)
        # made without storage, then filled from our own generator: torch's global one stays untouched
        with torch.device("meta"):
            network = SearchNetwork(
                self.operations,
                nodes,
                channels,
                layers,
                classes,
                input_channels,
                stem_multiplier,
                partial,
                nonlinearity,
            )
        self._adopt(network, generator)

    @property
    def rule(self) -> Rule:
        return Rule(keep=2)

    def derive(self, alphas: Tree) -> Genotype:
        """The cell of the moment by the DARTS rule, see `derivation.strongest_edges`."""
        mixing = trees.detach(self.mixing(alphas))
        cells = [(kind, strongest_edges(mixing[kind], self.operations, self.nodes)) for kind in CELL_KINDS]
        return Genotype("darts", tuple(cells))


def operation_set(operations: str | Sequence[str]) -> tuple[str, ...]:
    """The operations of a named set, or the given ones checked; raises InvalidValueError."""
    if isinstance(operations, str):
        if operations not in OPERATION_SETS:
            known = ", ".join(OPERATION_SETS)
            raise InvalidValueError(f"operations must be one of {known}, got {operations!r}")
        return OPERATION_SETS[operations]
    for name in operations:
        if name not in DARTS_OPERATIONS:
            known = ", ".join(DARTS_OPERATIONS)
            raise InvalidValueError(f"operations must be among {known}, got {name!r}")
    names = tuple(operations)
    if len(set(names)) < len(names):
        raise InvalidValueError(f"operations must not repeat, got {', '.join(names)}")
    if not set(names) - {"none"}:
        raise InvalidValueError("operations must hold at least one besides none")
    return names
