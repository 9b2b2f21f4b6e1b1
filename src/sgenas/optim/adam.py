"""Adam and AdamW as pure steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgenas import tree
from sgenas.errors import require
from sgenas.optim.base import InnerState, check_settings, check_slots, clipped
from sgenas.tree import Tree


def _floor(dtype: torch.dtype) -> float:
    """The least s' of this type: without it the derivative of the root at 0 would be infinite."""
    limits = torch.finfo(dtype)
    # The root of ``tiny`` is far below eps, but in float16 it is larger than many gradients: there the least subnormal.
    return limits.tiny * limits.eps if dtype == torch.float16 else limits.tiny


@dataclass(frozen=True)
class Adam:
    r"""Adam (Kingma and Ba 2015, arXiv:1412.6980) with L2 regularization; the arithmetic of torch.optim.Adam.

        g' = g min(1, grad_clip / (||g|| + 1e-6)) + weight_decay w
        m' = beta_1 m + (1 - beta_1) g',   s' = beta_2 s + (1 - beta_2) g'^2
        w' = w - lr (m' / (1 - beta_1^t)) / (sqrt(s' / (1 - beta_2^t)) + eps)

    Args:
        lr: Learning rate, > 0.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the denominator, > 0.
        weight_decay: Coefficient of L2 regularization, >= 0.
        grad_clip: Largest gradient norm; None for no clipping.

    Raises:
        InvalidValueError: If a setting is out of range.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float | None = None

    elementwise: ClassVar[bool] = True
    decoupled: ClassVar[bool] = False
    """Whether weight decay shrinks the weights instead of entering the gradient."""

    def __post_init__(self) -> None:
        check_settings(self)
        name = type(self).__name__
        good = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(good, f"{name}.betas", "two numbers in [0, 1)", self.betas)
        require(0 < self.eps < math.inf, f"{name}.eps", "> 0 and finite", self.eps)

    def init(self, weights: Tree) -> InnerState:
        """The state before the first step, from copies of ``weights``."""
        copy = tree.clone(weights)
        return InnerState(copy, {name: tree.zeros_like(copy) for name in ("mean", "square")})

    def check(self, state: InnerState) -> None:
        """Raises InvalidValueError unless ``state`` fits this optimizer."""
        check_slots(self, state, ("mean", "square"))

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        """The state after one step with ``grad`` = d L / d weights."""
        update, slots, norm = self._update(state, grad)
        weights = state.weights if self._kept == 1 else tree.scale(state.weights, self._kept)
        return InnerState(tree.add(weights, update, -self._rate(state)), slots, state.step + 1, norm)

    @property
    def _kept(self) -> float:
        """Share of the weights that decoupled weight decay leaves."""
        return 1 - self.lr * self.weight_decay if self.decoupled else 1.0

    def _rate(self, state: InnerState) -> float:
        return self.lr / (1 - self.betas[0] ** (state.step + 1))

    def _update(self, state: InnerState, grad: Tree) -> tuple[Tree, dict[str, Tree], Tensor]:
        """m' / (sqrt(s' / (1 - beta_2^t)) + eps), the slots after the step and the gradient norm."""
        norm = tree.norm(grad)
        grad = clipped(grad, self.grad_clip, norm)
        if self.weight_decay and not self.decoupled:
            grad = tree.add(grad, state.weights, self.weight_decay)
        first, second = self.betas
        bias = math.sqrt(1 - second ** (state.step + 1))
        mean = tree.elementwise(
            lambda m, g: torch._foreach_lerp(m, g, 1 - first),
            lambda m, g: torch.lerp(m, g, 1 - first),
            state.slots["mean"],
            grad,
        )
        square = tree.elementwise(
            lambda s, g: torch._foreach_addcmul(torch._foreach_mul(s, second), g, g, value=1 - second),
            lambda s, g: torch.addcmul(s * second, g, g, value=1 - second),
            state.slots["square"],
            grad,
        )

        def ratio(m: list[Tensor], s: list[Tensor]) -> Sequence[Tensor]:
            floors = [_floor(value.dtype) for value in s]
            # (on a GPU a list of numbers costs more kernels than one)
            floored = torch._foreach_clamp_min(s, floors[0] if len({*floors}) == 1 else floors)
            roots = torch._foreach_sqrt(floored)
            return torch._foreach_div(m, torch._foreach_add(torch._foreach_div(roots, bias), self.eps))

        def single(m: Tensor, s: Tensor) -> Tensor:
            return m / (s.clamp_min(_floor(s.dtype)).sqrt() / bias + self.eps)

        return tree.elementwise(ratio, single, mean, square), {"mean": mean, "square": square}, norm

    def projection(self, origin: InnerState, origin_grad: Tree, v: Tree) -> Callable[[InnerState, Tree], Tensor]:
        """See ``optim.projection``; differences of updates, which are not lost in the rounding of w'."""
        base, rate = self._update(origin, origin_grad)[0], self._rate(origin)

        def compare(state: InnerState, grad: Tree) -> Tensor:
            moved = -rate * tree.dot(tree.subtract(self._update(state, grad)[0], base), v)
            if state is origin:
                return moved
            return moved + self._kept * tree.dot(tree.subtract(state.weights, origin.weights), v)

        return compare

    def l2_coefficient(self) -> float:
        """See ``optim.l2_coefficient``."""
        name, decay = type(self).__name__, self.weight_decay
        good = not (self.decoupled and decay)
        require(good, f"{name}.weight_decay", "0 for implicit estimators (or use Adam)", decay)
        return decay


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101); torch.optim.AdamW.

    As ``Adam``, but w is first scaled by 1 - lr weight_decay, and weight decay does not enter the gradient.

    Args:
        lr: Learning rate, > 0.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the denominator, > 0.
        weight_decay: Decoupled weight decay, >= 0.
        grad_clip: Largest gradient norm; None for no clipping.
    """

    weight_decay: float = 0.01
    decoupled: ClassVar[bool] = True
