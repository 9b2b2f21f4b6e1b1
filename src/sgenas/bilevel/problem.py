"""A bilevel problem: min over alphas of outer_loss(w*(alphas), alphas), w* = argmin over w of inner_loss.

Losses are pure: they take every tensor that they depend on, change nothing, and return a 0-d tensor. A batch
may be anything, since only the losses look into it; randomness that a loss needs belongs into its batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel.inner import SGD, InnerState
from sgenas.bilevel.sharing import Shards
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

Loss = Callable[[Tree, Tree, Any], Tensor]
"""loss(weights, alphas, batch) -> 0-d tensor."""


@dataclass(frozen=True)
class Trajectory:
    """N inner steps: the state before the last, the gradient that it used, the state after it, N losses."""

    before_last: InnerState
    last_grad: Tree
    end: InnerState
    losses: tuple[Tensor, ...]


@dataclass(frozen=True)
class BilevelProblem:
    """Eq. 2 of the paper with the optimiser that solves its inner part; see the module's docstring.

    inner_loss is L_train(w, alpha; batch), outer_loss is L_val(w, alpha; batch). stacked_inner_loss is
    L_train of M pairs (w, alpha) on one batch: every tensor of both trees is (M, ...), the result (M,). It is
    for problems that can do so faster than one pair after the other; without it torch.func.vmap does.
    shards: how batches are cut, None for not at all; both losses are then the mean over the shards.
    """

    inner_loss: Loss
    outer_loss: Loss
    inner_optimizer: SGD
    stacked_inner_loss: Loss | None = None
    shards: Shards | None = None

    def over_shards(self, compute: Callable[[Any], list[Tensor]], batch: Any) -> list[Tensor]:
        """The detached tensors that `compute` makes of a batch; with `shards`, their mean over its shards.

        Whatever is computed from a batch goes through here, so that estimators need not know of shards.
        """
        return compute(batch) if self.shards is None else self.shards.mean(compute, batch)

    def init(self, weights: Tree) -> InnerState:
        """The first state of the inner optimisation, from copies of `weights`."""
        return self.inner_optimizer.init(weights)

    def inner_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_train, d L_train / d weights), both detached. One forward and one backward pass."""
        leaves, fixed = trees.leaves(weights), trees.detach(alphas)
        return self._differentiated("inner_loss", leaves, fixed, leaves, batch)

    def stacked_inner_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> Tree:
        """d L_train / d weights of M pairs (w, alpha), every tensor (M, ...), detached."""
        gradients = self.over_shards(lambda part: self._stacked(weights, alphas, part), batch)
        return dict(zip(weights, gradients, strict=True))

    def _stacked(self, weights: Tree, alphas: Tree, batch: Any) -> list[Tensor]:
        if self.stacked_inner_loss is None:
            with torch.no_grad():
                # torch.func.grad, since vmap cannot enter autograd.grad
                gradient = torch.func.grad(self.inner_loss)
                found = torch.func.vmap(gradient, in_dims=(0, 0, None))(weights, alphas, batch)
            return [found[name] for name in weights]
        leaves = trees.leaves(weights)
        losses = self.stacked_inner_loss(leaves, trees.detach(alphas), batch)
        members = next(iter(weights.values())).shape[0]
        if losses.shape != (members,):
            raise InvalidValueError(
                f"stacked_inner_loss must return shape ({members},), got {tuple(losses.shape)}"
            )
        # members do not share anything, so the gradient of the sum is each one's own
        return _gradients(losses.sum(), list(leaves.values()))

    def inner_alpha_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_train, d L_train / d alphas), both detached. One forward and one backward pass."""
        leaves, fixed = trees.leaves(alphas), trees.detach(weights)
        return self._differentiated("inner_loss", fixed, leaves, leaves, batch)

    def outer_alpha_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_val, d L_val / d alphas at fixed weights), both detached. One forward and one backward pass."""
        leaves, fixed = trees.leaves(alphas), trees.detach(weights)
        return self._differentiated("outer_loss", fixed, leaves, leaves, batch)

    def outer_gradients(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree, Tree]:
        """(L_val, d L_val / d weights, d L_val / d alphas), detached. One forward and one backward pass."""
        weight_leaves, alpha_leaves = trees.leaves(weights), trees.leaves(alphas)

        def differentiated(part: Any) -> list[Tensor]:
            loss = _scalar(self.outer_loss(weight_leaves, alpha_leaves, part), "outer_loss")
            return [
                loss.detach(),
                *_gradients(loss, [*weight_leaves.values(), *alpha_leaves.values()]),
            ]

        loss, *gradients = self.over_shards(differentiated, batch)
        weight_gradients = dict(zip(weight_leaves, gradients, strict=False))
        alpha_gradients = dict(zip(alpha_leaves, gradients[len(weight_leaves) :], strict=True))
        return loss, weight_gradients, alpha_gradients

    def _differentiated(
        self, name: str, weights: Tree, alphas: Tree, leaves: Tree, batch: Any
    ) -> tuple[Tensor, Tree]:
        """(loss, its gradient with respect to `leaves`, the weights or the alphas), detached."""
        function: Loss = getattr(self, name)

        def differentiated(part: Any) -> list[Tensor]:
            loss = _scalar(function(weights, alphas, part), name)
            return [loss.detach(), *_gradients(loss, list(leaves.values()))]

        loss, *gradients = self.over_shards(differentiated, batch)
        return loss, dict(zip(leaves, gradients, strict=True))

    def run(self, state: InnerState, alphas: Tree, batches: Sequence[Any]) -> Trajectory:
        """Takes one inner step per batch. Raises InvalidValueError when there is no batch."""
        if len(batches) < 1:
            raise InvalidValueError("inner_batches must hold at least 1 batch (N >= 1), got 0")
        losses = []
        for batch in batches:
            before = state
            loss, grad = self.inner_gradient(before.weights, alphas, batch)
            state = self.inner_optimizer.step(before, grad)
            losses.append(loss)
        return Trajectory(before, grad, state, tuple(losses))


def _scalar(loss: Tensor, name: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InvalidValueError(f"{name} must return a 0-d tensor, got {got}")
    return loss


def _gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    # A loss that uses none of the leaves has no graph at all, which autograd.grad refuses.
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
