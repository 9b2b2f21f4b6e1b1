"""The inner optimiser: stochastic gradient descent as a pure step, and the state that it carries."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree


@dataclass(frozen=True)
class InnerState:
    """Where the inner optimisation stands.

    weights: the inner variable w. buffers: the momentum of each weight, zeros at the start, empty where the
    optimiser has none. step: number of steps taken. grad_norm: length of the gradient of the last one, before
    clipping, 0-d; None where there was none.
    """

    weights: Tree
    buffers: Tree
    step: int = 0
    grad_norm: Tensor | None = None


@dataclass(frozen=True)
class SGD:
    r"""Gradient descent with momentum, weight decay and clipping; the arithmetic of torch.optim.SGD.

    g' = g * min(1, grad_clip / (||g|| + 1e-6));  b' = momentum * b + g' + weight_decay * w;  w' = w - lr b'.

    The clipped norm is taken over all weights together, before weight decay is added, as
    torch.nn.utils.clip_grad_norm_ followed by torch.optim.SGD does. `SGD(lr)` is the inner update of
    Algorithm 1 with p = lr. Raises InvalidValueError for a setting out of its range.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    grad_clip: float | None = None

    def __post_init__(self) -> None:
        # written as "not (good)" so that nan is refused too
        if not 0 < self.lr < float("inf"):
            raise InvalidValueError(f"SGD.lr must be > 0 and finite, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise InvalidValueError(f"SGD.momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_decay < float("inf"):
            raise InvalidValueError(f"SGD.weight_decay must be >= 0 and finite, got {self.weight_decay}")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise InvalidValueError(f"SGD.grad_clip must be > 0 or None, got {self.grad_clip}")

    def init(self, weights: Tree) -> InnerState:
        """The state before the first step; `weights` are copied."""
        copy = trees.clone(weights)
        return InnerState(copy, trees.zeros_like(copy) if self.momentum else {})

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        """The state after one step along `grad` = d L / d weights; nothing given is changed."""
        if self.momentum and not state.buffers:
            raise InvalidValueError(
                f"SGD.momentum is {self.momentum} but state.buffers is empty: make it with this SGD.init"
            )
        length = trees.norm(grad)
        update = self.clipped(grad, length)
        if self.weight_decay:
            update = trees.add(update, state.weights, self.weight_decay)
        buffers = state.buffers
        if self.momentum:
            buffers = update = trees.add(update, buffers, self.momentum)
        return InnerState(trees.add(state.weights, update, -self.lr), buffers, state.step + 1, length)

    def clipped(self, grad: Tree, length: Tensor | None = None) -> Tree:
        """`grad`, scaled down to the norm `grad_clip` where it is longer. length: its norm, if known."""
        if self.grad_clip is None:
            return grad
        return trees.scale(grad, self._clip_coefficient(trees.norm(grad) if length is None else length))

    def pull_back(self, grad: Tree, cotangent: Tree) -> Tree:
        r"""v -> -(1/lr) (d w' / d g)^T v: how the step's result answers to its gradient g, scaled.

        This is v itself without clipping. Where clipping is active with coefficient c = grad_clip / n,
        n = ||g|| + 1e-6, it is c (v - g <g, v> / (n ||g||)).
        """
        if self.grad_clip is None:
            return cotangent
        length = trees.norm(grad)
        coefficient = self._clip_coefficient(length)
        active = (coefficient < 1).to(length.dtype)
        along = active * trees.dot(grad, cotangent) / (length + 1e-6) / length.clamp_min(1e-30)
        return trees.scale(trees.add(cotangent, grad, -along), coefficient)

    def _clip_coefficient(self, length: Tensor) -> Tensor:
        assert self.grad_clip is not None
        return torch.clamp(self.grad_clip / (length + 1e-6), max=1.0)
