"""What each operation on each edge of a cell costs in the network that is built from the cell.

Costs are counted, not derived from formulas: the network is built once with all operations and run on the
meta device to find the inputs of each operation; then each is counted separately, as ``network_size`` counts
networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sgenas.errors import GenotypeError, InvalidValueError, require_choice
from sgenas.spaces.darts_space.network import DiscreteCell
from sgenas.spaces.darts_space.operations import make_operation
from sgenas.spaces.genotype import DARTS_OPERATIONS, Cell, Edge, Genotype, existing_nodes
from sgenas.spaces.nasbench201_space.network import SumCell
from sgenas.spaces.nasbench201_space.strings import OPERATIONS as BENCHMARK_OPERATIONS
from sgenas.spaces.networks import build, count_macs, count_parameters

FREE = "max_pool_3x3"
"""An operation without parameters and multiply-adds at any stride."""
DEFAULTS = {"darts": (36, 20, 4), "nasbench201": (16, 5, 3)}
"""Space -> channels, layers and nodes of the network in which its cells are compared."""


@dataclass(frozen=True)
class NetworkSpec:
    """The network whose cost is meant: what ``build`` returns for a cell of ``space``, and its images.

    ``nodes`` are the computed nodes of a cell, the other sizes those of ``networks.build``.
    """

    space: str
    channels: int
    layers: int
    nodes: int
    num_classes: int = 10
    input_channels: int = 3
    height: int = 32
    width: int = 32

    @classmethod
    def of(
        cls, space: str, channels: int | None = None, layers: int | None = None, nodes: int | None = None, **images: int
    ) -> "NetworkSpec":
        """With the usual channels, layers and nodes for None; InvalidValueError for an unknown space."""
        require_choice("space", space, tuple(DEFAULTS))
        given = (channels, layers, nodes)
        sizes = [usual if value is None else value for value, usual in zip(given, DEFAULTS[space], strict=True)]
        return cls(space, *sizes, **images)

    @property
    def images(self) -> Tensor:
        """One image on the meta device."""
        return torch.empty(1, self.input_channels, self.height, self.width, device="meta")

    def network(self, cells: Mapping[str, Cell]) -> Any:
        """The network of these cells on the meta device; raises what ``build`` raises."""
        with torch.device("meta"):
            return build(
                Genotype(self.space, tuple(cells.items())),
                channels=self.channels,
                layers=self.layers,
                num_classes=self.num_classes,
                input_channels=self.input_channels,
            ).eval()

    def skeleton(self, joined: Sequence[int]) -> Any:
        """The network with cells that cost nothing and whose outputs join ``joined`` nodes of each kind."""
        if self.space != "darts":
            return self.network({"cell": Cell((), (self.nodes,), self.nodes, 1)})
        cells = {}
        for kind, count in zip(("normal", "reduce"), joined, strict=True):
            nodes = range(2, 2 + count)
            cells[kind] = Cell(tuple(Edge(0, node, FREE) for node in nodes), tuple(nodes), count)
        return self.network(cells)


@dataclass(frozen=True)
class Placement:
    """All that the cost of running an operation once depends on; sizes are those of its input."""

    operation: str
    channels: int
    stride: int
    height: int
    width: int

    @property
    def module(self) -> nn.Module:
        """The operation on the default device."""
        return make_operation(self.operation, self.channels, self.stride)

    def count(self, quantity: str) -> int:
        """Its parameters (``"params"``) or its multiply-adds for one image (``"macs"``)."""
        with torch.device("meta"):
            module = self.module
            if quantity == "params":
                return count_parameters(module)
            return count_macs(module, torch.empty(1, self.channels, self.height, self.width))


Position = tuple[str, bool, str]
"""(kind of cell, whether the edge leaves an input of the cell, operation)."""


@lru_cache(maxsize=4)
def placements(spec: NetworkSpec) -> dict[Position, list[Placement]]:
    """The placements of each position in a cell, one for each cell of the network."""
    if spec.space == "darts":
        names = [name for name in DARTS_OPERATIONS if name != "none"]
        edges = [Edge(source, target, name) for source, target in ((0, 2), (2, 3)) for name in names]
        probe = Cell(tuple(edges), (2, 3), nodes=2)
        network = spec.network({"normal": probe, "reduce": probe})
    else:
        names = [name for name in BENCHMARK_OPERATIONS if name != "none"]
        edges = [Edge(source, source + 1, name) for source in (0, 1) for name in names]
        network = spec.network({"cell": Cell(tuple(edges), (spec.nodes,), spec.nodes, 1)})
    found: dict[Position, list[Placement]] = {}

    def watch(kind: str, entering: bool, stride: int, edge: Edge, operation: nn.Module) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            placement = Placement(edge.operation, inputs[0].shape[1], stride, *inputs[0].shape[2:])
            found.setdefault((kind, entering, edge.operation), []).append(placement)

        operation.register_forward_pre_hook(note)

    for cell in network.modules():
        if isinstance(cell, DiscreteCell | SumCell):
            reduction = isinstance(cell, DiscreteCell) and cell.reduction
            kind = "cell" if isinstance(cell, SumCell) else "reduce" if reduction else "normal"
            for edge, operation in zip(cell.edges, cell.operations, strict=True):
                entering = edge.source < (1 if isinstance(cell, SumCell) else 2)
                watch(kind, entering, 2 if reduction and entering else 1, edge, operation)
    with torch.no_grad():
        network(spec.images)
    return found


@dataclass(frozen=True, eq=False)
class CostTable:
    """The cost of a network as a sum over the operations of its cells:

        cost(genotype) = fixed[n] + sum over kinds, sum over kept (edge e, operation o) of values[kind][e, o]

    Attributes:
        values: {kind: (E, O)}, float64, each entry summed over all cells of that kind in the network.
        fixed: Cost of everything but the operations, by the number n of nodes that the output of each kind joins (in
            the order of ``values``): with fewer nodes the cells are narrower.
        drops_nodes: Whether nodes that do not exist (``existing_nodes``) are left out of the network with their
            edges, as in the cells of DARTS; in NAS-Bench-201 all operations count.
    """

    edges: tuple[tuple[int, int], ...]
    operations: tuple[str, ...]
    values: Mapping[str, Tensor]
    fixed: Mapping[tuple[int, ...], float]
    drops_nodes: bool

    def of(self, genotype: Genotype) -> float | None:
        """The cost of the network of ``genotype``; None if a cell is empty, so that there is no network.

        Raises:
            GenotypeError: If an edge or operation is not in the table.
        """
        total, joined = 0.0, []
        for kind, values in self.values.items():
            cell = genotype[kind]
            computed = range(cell.inputs, cell.inputs + cell.nodes)
            existing = existing_nodes(cell) if self.drops_nodes else computed
            for edge in cell.edges:
                place = (edge.source, edge.target)
                if place not in self.edges or edge.operation not in self.operations:
                    raise GenotypeError(f"cell {kind} must be of this space, got edge {edge}")
                if edge.target in existing and (edge.source < cell.inputs or edge.source in existing):
                    row, column = self.edges.index(place), self.operations.index(edge.operation)
                    total += values[row, column].item()
            joined.append(len(set(cell.concat) & set(existing)))
        return None if 0 in joined else self.fixed[tuple(joined)] + total


def cost_table(
    quantity: str,
    spec: NetworkSpec,
    edges: Sequence[tuple[int, int]],
    operations: Sequence[str],
    *,
    narrow: bool = False,
    milliseconds: Mapping[Placement, float] | None = None,
    rest: float = 0.0,
) -> CostTable:
    """The table of a quantity; params and macs agree with ``network_size`` for every genotype.

    With ``narrow`` cells may lack nodes (Fair DARTS), which makes the network narrower. Latencies need the
    ``milliseconds`` of each placement, and ``rest``, those of everything but the operations in cells with all nodes.
    """

    def fixed(joined: tuple[int, ...]) -> float:
        if quantity == "latency":
            return rest
        skeleton = spec.skeleton(joined)
        return count_parameters(skeleton) if quantity == "params" else count_macs(skeleton, spec.images)

    @cache
    def unit(placement: Placement) -> float:
        if milliseconds is None:
            return placement.count(quantity)
        if placement not in milliseconds:
            raise InvalidValueError(f"the latency table must hold {placement}", field="Budget.latency_table")
        return milliseconds[placement]

    stacked = spec.space == "darts"
    counts = range(1 if narrow else spec.nodes, spec.nodes + 1)
    numbers_joined = list(product(counts, repeat=2)) if stacked else [(1,)]
    totals = {position: float(sum(map(unit, each))) for position, each in placements(spec).items()}
    inputs = 2 if stacked else 1
    values = {}
    for kind in dict.fromkeys(kind for kind, _, _ in totals):
        rows = [[totals.get((kind, source < inputs, name), 0.0) for name in operations] for source, _ in edges]
        values[kind] = torch.tensor(rows, dtype=torch.float64)
    all_fixed = {joined: float(fixed(joined)) for joined in numbers_joined}
    return CostTable(tuple(edges), tuple(operations), values, all_fixed, stacked)
