"""What can be searched: `SearchSpace`, the interface that a search uses."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sgenas.errors import require
from sgenas.spaces.discretization import Discretization
from sgenas.spaces.relaxations import Relaxation, edge_tables
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.spaces.costs import Budget, CostModel

Option = str | int
"""What an option of a choice is called."""
Network = Callable[..., Any]
"""A pure function of the network's inputs, called like the network."""


class SearchSpace(ABC):
    """A supernet, its architecture parameters (alphas), and how a discrete architecture is derived from them.

    A space holds no weights and no alphas: every method is a pure function of those that it is given.

    Attributes:
        name: Name of the kind of space (``"darts"``), as methods and registries know it.
        relaxation: How alphas become mixing weights.
        discretization: How mixing weights become an architecture.
        default_discretization: The discretization if neither the user nor the method has one; None for the present one.
        given: Those of both parts that the user chose for this space, by name; a search keeps them.
    """

    name: ClassVar[str]
    relaxation: Relaxation
    discretization: Discretization
    default_discretization: ClassVar[Discretization | None] = None
    given: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def columns(self) -> dict[str, tuple[Option, ...]]:
        """{alpha table: labels of its last dimension}."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{table: shape} of the mixing weights: (E, O) for E edges and O operations, (K,) for K options."""

    def with_parts(
        self,
        *,
        relaxation: Relaxation | None = None,
        discretization: Discretization | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """A copy with other parts.

        Args:
            relaxation: None keeps the present one; another one stays in a search, as if given at the start.
            discretization: The same.
            options: Values of a method for those settings of the space that are None.

        Raises:
            InvalidValueError: If a part makes no sense in this space.
        """
        other = copy.copy(self)
        if options:
            other._take_options(options)
        other._take_parts(relaxation, discretization)
        return other

    def _take_parts(self, relaxation: Relaxation | None, discretization: Discretization | None) -> None:
        """Takes the parts that are not None as the user's."""
        self.relaxation = (relaxation or self.relaxation).for_space(self)
        self.discretization = (discretization or self.discretization).for_space(self)
        parts = {"relaxation": relaxation, "discretization": discretization}
        self.given = dict(self.given) | {name: part for name, part in parts.items() if part is not None}

    def _take_options(self, options: Mapping[str, Any]) -> None:
        """Fills settings that are None."""
        raise NotImplementedError

    @abstractmethod
    def initial_weights(self, generator: torch.Generator) -> TensorDict:
        """Weights at initialization, by parameter name, on the CPU."""

    def initial_alphas(self, generator: torch.Generator) -> TensorDict:
        """Alphas at initialization, as the relaxation draws them, on the CPU."""
        return self.relaxation.initial_alphas(self.shapes, generator)

    def to(self, device: torch.device | str) -> Self:
        """The space with its buffers on ``device``; cell spaces have none."""
        return self

    def seeded(self, seed: int) -> Self:
        """The space whose network draws its random numbers from ``seed``; cell spaces draw none."""
        return self

    def without_dropout(self) -> Self:
        """The space whose network is measured, in which dropout is off; cell spaces have none."""
        return self

    def with_all_channels(self) -> Self:
        """The space whose operations have all channels, as in derived networks; not so partially connected cells."""
        return self

    def draw_noise(self, alphas: TensorDict, generator: torch.Generator) -> TensorDict | None:
        """The noise of a stochastic relaxation for one alpha step, None for a deterministic one.

        Every pass of the step gets the same noise, so that differences between perturbed passes see only the
        perturbation (common random numbers). It is like the alphas in device and dtype; the generator is on the CPU.
        """
        return self.relaxation.draw_noise(alphas, generator)

    def mixing(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        """Mixing weights of alphas, a pure and differentiable function of them.

        Args:
            alphas: As ``initial_alphas`` has them, or every tensor (M, ...) for M members.
            noise: Of ``draw_noise``; None for the mean of a stochastic relaxation, as evaluation needs it.
        """
        return self.relaxation(alphas, noise)

    def mixing_to_derive(self, alphas: TensorDict) -> TensorDict:
        """Mixing weights in float64 on the CPU, so that rounding makes no ties.

        Raises:
            InvalidValueError: If alphas are NaN, of which an argmax would take the first.
        """
        exact = {name: alpha.detach().cpu().double() for name, alpha in alphas.items()}
        # (a relaxation may have tables of its own)
        found = {name: table.cpu().double() for name, table in self.mixing(exact).items()}
        for name, table in found.items():
            require(not bool(table.isnan().any()), f"alphas.{name}", "numbers to derive an architecture from", "NaN")
        return found

    def bind(self, weights: TensorDict, alphas: TensorDict, noise: TensorDict | None = None) -> Network:
        """The supernet as a function of its inputs: pure, differentiable in weights, alphas and inputs."""
        return self.bind_mixing(weights, self.mixing(alphas, noise))

    @abstractmethod
    def bind_mixing(self, weights: TensorDict, mixing: TensorDict) -> Network:
        """``bind`` for given mixing weights."""

    def bind_members(self, weights: TensorDict, alphas: TensorDict, noise: TensorDict | None = None) -> Network | None:
        """``bind`` for M members in one call, with outputs (M, ...); None if the space cannot.

        Args:
            weights: Every tensor (M, ...).
            alphas: Every tensor (M, ...).
            noise: As in ``mixing``; all members share it.
        """
        return None

    @abstractmethod
    def derive(self, alphas: TensorDict) -> Any:
        """The current architecture: a `Genotype`, or {choice: option}."""

    def random_alphas(self, generator: torch.Generator) -> TensorDict:
        """N(0, 1) for every alpha, in float64 on the CPU: ``derive`` makes a random architecture of them.

        All alphas of a row are alike, so that each operation of an edge, each edge of a node, and each option of a
        choice is equally likely.
        """
        shapes = {name: table.shape for name, table in self.initial_alphas(torch.Generator()).items()}
        return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}

    def mutated_alphas(self, alphas: TensorDict, generator: torch.Generator) -> TensorDict:
        """A copy of ``random_alphas`` with one row drawn again, that of an edge or a choice, each equally likely."""
        found = {name: table.clone() for name, table in alphas.items()}
        rows: list[Tensor] = []
        edges = edge_tables(found)
        for name, table in found.items():
            rows += table.view(-1, 1 if name in edges else table.shape[-1])
        row = rows[int(torch.randint(len(rows), (), generator=generator))]
        row.copy_(torch.randn(row.shape, generator=generator, dtype=row.dtype))
        return found

    @abstractmethod
    def one_hot(self, architecture: Any) -> TensorDict:
        """Mixing weights of a discrete architecture: 1 for what it has, 0 elsewhere."""

    @abstractmethod
    def architecture_to_dict(self, architecture: Any) -> dict[str, Any]:
        """Plain data, ready for JSON."""

    @abstractmethod
    def architecture_from_dict(self, data: Any) -> Any:
        """Inverse of ``architecture_to_dict``."""

    @abstractmethod
    def build(self, architecture: Any, weights: TensorDict | None = None, **sizes: Any) -> nn.Module:
        """The network of an architecture, a plain module to train or export."""

    @abstractmethod
    def cost_model(self, budget: "Budget", example: Any) -> "CostModel":
        """What architectures of this space cost, and how to stay within ``budget``.

        Args:
            budget: Limits.
            example: Inputs of the network, for their shapes.
        """
