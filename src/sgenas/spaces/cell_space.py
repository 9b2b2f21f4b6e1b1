"""The spaces of cells: what DARTS and NAS-Bench-201 have in common."""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from sgenas import tree
from sgenas.errors import GenotypeError, require, require_choice
from sgenas.fields import option
from sgenas.spaces import networks
from sgenas.spaces.base import Network, Option, SearchSpace
from sgenas.spaces.discretization import Discretization, edges_of
from sgenas.spaces.genotype import Cell, Genotype
from sgenas.spaces.nonlinearity import ACTIVATIONS, Nonlinearity
from sgenas.spaces.relaxations import Relaxation, Softmax
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.spaces.costs import Budget, CostModel


@dataclass(frozen=True)
class CellSettings:
    """Base of the settings of cell spaces; a subclass documents ``channels``, ``layers`` and ``operations``.

    Args:
        partial_channels: K, 1 / K of the channels go through the operations (PC-DARTS); it must divide ``channels``.
            None for the method's, or 1 without a method.
        activation: Activation of the supernet: ``relu``, ``silu`` or ``softplus``.

    Attributes:
        name: Name of the space.
        space_class: What ``build`` makes.
        operation_sets: Named sets of operations; the first is the default, and has all operations.
        smallest: Least value of each size.
    """

    name: ClassVar[str]
    space_class: ClassVar[type["CellSpace"]]
    operation_sets: ClassVar[dict[str, tuple[str, ...]]]
    smallest: ClassVar[dict[str, int]] = {}

    channels: int = 16
    layers: int = 8
    operations: str | tuple[str, ...] | None = None
    partial_channels: int | None = None
    activation: str = option("relu", choices=tuple(ACTIVATIONS))

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for field, minimum in self.smallest.items():
            value = getattr(self, field)
            require(value >= minimum, f"{owner}.{field}", f">= {minimum}", value)
        good = self.partial >= 1 and self.channels % self.partial == 0
        limit = f"a divisor of channels {self.channels}"
        require(good, f"{owner}.partial_channels", limit, self.partial_channels)
        require_choice(f"{owner}.activation", self.activation, tuple(ACTIVATIONS))
        self._check_operations(f"{owner}.operations")

    def _check_operations(self, field: str) -> None:
        known = next(iter(self.operation_sets.values()))
        if isinstance(self.operations, str) and self.operations in known:
            object.__setattr__(self, "operations", (self.operations,))
        if isinstance(self.operations, str):
            require_choice(field, self.operations, (*self.operation_sets, *known))
        elif self.operations is not None:
            # lists come from JSON
            names = tuple(self.operations)
            object.__setattr__(self, "operations", names)
            for name in names:
                require_choice(field, name, known)
            require(len(set(names)) == len(names), field, "without repetitions", names)
            require(names not in ((), ("none",)), field, "more than none", names)

    @property
    def operation_names(self) -> tuple[str, ...]:
        """The operations, by name."""
        if isinstance(self.operations, tuple):
            return self.operations
        return self.operation_sets[self.operations or next(iter(self.operation_sets))]

    @property
    def partial(self) -> int:
        """K of partially connected cells, 1 if all channels go through the operations."""
        return 1 if self.partial_channels is None else self.partial_channels

    @property
    def nonlinearity(self) -> Nonlinearity:
        """Activation and pooling of the supernet."""
        return Nonlinearity(self.activation)

    def build(
        self,
        input_channels: int = 3,
        num_classes: int = 10,
        relaxation: Relaxation | None = None,
        discretization: Discretization | None = None,
    ) -> "CellSpace":
        """The space for images of ``input_channels`` channels in ``num_classes`` classes."""
        return self.space_class(self, input_channels, num_classes, relaxation, discretization)


class CellSpace(SearchSpace):
    """Base of the spaces of cells: one alpha table (E, O) per kind of cell, shared by all cells of the kind.

    The supernet takes (images, mixing), and holds no alphas, no buffers and no randomness. It is on the meta device:
    weights come with every call.

    Args:
        settings: Sizes and options.
        input_channels: Channels of the images, at least 1.
        num_classes: Number of classes, at least 2.
        relaxation: How alphas become mixing weights; None for `Softmax`, or the method's.
        discretization: How mixing weights become cells; None for the space's default, or the method's.

    Raises:
        InvalidValueError: If a size is out of range, or a part makes no sense in this space.

    Attributes:
        kinds: Names of the cells, which are also those of the alpha tables.
        joins_nodes: Whether the output of a cell joins its nodes (DARTS), or is the last (NAS-Bench-201).
        inputs: Input nodes of a cell.
        nodes: Computed nodes of a cell.
        concat: Nodes that the output of a cell joins.
        edges: (source, target) of the rows of an alpha table.
        operations: Names of its columns.
        partial_channels: K, 1 / K of the channels go through the operations (PC-DARTS).
    """

    kinds: ClassVar[tuple[str, ...]]
    joins_nodes: ClassVar[bool]
    inputs: ClassVar[int]
    network: ClassVar[Callable[..., nn.Module]]
    default_discretization: ClassVar[Discretization]

    def __init__(
        self,
        settings: Any,
        input_channels: int = 3,
        num_classes: int = 10,
        relaxation: Relaxation | None = None,
        discretization: Discretization | None = None,
    ) -> None:
        require(input_channels >= 1, "input_channels", ">= 1", input_channels)
        require(num_classes >= 2, "num_classes", ">= 2", num_classes)
        self.input_channels, self.num_classes = input_channels, num_classes
        self._take_settings(settings)
        self.relaxation, self.discretization = Softmax(), self.default_discretization
        self._take_parts(relaxation, discretization)

    @property
    @abstractmethod
    def nodes(self) -> int: ...

    @property
    @abstractmethod
    def concat(self) -> tuple[int, ...]: ...

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        return edges_of(self.nodes, self.inputs)

    def _take_settings(self, settings: Any) -> None:
        self.settings = settings
        self.operations: tuple[str, ...] = settings.operation_names
        self.partial_channels: int = settings.partial
        with torch.device("meta"):
            self.supernet = type(self).network(settings, self.input_channels, self.num_classes)

    def _take_options(self, options: Mapping[str, Any]) -> None:
        for field in fields(self.settings):
            if field.name in options:
                limit = f"of settings of {self.name} that are None by default"
                require(field.default is None, "method", limit, f"{field.name}: {options[field.name]!r}")
        unset = {name: value for name, value in options.items() if getattr(self.settings, name) is None}
        if unset:
            self._take_settings(replace(self.settings, **unset))

    def with_all_channels(self) -> Self:
        if self.partial_channels == 1:
            return self
        other = copy.copy(self)
        other._take_settings(replace(self.settings, partial_channels=1))
        return other

    @property
    def genotype_space(self) -> str:
        """``Genotype.space`` of the derived cells."""
        return self.name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {kind: (len(self.edges), len(self.operations)) for kind in self.kinds}

    @property
    def columns(self) -> dict[str, tuple[Option, ...]]:
        found: dict[str, tuple[Option, ...]] = dict.fromkeys(self.kinds, self.operations)
        if self.relaxation.weighs_edges:
            names = tuple(f"{source}->{target}" for source, target in self.edges)
            found |= {f"{kind}_edges": names for kind in self.kinds}
        return found

    def initial_weights(self, generator: torch.Generator) -> TensorDict:
        """Weights at initialization on the CPU, drawn as PyTorch draws them by default.

        Convolutions and linear layers: uniform in +-1 / sqrt(fan_in); normalization: scale 1, shift 0.
        """
        weights: TensorDict = {}
        for name, module in self.supernet.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                tensor = torch.empty(parameter.shape, dtype=torch.get_default_dtype())
                if isinstance(module, nn.BatchNorm2d):
                    tensor.fill_(1.0 if key == "weight" else 0.0)
                else:
                    bound = 1 / math.sqrt(module.weight[0].numel())
                    tensor.uniform_(-bound, bound, generator=generator)
                weights[f"{name}.{key}"] = tensor
        return weights

    def bind_mixing(self, weights: TensorDict, mixing: TensorDict) -> Network:
        """Logits (B, classes) of images (B, input_channels, H, W), for mixing weights {kind: (E, O)}."""
        return lambda images: torch.func.functional_call(self.supernet, weights, (images, mixing))

    def bind_members(self, weights: TensorDict, alphas: TensorDict, noise: TensorDict | None = None) -> Network:
        """Logits (M, B, classes) of M members on the same images."""
        # contiguous: with one channel, the weights of members that start alike are one number, and the backward pass
        # of batch_norm in channels-last memory reads past it
        flat = tree.map(lambda tensor: tensor.flatten(0, 1).contiguous(), weights)
        return self.bind_mixing(flat, self.mixing(alphas, noise))

    def derive(self, alphas: TensorDict) -> Genotype:
        """The current derived cells, see `discretization`.

        Raises:
            InvalidValueError: If the alphas have another shape, or are NaN.
        """
        mixing = self.mixing_to_derive(alphas)
        cells = []
        for kind, shape in self.shapes.items():
            require(mixing[kind].shape == shape, f"alphas.{kind}", f"of shape {shape}", mixing[kind].shape)
            edges = self.discretization(mixing[kind], self.edges, self.operations)
            cells.append((kind, Cell(edges, concat=self.concat, nodes=self.nodes, inputs=self.inputs)))
        return Genotype(self.genotype_space, tuple(cells))

    def one_hot(self, architecture: Genotype) -> TensorDict:
        """Mixing weights of a discrete cell: 1 for the operations that it has, 0 elsewhere.

        Raises:
            GenotypeError: If the cell is not of this space.
        """
        tables: TensorDict = {}
        for kind, shape in self.shapes.items():
            tables[kind] = torch.zeros(shape)
            for edge in architecture[kind].edges:
                ends = (edge.source, edge.target)
                if ends not in self.edges or edge.operation not in self.operations:
                    raise GenotypeError(f"cell {kind} must be of this space, got edge {edge}")
                tables[kind][self.edges.index(ends), self.operations.index(edge.operation)] = 1.0
        return tables

    def architecture_to_dict(self, architecture: Genotype) -> dict[str, Any]:
        return architecture.to_dict()

    def architecture_from_dict(self, data: Any) -> Genotype:
        return Genotype.from_dict(data)

    def build(self, architecture: Genotype, weights: TensorDict | None = None, **sizes: Any) -> nn.Module:
        """The discrete network of the cells, with fresh weights.

        Args:
            architecture: The cells.
            weights: Not used: the network is trained from scratch, and the supernet's weights do not fit it.
            **sizes: As in `networks.build`; classes and input channels are the space's by default.
        """
        defaults = {"num_classes": self.num_classes, "input_channels": self.input_channels}
        return networks.build(architecture, **(defaults | sizes))

    def cost_model(self, budget: "Budget", example: Any) -> "CostModel":
        from sgenas.spaces.budget import cell_cost_model

        return cell_cost_model(self, budget, example)
