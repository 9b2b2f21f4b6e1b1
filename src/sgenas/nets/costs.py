"""What each operation on each edge of a cell costs in the network that is built of the cell.

Counted, not computed: the network is built once with all operations in it and run on the meta device, to see
where each stands; then each is counted there by itself, as `network_size` counts whole networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from sgenas.errors import InvalidValueError
from sgenas.nets.darts import DartsNetwork, DiscreteCell
from sgenas.nets.nasbench201 import NasBench201Network, SumCell
from sgenas.nets.networks import build
from sgenas.nets.operations import make_operation
from sgenas.nets.sizes import count_macs, count_parameters
from sgenas.spaces.costs import CostTable
from sgenas.spaces.genotype import DARTS_OPERATIONS, Cell, Edge, Genotype
from sgenas.spaces.nasbench201_strings import INPUTS, KIND, NODES
from sgenas.spaces.nasbench201_strings import OPERATIONS as BENCHMARK_OPERATIONS

FREE = "max_pool_3x3"
"""An operation without parameters and multiply-adds at any stride."""
DEFAULTS = {"darts": (36, 20), "nasbench201": (16, 5)}
"""Space -> channels and layers of the network that its cells are compared in, as `build` has them."""


@dataclass(frozen=True)
class NetworkSpec:
    """The network whose cost is meant: what `build` makes of a cell of `space`, and its images.

    space: darts or nasbench201. channels, layers: as in `build`. nodes: computed nodes of a cell. height,
    width: of the images in pixels.
    """

    space: str
    channels: int
    layers: int
    nodes: int
    classes: int = 10
    input_channels: int = 3
    height: int = 32
    width: int = 32

    @classmethod
    def of(
        cls,
        space: str,
        channels: int | None = None,
        layers: int | None = None,
        nodes: int | None = None,
        **images: int,
    ) -> "NetworkSpec":
        """With the usual channels, layers and nodes where they are None; InvalidValueError for a space."""
        if space not in DEFAULTS:
            raise InvalidValueError(f"space must be one of {', '.join(DEFAULTS)}, got {space!r}")
        usual_channels, usual_layers = DEFAULTS[space]
        usual_nodes = 4 if space == "darts" else NODES
        return cls(
            space,
            usual_channels if channels is None else channels,
            usual_layers if layers is None else layers,
            usual_nodes if nodes is None else nodes,
            **images,
        )

    @property
    def images(self) -> Tensor:
        """One image, on the meta device."""
        return torch.empty(1, self.input_channels, self.height, self.width, device="meta")

    def network(self, cells: Mapping[str, Cell]) -> DartsNetwork | NasBench201Network:
        """The network of these cells on the meta device; raises what `build` raises."""
        with torch.device("meta"):
            return build(
                Genotype(self.space, tuple(cells.items())),
                channels=self.channels,
                layers=self.layers,
                classes=self.classes,
                input_channels=self.input_channels,
            ).eval()

    def skeleton(self, joined: Sequence[int]) -> DartsNetwork | NasBench201Network:
        """The network with cells that cost nothing, whose outputs join so many nodes of each kind."""
        if self.space != "darts":
            return self.network({KIND: Cell((), (NODES,), NODES, INPUTS)})
        cells = {}
        for kind, count in zip(("normal", "reduce"), joined, strict=True):
            nodes = range(2, 2 + count)
            cells[kind] = Cell(tuple(Edge(0, node, FREE) for node in nodes), tuple(nodes), count)
        return self.network(cells)


@dataclass(frozen=True)
class Place:
    """Where an operation stands: nothing else decides what running it once costs. Sizes are of its input."""

    operation: str
    channels: int
    stride: int
    height: int
    width: int

    @property
    def module(self) -> nn.Module:
        """The operation, on the device that is the default."""
        return make_operation(self.operation, self.channels, self.stride)

    def count(self, quantity: str) -> int:
        """Its parameters ("params") or its multiply-adds on one image."""
        with torch.device("meta"):
            module = self.module
            if quantity == "params":
                return count_parameters(module)
            return count_macs(module, torch.empty(1, self.channels, self.height, self.width))


Position = tuple[str, bool, str]
"""(kind of cell, whether the edge leaves an input of the cell, operation)."""


def places(spec: NetworkSpec) -> dict[Position, list[Place]]:
    """For every position in a cell the places that it stands for, one for each cell of the network."""
    if spec.space == "darts":
        names = [name for name in DARTS_OPERATIONS if name != "none"]
        edges = [Edge(source, target, name) for source, target in ((0, 2), (2, 3)) for name in names]
        probe = Cell(tuple(edges), (2, 3), nodes=2)
        network = spec.network({"normal": probe, "reduce": probe})
    else:
        names = [name for name in BENCHMARK_OPERATIONS if name != "none"]
        edges = [Edge(source, source + 1, name) for source in (0, 1) for name in names]
        network = spec.network({KIND: Cell(tuple(edges), (NODES,), NODES, INPUTS)})
    found: dict[Position, list[Place]] = {}

    def note(cell: DiscreteCell | SumCell, edge: Edge, operation: nn.Module) -> None:
        reduction = isinstance(cell, DiscreteCell) and cell.reduction
        entering = edge.source < (2 if isinstance(cell, DiscreteCell) else INPUTS)
        kind = ("reduce" if reduction else "normal") if isinstance(cell, DiscreteCell) else KIND

        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            channels, height, width = inputs[0].shape[1:]
            place = Place(edge.operation, channels, 2 if reduction and entering else 1, height, width)
            found.setdefault((kind, entering, edge.operation), []).append(place)

        operation.register_forward_pre_hook(see)

    for cell in network.modules():
        if isinstance(cell, DiscreteCell | SumCell):
            for edge, operation in zip(cell.edges, cell.operations, strict=True):
                note(cell, edge, operation)
    with torch.no_grad():
        network(spec.images)
    return found


def counted_table(
    quantity: str,
    spec: NetworkSpec,
    edges: Sequence[tuple[int, int]],
    operations: Sequence[str],
    *,
    narrow: bool = False,
) -> CostTable:
    """The table of "params" or "macs", in agreement with `network_size` on every genotype.

    edges, operations: rows and columns, as the space has them. narrow: whether cells may lack nodes (Fair
    DARTS), which makes the network narrower. Raises what `build` raises for sizes below their minimum.
    """
    known: dict[Place, int] = {}

    def unit(place: Place) -> float:
        if place not in known:
            known[place] = place.count(quantity)
        return known[place]

    fixed = {}
    for joined in _numbers_joined(spec, narrow):
        skeleton = spec.skeleton(joined)
        counted = count_parameters(skeleton) if quantity == "params" else count_macs(skeleton, spec.images)
        fixed[joined] = float(counted)
    values = _values(places(spec), unit, spec, edges, operations)
    return CostTable(quantity, tuple(edges), tuple(operations), values, fixed, spec.space == "darts")


def measured_table(
    spec: NetworkSpec,
    edges: Sequence[tuple[int, int]],
    operations: Sequence[str],
    milliseconds: Mapping[Place, float],
    rest: float,
    *,
    narrow: bool = False,
) -> CostTable:
    """The table of "latency" from milliseconds of each place; rest: of all that is no operation.

    `rest` is that of cells with all their nodes, and stands for narrower ones too. Raises InvalidValueError
    for a place that was not measured.
    """

    def unit(place: Place) -> float:
        if place not in milliseconds:
            raise InvalidValueError(f"latency table must have {place}, got none such")
        return milliseconds[place]

    fixed = dict.fromkeys(_numbers_joined(spec, narrow), rest)
    values = _values(places(spec), unit, spec, edges, operations)
    return CostTable("latency", tuple(edges), tuple(operations), values, fixed, spec.space == "darts")


def _numbers_joined(spec: NetworkSpec, narrow: bool) -> list[tuple[int, ...]]:
    """How many nodes the outputs of the kinds may join."""
    if spec.space != "darts":
        return [(1,)]
    return list(product(range(1 if narrow else spec.nodes, spec.nodes + 1), repeat=2))


def _values(
    where: Mapping[Position, list[Place]],
    unit: Callable[[Place], float],
    spec: NetworkSpec,
    edges: Sequence[tuple[int, int]],
    operations: Sequence[str],
) -> dict[str, Tensor]:
    inputs = 2 if spec.space == "darts" else INPUTS
    totals = {position: float(sum(map(unit, stand))) for position, stand in where.items()}
    return {
        kind: torch.tensor(
            [[totals.get((kind, source < inputs, name), 0.0) for name in operations] for source, _ in edges],
            dtype=torch.float64,
        )
        for kind in dict.fromkeys(kind for kind, _, _ in where)
    }
