"""The DARTS search space (arXiv:1806.09055), a normal and a reduction cell, stacked, and its supernet."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sgenas.errors import require, require_choice
from sgenas.fields import option
from sgenas.spaces.cell_space import CellSettings, CellSpace
from sgenas.spaces.cells import MixedCell, Stem, Supernet
from sgenas.spaces.darts_space.network import STEM
from sgenas.spaces.discretization import Discretization, TopEdges
from sgenas.spaces.genotype import DARTS_OPERATIONS
from sgenas.spaces.kernels import join
from sgenas.spaces.nonlinearity import POOLINGS, Nonlinearity
from sgenas.spaces.normalization import normalize
from sgenas.spaces.ops import DARTS_BUILDERS, NodeState, PointwiseConv, SharedFactorizedReduce
from sgenas.spaces.relaxations import Relaxation
from sgenas.tree import TensorDict


class DartsSearchCell(MixedCell):
    """A cell whose output joins its nodes along the channels.

    Its two inputs are the outputs of the two previous cells, brought to ``channels`` channels and to one size. In a
    reduction cell the edges that leave the inputs have stride 2.
    """

    def __init__(
        self, settings: "DartsSettings", inputs: tuple[int, int], channels: int, reduction: bool, reduction_before: bool
    ) -> None:
        super().__init__(settings.nodes, 2, channels, settings.partial, settings.nonlinearity)
        self.reduction = reduction
        first = SharedFactorizedReduce if reduction_before else PointwiseConv
        self.input_before_last = first(inputs[0], channels)
        self.input_last = PointwiseConv(inputs[1], channels)
        self.make_edges(settings.operation_names, DARTS_BUILDERS)

    def stride(self, source: int) -> int:
        return 2 if self.reduction and source < 2 else 1

    def forward(self, before_last: NodeState, last: NodeState, mixing: Tensor) -> Tensor:
        """(B, M nodes * channels, H, W) from two node states and mixing (M, E, O), for M members."""
        terms = (self.input_before_last(before_last), self.input_last(last))
        values = self.node_values([normalize(term.value) for term in terms], mixing)
        return join(values[2:], mixing.shape[0])


class DartsSupernet(Supernet):
    """Stem, cells, global average pooling, linear classifier (arXiv:1806.09055).

    The cells at layers // 3 and 2 * layers // 3 halve the image and double the channels; all normal cells share the
    table mixing["normal"], all reduction cells mixing["reduce"].
    """

    def __init__(self, settings: "DartsSettings", input_channels: int, num_classes: int) -> None:
        super().__init__()
        channels, layers = settings.channels, settings.layers
        self.nonlinearity: Nonlinearity = settings.nonlinearity
        before_last = last = STEM * channels
        self.stem = Stem(input_channels, last)
        self.kinds: list[str] = []
        self.cells = nn.ModuleList()
        reduction_before = False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.kinds.append("reduce" if reduction else "normal")
            self.cells.append(DartsSearchCell(settings, (before_last, last), channels, reduction, reduction_before))
            before_last, last, reduction_before = last, settings.nodes * channels, reduction
        self.classifier = nn.Linear(last, num_classes)

    def features(self, images: Tensor, mixing: TensorDict) -> Tensor:
        before_last = last = NodeState(self.stem(images), self.nonlinearity)
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            value = cell(before_last, last, mixing[kind])
            before_last, last = last, NodeState(value, self.nonlinearity)
        return last.value.mean(dim=(2, 3))


class DartsSpace(CellSpace):
    """The DARTS space; see `DartsSettings` and `darts`.

    Alphas are {"normal": (E, O), "reduce": (E, O)} with E = nodes (nodes + 3) / 2 edges and O operations.
    """

    name: ClassVar[str] = "darts"
    kinds: ClassVar[tuple[str, ...]] = ("normal", "reduce")
    joins_nodes: ClassVar[bool] = True
    inputs: ClassVar[int] = 2
    network = DartsSupernet
    default_discretization: ClassVar[Discretization] = TopEdges()
    settings: "DartsSettings"

    @property
    def nodes(self) -> int:
        return self.settings.nodes

    @property
    def concat(self) -> tuple[int, ...]:
        return tuple(range(2, 2 + self.nodes))

    @property
    def genotype_space(self) -> str:
        # its cells are evaluated otherwise: drop path acts on nodes
        return "darts" if self.relaxation.competes else "fair-darts"


@dataclass(frozen=True)
class DartsSettings(CellSettings):
    """Settings of the DARTS space.

    Args:
        channels: Channels of the first cell, at least 2.
        layers: Number of cells, at least 3, so that both kinds occur.
        operations: Operations of an edge: ``darts`` (8, with ``none``), ``paper`` (7, without it) or a sequence of
            names; None for the method's, or ``darts`` without a method.
        partial_channels: K, 1 / K of the channels go through the operations (PC-DARTS); it must divide ``channels``
            into parts of at least 2. None for the method's, or 1 without a method.
        nodes: Computed nodes of a cell.
        pooling: Max pooling of the supernet: ``hard`` or ``smooth``.
    """

    name: ClassVar[str] = "darts"
    space_class: ClassVar[type[CellSpace]] = DartsSpace
    operation_sets: ClassVar[dict[str, tuple[str, ...]]] = {
        "darts": DARTS_OPERATIONS,
        "paper": tuple(name for name in DARTS_OPERATIONS if name != "none"),
    }
    smallest: ClassVar[dict[str, int]] = {"channels": 2, "layers": 3, "nodes": 1}

    nodes: int = 4
    pooling: str = option("hard", choices=POOLINGS)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("DartsSettings.pooling", self.pooling, POOLINGS)
        limit = f"a divisor of channels {self.channels} into parts of at least 2"
        good = self.channels // self.partial >= 2
        require(good, "DartsSettings.partial_channels", limit, self.partial_channels)

    @property
    def nonlinearity(self) -> Nonlinearity:
        return Nonlinearity(self.activation, self.pooling)


def darts(
    *,
    num_classes: int = 10,
    input_channels: int = 3,
    relaxation: Relaxation | None = None,
    discretization: Discretization | None = None,
    **settings: Any,
) -> CellSpace:
    """The DARTS search space.

    Args:
        **settings: Fields of `DartsSettings`. The other arguments are those of `CellSpace`; its default
            discretization is `TopEdges`.

    Example:
        >>> space = darts(channels=16, layers=8, num_classes=10)
    """
    return DartsSettings(**settings).build(input_channels, num_classes, relaxation, discretization)
