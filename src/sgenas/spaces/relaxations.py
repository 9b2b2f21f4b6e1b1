"""From alphas to mixing weights: continuous relaxations of the choice of an operation (Eq. 1).

A relaxation is a pure, differentiable function of the alphas. One that is stochastic draws its noise first,
once per alpha step, so that every pass of the step, perturbed or not, uses the same random numbers.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import tree
from sgenas.device import moved
from sgenas.errors import InvalidValueError, require
from sgenas.registry import Registry
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.spaces.base import SearchSpace

INITIAL_SCALE = 1e-3
"""Standard deviation of alphas at initialization, as in the DARTS code and AutoDL's."""


@dataclass(frozen=True)
class Relaxation:
    """Base of the relaxations.

    Attributes:
        weighs_edges: Whether there is a table ``<kind>_edges`` of alphas (E,) for each table (E, O).
        learns: Whether alphas are trained through it; if not a search leaves them where they start.
        competes: Whether the mixing weights of a row compete, as those of a softmax do.
    """

    weighs_edges: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    competes: ClassVar[bool] = True

    def for_space(self, space: "SearchSpace") -> Self:
        """The relaxation as it is in ``space``; InvalidValueError if it makes no sense there."""
        return self

    def at_epoch(self, epoch: int, epochs: int) -> Self:
        """The relaxation in epoch ``epoch``, counted from 0, of ``epochs``."""
        return self

    def initial_alphas(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> TensorDict:
        """1e-3 N(0, 1) for every entry, table by table, on the CPU."""
        return {name: INITIAL_SCALE * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    def draw_noise(self, alphas: TensorDict, generator: torch.Generator) -> TensorDict | None:
        """What one alpha step draws, by table, like the alphas in device and dtype; None if nothing."""
        return None

    def _with(self, **values: object) -> Self:
        """A copy with fields set that are no settings (``init=False``)."""
        other = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(other, name, value)
        return other

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        """Mixing weights {table: (..., O)} of alphas; without noise their mean.

        Args:
            alphas: {table: (..., O)}.
            noise: Of `draw_noise`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Softmax(Relaxation):
    """softmax over the operations of an edge (DARTS, Eq. 1)."""

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        return {name: table.softmax(dim=-1) for name, table in alphas.items()}


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """1 / (1 + exp(-alpha)) entry by entry, so that operations do not compete (Fair DARTS, arXiv:1911.12126).

    Alphas start at 0, mixing weights at 1/2.
    """

    competes: ClassVar[bool] = False

    def for_space(self, space: "SearchSpace") -> Self:
        if "none" in getattr(space, "operations", ()):
            raise InvalidValueError(
                "operations must not include none with Sigmoid, with which nothing competes; choose others",
                field="operations",
            )
        partial = getattr(space, "partial_channels", 1)
        require(partial == 1, "partial_channels", "1 with Sigmoid", partial)
        return self

    def initial_alphas(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> TensorDict:
        """Zeros; nothing is drawn."""
        return {name: torch.zeros(shape) for name, shape in shapes.items()}

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        return {name: table.sigmoid() for name, table in alphas.items()}


@dataclass(frozen=True)
class EdgeNormalizedSoftmax(Relaxation):
    """Softmax over operations times softmax over the edges that enter a node (PC-DARTS, arXiv:1907.05737).

    Each table (E, O) has a companion ``<kind>_edges`` (E,), whose softmax over the edges of a node is the
    weight of the edge: m[e, o] = softmax(edges)[e] softmax(alpha[e])[o]. Both are alphas.
    """

    weighs_edges: ClassVar[bool] = True
    # number of edges that enter each node, set by `for_space`
    groups: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)

    def for_space(self, space: "SearchSpace") -> Self:
        targets = [target for _, target in getattr(space, "edges", ())]
        groups = tuple(targets.count(node) for node in dict.fromkeys(targets))
        limit = f"one without weights of edges in the space {space.name}, whose nodes have one edge or none"
        require(max(groups, default=0) > 1, "relaxation", limit, self)
        return self._with(groups=groups)

    def initial_alphas(self, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> TensorDict:
        edges = {f"{name}_edges": shape[:1] for name, shape in shapes.items()}
        return super().initial_alphas({**shapes, **edges}, generator)

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        return {
            name: alphas[name].softmax(dim=-1) * self._edge_weights(alphas[edges]).unsqueeze(-1)
            for edges, name in edge_tables(alphas).items()
        }

    def _edge_weights(self, edges: Tensor) -> Tensor:
        # the edges of a node are consecutive, see `discretization.edges_of`
        nodes = torch.split(edges, list(self.groups), dim=-1)
        return torch.cat([node.softmax(dim=-1) for node in nodes], dim=-1)


@dataclass(frozen=True)
class GumbelSoftmax(Relaxation):
    """One operation per edge, sampled with probabilities softmax(alpha) (GDAS, arXiv:1910.04465).

        p = softmax((log softmax(alpha) + g) / tau),   g = -log(e), e ~ Exp(1)
        mixing = one_hot(argmax p) in value, p in gradient (straight-through)

    tau falls linearly from ``tau_max`` in the first epoch to ``tau_min`` in the last. The mean, without
    noise, is softmax(alpha), the probability of each operation. All operations are computed; the released
    code skips those that are not chosen and counts their output as 1 in the gradient.

    With ``hard`` the mixing weights are piecewise constant in the alphas: an estimator that perturbs alphas
    (SGE) then sees jumps, and no straight-through gradient.

    Args:
        tau_max: Temperature in the first epoch.
        tau_min: Temperature in the last epoch.
        hard: Whether mixing weights are one-hot; if not they are p itself (SNAS, arXiv:1812.09926).
    """

    tau_max: float = 10.0
    tau_min: float = 0.1
    hard: bool = True
    # share of the search that is done, in [0, 1], set by `at_epoch`
    progress: float = field(default=0.0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("tau_max", "tau_min"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"GumbelSoftmax.{name}", "> 0 and finite", value)

    @property
    def tau(self) -> float:
        """Current temperature."""
        return self.tau_max - (self.tau_max - self.tau_min) * self.progress

    def at_epoch(self, epoch: int, epochs: int) -> Self:
        return self._with(progress=epoch / max(1, epochs - 1))

    def draw_noise(self, alphas: TensorDict, generator: torch.Generator) -> TensorDict:
        found = {}
        for name, table in alphas.items():
            # in float64 on the CPU, never 0
            drawn = torch.empty(table.shape, dtype=torch.float64).exponential_(generator=generator)
            gumbel = -drawn.clamp_min(torch.finfo(torch.float64).tiny).log()
            found[name] = moved(gumbel.to(table.dtype), table.device)
        return found

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        if noise is None:
            return {name: table.softmax(dim=-1) for name, table in alphas.items()}
        return {name: self._sample(table, noise[name]) for name, table in alphas.items()}

    def _sample(self, table: Tensor, gumbel: Tensor) -> Tensor:
        soft = ((table.log_softmax(dim=-1) + gumbel) / self.tau).softmax(dim=-1)
        if not self.hard:
            return soft
        chosen = soft.detach().argmax(dim=-1, keepdim=True)
        # the bracket is exactly 0, so that the value is exactly one-hot
        return torch.zeros_like(soft).scatter(-1, chosen, 1.0) + (soft - soft.detach())


@dataclass(frozen=True)
class SinglePath(Relaxation):
    """The one-hot mixing weights of a random architecture in each step (Guo et al., arXiv:1904.00420).

    Architectures are drawn uniformly, whatever the alphas, which therefore have no gradient. Without noise it is
    `Softmax`.
    """

    learns: ClassVar[bool] = False
    space: Any = field(default=None, init=False, repr=False, compare=False)

    def for_space(self, space: "SearchSpace") -> Self:
        return self._with(space=space)

    def draw_noise(self, alphas: TensorDict, generator: torch.Generator) -> TensorDict:
        path = self.space.one_hot(self.space.derive(self.space.random_alphas(generator)))
        return {name: moved(table.to(alphas[name].dtype), alphas[name].device) for name, table in path.items()}

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        return Softmax()(alphas) if noise is None else noise


@dataclass(frozen=True)
class Dirichlet(Relaxation):
    """Mixing weights drawn from a Dirichlet distribution (DrNAS, arXiv:2006.10355).

        x ~ Dir(c),   c = elu(alpha) + 1

    The pathwise derivative is that of `torch.distributions.Dirichlet.rsample`,

        d x_i / d c_j = D_j (delta_ij - x_i),   D_j = -dF(x_j; c_j, C - c_j) / dc_j / (f (1 - x_j)),

    F and f the distribution function and density of x_j, a Beta variable, and C the sum of the c_j. The noise
    holds the sample x0, the slopes D / x0 and the concentration c0 of the alphas that it was drawn for. Near
    them the sample moves along

        x(c) = softmax(log x0 + (D / x0) (c - c0)),

    which is x0 with exactly the derivative above at c = c0, and smooth, so that perturbed passes share the
    sample. The mean, without noise, is c / C.
    """

    def draw_noise(self, alphas: TensorDict, generator: torch.Generator) -> TensorDict:
        own = tree.map(lambda table: concentration(table.detach()), alphas)
        # on the CPU in one copy, for which a GPU is waited for
        wide = tree.unflatten(tree.flatten(own).cpu(), own)
        return {name: self._draw(own[name], wide[name].double(), generator) for name in alphas}

    def _draw(self, own: Tensor, wide: Tensor, generator: torch.Generator) -> Tensor:
        # (3, ..., O): log x0, D / x0, c0. Drawn in float64 on the CPU, where small samples do not underflow.
        sample = torch._sample_dirichlet(wide, generator)
        total = wide.sum(dim=-1, keepdim=True).expand_as(wide)
        slope = torch._dirichlet_grad(sample, wide, total) / sample
        drawn = torch.stack([sample.log(), slope]).to(own.dtype)
        return torch.cat([moved(drawn, own.device), own[None]])

    def __call__(self, alphas: TensorDict, noise: TensorDict | None = None) -> TensorDict:
        if noise is None:
            own = {name: concentration(table) for name, table in alphas.items()}
            return {name: table / table.sum(dim=-1, keepdim=True) for name, table in own.items()}
        found = {}
        for name, table in alphas.items():
            log_sample, slope, center = noise[name].unbind()
            found[name] = (log_sample + slope * (concentration(table) - center)).softmax(dim=-1)
        return found


def edge_tables(alphas: TensorDict) -> dict[str, str]:
    """{``<kind>_edges``: ``<kind>``} for the tables of weights of edges (E,), see ``Relaxation.weighs_edges``."""
    # a choice of a module has a table (K,), whatever its name
    named = {f"{kind}_edges": kind for kind in alphas}
    return {edges: kind for edges, kind in named.items() if edges in alphas and alphas[kind].ndim > alphas[edges].ndim}


def concentration(alphas: Tensor) -> Tensor:
    """elu(alpha) + 1, the concentration of `Dirichlet`."""
    return F.elu(alphas) + 1


RELAXATIONS: Registry[type[Relaxation]] = Registry("relaxation", "sgenas.relaxations")
RELAXATIONS.register("softmax", Softmax)
RELAXATIONS.register("sigmoid", Sigmoid)
RELAXATIONS.register("edge-normalized-softmax", EdgeNormalizedSoftmax)
RELAXATIONS.register("gumbel-softmax", GumbelSoftmax)
RELAXATIONS.register("dirichlet", Dirichlet)
