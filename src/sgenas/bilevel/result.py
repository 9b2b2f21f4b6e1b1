"""What an estimator gives back, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.trees import Tree


@dataclass(frozen=True)
class Cost:
    """Passes through a loss. A forward or backward pass is one evaluation of one loss on one batch; one on a
    part of a batch counts as that part, and one in forward mode, which carries a derivative along, as two."""

    forward: float = 0
    backward: float = 0
    inner_steps: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.forward + other.forward, self.backward + other.backward, self.inner_steps + other.inner_steps
        )


@dataclass(frozen=True)
class HypergradientResult:
    """An estimate of d L_val(w*(alpha), alpha) / d alpha (Eq. 3, Eq. 6) and what came with it.

    grad: the hypergradient, named and shaped as the alphas.
    direct: its first part, d L_val / d alpha at fixed weights Y^N.
    state: the inner state after the N unperturbed steps; `state.weights` is Y^N.
    inner_losses: L_train before each of the N steps, 0-d tensors. outer_loss: L_val at Y^N, a 0-d tensor.
    cost: passes and steps used. diagnostics: what the estimator can say of its own noise, by name.
    Nothing in it is attached to a graph.
    """

    grad: Tree
    direct: Tree
    state: InnerState
    inner_losses: tuple[Tensor, ...]
    outer_loss: Tensor
    cost: Cost
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def indirect(self) -> Tree:
        """The second part of Eq. 3, J^T d L_val / d w: `grad - direct`."""
        return trees.subtract(self.grad, self.direct)

    @property
    def direct_share(self) -> Tensor:
        """||direct||^2 / (||direct||^2 + ||indirect||^2), 0-d: 1 where there is no indirect part."""
        direct, indirect = trees.norm(self.direct).square(), trees.norm(self.indirect).square()
        tiny = torch.finfo(direct.dtype).tiny
        return direct / (direct + indirect).clamp_min(tiny)


class Estimator(Protocol):
    """A way to get a hypergradient: a frozen dataclass whose fields are its configuration.

    It writes nothing: no `.grad`, no weights, no buffers. Both sides of every difference see the same
    batches. `inner_batches` holds N batches, one an inner step; `outer_batch` is D_F of Algorithm 1.
    Estimators that draw random numbers take them from `generator`, on any device, and raise without one.
    `memory` is the indirect part of the estimate before this one, for those that make use of it.
    """

    def cost(self, inner_steps: int) -> Cost:
        """What one call with that many inner batches costs."""
        ...

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,
        memory: Tree | None = None,
    ) -> HypergradientResult: ...
