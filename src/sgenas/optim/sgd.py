"""Stochastic gradient descent as a pure step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgenas import tree
from sgenas.errors import require
from sgenas.optim.base import InnerState, check_settings, check_slots, clipped
from sgenas.tree import Tree


@dataclass(frozen=True)
class SGD:
    r"""Gradient descent with momentum, weight decay and gradient clipping; the arithmetic of torch.optim.SGD.

        g' = g min(1, grad_clip / (||g|| + 1e-6)) + weight_decay w
        b' = momentum b + g'
        w' = w - lr b'                      (with nesterov: w - lr (g' + momentum b'))

    The norm is taken over all weights together, before weight decay, as torch.nn.utils.clip_grad_norm_
    followed by torch.optim.SGD does. ``SGD(lr)`` is the inner update of Algorithm 1 with p = lr.

    Args:
        lr: Learning rate, > 0.
        momentum: Momentum, in [0, 1).
        nesterov: Nesterov momentum instead of the plain one.
        weight_decay: Coefficient of L2 regularization, >= 0.
        grad_clip: Largest gradient norm; None for no clipping.

    Raises:
        InvalidValueError: If a setting is out of range.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    grad_clip: float | None = None

    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)
        require(0 <= self.momentum < 1, "SGD.momentum", "in [0, 1)", self.momentum)
        require(not self.nesterov or self.momentum > 0, "SGD.momentum", "> 0 with nesterov", self.momentum)

    def init(self, weights: Tree) -> InnerState:
        """The state before the first step, from copies of ``weights``."""
        copy = tree.clone(weights)
        return InnerState(copy, {"momentum": tree.zeros_like(copy)} if self.momentum else {})

    def check(self, state: InnerState) -> None:
        """Raises InvalidValueError unless ``state`` fits this optimizer."""
        check_slots(self, state, ("momentum",) if self.momentum else ())

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        """The state after one step with ``grad`` = d L / d weights."""
        norm = tree.norm(grad)
        update = clipped(grad, self.grad_clip, norm)
        if self.weight_decay:
            update = tree.add(update, state.weights, self.weight_decay)
        slots = {}
        if self.momentum:
            slots["momentum"] = buffer = tree.add(update, state.slots["momentum"], self.momentum)
            update = tree.add(update, buffer, self.momentum) if self.nesterov else buffer
        return InnerState(tree.add(state.weights, update, -self.lr), slots, state.step + 1, norm)

    def projection(self, origin: InnerState, origin_grad: Tree, v: Tree) -> Callable[[InnerState, Tree], Tensor]:
        r"""See ``optim.projection``. Up to a constant,

            <w', v> = (1 - lr' wd) <w, v> - lr' <clip(g), v> - lr m' <b, v>

        with lr' = lr and m' = m, for Nesterov lr' = lr (1 + m) and m' = m^2. No set of weights is made, and
        small differences are not lost in the rounding of w'.
        """
        momentum, lr = self.momentum, self.lr
        if self.nesterov:
            momentum, lr = momentum**2, lr * (1 + momentum)

        def moved(state: InnerState, grad: Tree) -> Tensor:
            scaled = clipped(grad, self.grad_clip, tree.norm(grad)) if self.grad_clip is not None else grad
            by_gradient = lr * tree.dot(scaled, v)
            if state is origin:
                return -by_gradient
            weights = tree.dot(tree.subtract(state.weights, origin.weights), v)
            carried = (1 - lr * self.weight_decay) * weights
            if self.momentum:
                buffers = tree.subtract(state.slots["momentum"], origin.slots["momentum"])
                carried = carried - self.lr * momentum * tree.dot(buffers, v)
            return carried - by_gradient

        base = moved(origin, origin_grad)
        return lambda state, grad: torch.sub(moved(state, grad), base)

    def step_vjp(self, grad: Tree, weights: Tree, slots: dict[str, Tree] | None) -> tuple[Tree, dict[str, Tree], Tree]:
        """See ``optim.step_vjp``."""
        buffer, update = self._cotangents(weights, slots)
        before = tree.add(weights, update, self.weight_decay) if self.weight_decay else weights
        carried = {"momentum": tree.scale(buffer, self.momentum)} if self.momentum else {}
        return before, carried, self._clip_cotangent(grad, update)

    def _cotangents(self, weights: Tree, slots: dict[str, Tree] | None) -> tuple[Tree, Tree]:
        """Those of b' and g' from those of w' and b'."""
        rate = -self.lr * self.momentum if self.nesterov else -self.lr
        buffer = tree.add(slots["momentum"], weights, rate) if slots else tree.scale(weights, rate)
        return buffer, tree.add(buffer, weights, -self.lr) if self.nesterov else buffer

    def _clip_cotangent(self, grad: Tree, u: Tree) -> Tree:
        """u, or with active clipping c (u - g <g, u> / (n ||g||)).

        Here n = ||g|| + 1e-6 and c = grad_clip / n.
        """
        if self.grad_clip is None:
            return u
        norm = tree.norm(grad)
        coefficient = torch.clamp(self.grad_clip / (norm + 1e-6), max=1.0)
        active = (coefficient < 1).to(norm.dtype)
        along = active * tree.dot(grad, u) / (norm + 1e-6) / norm.clamp_min(1e-30)
        return tree.scale(tree.add(u, grad, -along), coefficient)

    def l2_coefficient(self) -> float:
        """See ``optim.l2_coefficient``."""
        return self.weight_decay
