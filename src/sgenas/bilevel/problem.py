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
from sgenas.bilevel.sharing import Shards
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

Loss = Callable[[Tree, Tree, Any], Tensor]
"""loss(weights, alphas, batch) -> 0-d tensor."""


@dataclass(frozen=True)
class Step:
    """One inner step: the state before it, L_train and its gradient there, the state after it.

    alpha_grad: d L_train / d alphas there, where it was asked for.
    """

    before: InnerState
    loss: Tensor
    grad: Tree
    after: InnerState
    alpha_grad: Tree | None = None


@dataclass(frozen=True)
class Trajectory:
    """N inner steps: the state before the last, the gradient that it used, the state after it, N losses.

    last_alpha_grad: d L_train / d alphas where the last step begins, if `run` was asked for it.
    """

    before_last: InnerState
    last_grad: Tree
    end: InnerState
    losses: tuple[Tensor, ...]
    last_alpha_grad: Tree | None = None


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

    def outer_value(self, weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        """L_val, detached. One forward pass."""

        def value(part: Any) -> list[Tensor]:
            return [_scalar(self.outer_loss(weights, alphas, part), "outer_loss").detach()]

        with torch.no_grad():
            return self.over_shards(value, batch)[0]

    def outer_alpha_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_val, d L_val / d alphas at fixed weights), both detached. One forward and one backward pass."""
        leaves, fixed = trees.leaves(alphas), trees.detach(weights)
        return self._differentiated("outer_loss", fixed, leaves, leaves, batch)

    def inner_gradients(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree, Tree]:
        """(L_train, d L_train / d weights, d L_train / d alphas), detached. One forward and one backward."""
        return self._differentiated_by_both("inner_loss", weights, alphas, batch)

    def outer_gradients(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree, Tree]:
        """(L_val, d L_val / d weights, d L_val / d alphas), detached. One forward and one backward pass."""
        return self._differentiated_by_both("outer_loss", weights, alphas, batch)

    def _differentiated_by_both(
        self, name: str, weights: Tree, alphas: Tree, batch: Any
    ) -> tuple[Tensor, Tree, Tree]:
        """(loss, its gradients with respect to weights and alphas), detached."""
        weight_leaves, alpha_leaves = trees.leaves(weights), trees.leaves(alphas)
        function: Loss = getattr(self, name)

        def differentiated(part: Any) -> list[Tensor]:
            loss = _scalar(function(weight_leaves, alpha_leaves, part), name)
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

    def steps(
        self, state: InnerState, alphas: Tree, batches: Sequence[Any], *, alpha_gradient: bool = False
    ) -> Iterator[Step]:
        """Takes one inner step per batch, one whenever it is asked for.

        alpha_gradient: the last step has d L_train / d alphas too, out of the same backward pass.
        Raises InvalidValueError when there is no batch, when alphas are missing or not floating-point, and
        when the momentum buffers are not shaped as the weights.
        """
        if len(batches) < 1:
            raise InvalidValueError("inner_batches must hold at least 1 batch (N >= 1), got 0")
        _check_alphas(alphas)
        _check_buffers(state)
        for left, batch in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
            alpha_grad = None
            if alpha_gradient and left == 0:
                loss, grad, alpha_grad = self.inner_gradients(state.weights, alphas, batch)
            else:
                loss, grad = self.inner_gradient(state.weights, alphas, batch)
            after = self.inner_optimizer.step(state, grad)
            yield Step(state, loss, grad, after, alpha_grad)
            state = after

    def run(
        self, state: InnerState, alphas: Tree, batches: Sequence[Any], *, alpha_gradient: bool = False
    ) -> Trajectory:
        """Takes one inner step per batch, see `steps`; raises what it does."""
        losses = []
        for step in self.steps(state, alphas, batches, alpha_gradient=alpha_gradient):
            losses.append(step.loss)
            if len(losses) < len(batches):
                # else the weights before it would stay in memory during the next step
                del step
        return Trajectory(step.before, step.grad, step.after, tuple(losses), step.alpha_grad)


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


def _gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    # A loss that uses none of the leaves has no graph at all, which autograd.grad refuses.
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    # torch 2.9 gives zeros for an unused leaf that require a gradient themselves
    return [gradient.detach() for gradient in found]
