"""A bilevel problem: min over alphas of outer_loss(w*(alphas), alphas), w* = argmin over w of inner_loss.

Losses are pure: they take every tensor that they depend on, change nothing, and return a 0-d tensor. A batch
may be anything, since only the losses look into it; randomness that a loss needs belongs into its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel.inner import SGD, InnerState
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

Loss = Callable[[Tree, Tree, Any], Tensor]
"""loss(weights, alphas, batch) -> 0-d tensor."""


@dataclass(frozen=True)
class Step:
    """One inner step: the state before it, L_train and its gradient there, the state after it."""

    before: InnerState
    loss: Tensor
    grad: Tree
    after: InnerState


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
    """

    inner_loss: Loss
    outer_loss: Loss
    inner_optimizer: SGD
    stacked_inner_loss: Loss | None = None

    def init(self, weights: Tree) -> InnerState:
        """The first state of the inner optimisation, from copies of `weights`."""
        return self.inner_optimizer.init(weights)

    def inner_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_train, d L_train / d weights), both detached. One forward and one backward pass."""
        leaves = trees.leaves(weights)
        loss = _scalar(self.inner_loss(leaves, trees.detach(alphas), batch), "inner_loss")
        return loss.detach(), _gradient(loss, leaves)

    def stacked_inner_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> Tree:
        """d L_train / d weights of M pairs (w, alpha), every tensor (M, ...), detached."""
        if self.stacked_inner_loss is None:
            with torch.no_grad():
                # torch.func.grad, since vmap cannot enter autograd.grad
                gradient = torch.func.grad(self.inner_loss)
                return torch.func.vmap(gradient, in_dims=(0, 0, None))(weights, alphas, batch)
        leaves = trees.leaves(weights)
        losses = self.stacked_inner_loss(leaves, trees.detach(alphas), batch)
        members = next(iter(weights.values())).shape[0]
        if losses.shape != (members,):
            raise InvalidValueError(
                f"stacked_inner_loss must return shape ({members},), got {tuple(losses.shape)}"
            )
        # members do not share anything, so the gradient of the sum is each one's own
        return _gradient(losses.sum(), leaves)

    def inner_alpha_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_train, d L_train / d alphas), both detached. One forward and one backward pass."""
        leaves = trees.leaves(alphas)
        loss = _scalar(self.inner_loss(trees.detach(weights), leaves, batch), "inner_loss")
        return loss.detach(), _gradient(loss, leaves)

    def outer_value(self, weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        """L_val, detached. One forward pass."""
        with torch.no_grad():
            return _scalar(self.outer_loss(weights, alphas, batch), "outer_loss").detach()

    def outer_alpha_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_val, d L_val / d alphas at fixed weights), both detached. One forward and one backward pass."""
        leaves = trees.leaves(alphas)
        loss = _scalar(self.outer_loss(trees.detach(weights), leaves, batch), "outer_loss")
        return loss.detach(), _gradient(loss, leaves)

    def outer_gradients(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree, Tree]:
        """(L_val, d L_val / d weights, d L_val / d alphas), detached. One forward and one backward pass."""
        weight_leaves, alpha_leaves = trees.leaves(weights), trees.leaves(alphas)
        loss = _scalar(self.outer_loss(weight_leaves, alpha_leaves, batch), "outer_loss")
        gradients = _gradients(loss, [*weight_leaves.values(), *alpha_leaves.values()])
        weight_gradients = dict(zip(weight_leaves, gradients, strict=False))
        alpha_gradients = dict(zip(alpha_leaves, gradients[len(weight_leaves) :], strict=True))
        return loss.detach(), weight_gradients, alpha_gradients

    def steps(self, state: InnerState, alphas: Tree, batches: Sequence[Any]) -> Iterator[Step]:
        """Takes one inner step per batch, one whenever it is asked for.

        Raises InvalidValueError when there is no batch, when alphas are missing or not floating-point, and
        when the momentum buffers are not shaped as the weights.
        """
        if len(batches) < 1:
            raise InvalidValueError("inner_batches must hold at least 1 batch (N >= 1), got 0")
        _check_alphas(alphas)
        _check_buffers(state)
        for batch in batches:
            loss, grad = self.inner_gradient(state.weights, alphas, batch)
            after = self.inner_optimizer.step(state, grad)
            yield Step(state, loss, grad, after)
            state = after

    def run(self, state: InnerState, alphas: Tree, batches: Sequence[Any]) -> Trajectory:
        """Takes one inner step per batch; raises what `steps` does."""
        losses = []
        for step in self.steps(state, alphas, batches):
            losses.append(step.loss)
            if len(losses) < len(batches):
                # else the weights before it would stay in memory during the next step
                del step
        return Trajectory(step.before, step.grad, step.after, tuple(losses))


def _check_alphas(alphas: Tree) -> None:
    if not alphas:
        raise InvalidValueError("alphas must hold at least one tensor, got none")
    for name, alpha in alphas.items():
        if not alpha.is_floating_point():
            raise InvalidValueError(f"alphas must be floating-point tensors, got {name!r} of {alpha.dtype}")


def _check_buffers(state: InnerState) -> None:
    # sums of tensors of different shapes would pass by broadcasting
    for name, buffer in state.buffers.items():
        weight = state.weights.get(name)
        if weight is None or weight.shape != buffer.shape:
            wanted = "none" if weight is None else tuple(weight.shape)
            raise InvalidValueError(
                f"state.buffers must be shaped as state.weights, got {tuple(buffer.shape)} for {name!r},"
                f" whose weight is {wanted}"
            )


def _scalar(loss: Tensor, name: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InvalidValueError(f"{name} must return a 0-d tensor, got {got}")
    return loss


def _gradient(loss: Tensor, leaves: Tree) -> Tree:
    return dict(zip(leaves, _gradients(loss, list(leaves.values())), strict=True))


def _gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    # A loss that uses none of the leaves has no graph at all, which autograd.grad refuses.
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
