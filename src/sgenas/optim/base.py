"""What an inner optimizer is, and what hypergradient estimators ask of it.

The functions here derive everything from ``step``: its vector-Jacobian products by automatic differentiation,
and differences of its results by taking steps. An optimizer may offer closed-form shortcuts, methods named
like these functions. A shortcut counts only if its class also defines ``step`` or inherits it, so that a
subclass that overrides ``step`` gets the general way.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sgenas import tree
from sgenas.device import moved
from sgenas.errors import InvalidValueError, require
from sgenas.registry import Registry
from sgenas.tree import Tree


@dataclass(frozen=True)
class InnerState:
    """State of the inner optimization.

    Attributes:
        weights: The inner variables w.
        slots: What the optimizer carries from step to step, by name: ``{"momentum": ...}``, each a tree.
        step: Number of steps taken.
        grad_norm: Gradient norm of the last step before clipping, 0-d; None if it is not measured.
    """

    weights: Tree
    slots: dict[str, Tree] = field(default_factory=dict)
    step: int = 0
    grad_norm: Tensor | None = None


class InnerOptimizer(Protocol):
    """An inner optimizer. Both methods are pure; ``step`` must be differentiable by torch.autograd for the
    estimators that differentiate it (``Unrolled``, ``FiniteDifference``)."""

    def init(self, weights: Tree) -> InnerState:
        """The state before the first step, from copies of ``weights``."""
        ...

    def step(self, state: InnerState, grad: Tree) -> InnerState:
        """The state after one step with ``grad`` = d L / d weights."""
        ...


INNER_OPTIMIZERS: Registry[type[Any]] = Registry("optimizer", "sgenas.inner_optimizers")
"""Optimizer classes by name."""


def offers(optimizer: InnerOptimizer, name: str) -> bool:
    """Whether the attribute ``name`` describes the ``step`` that the optimizer has."""

    def owner(attribute: str) -> type | None:
        return next((kind for kind in type(optimizer).__mro__ if attribute in vars(kind)), None)

    shortcut, step = owner(name), owner("step")
    return shortcut is not None and step is not None and issubclass(shortcut, step)


def is_elementwise(optimizer: InnerOptimizer) -> bool:
    """Whether ``step`` treats all entries alike (apart from the norm of the gradient), so that the tensors of
    a tree may be joined to one. An optimizer says so by an attribute ``elementwise = True``."""
    return offers(optimizer, "elementwise") and bool(optimizer.elementwise)  # type: ignore[attr-defined]


def can_join(optimizer: InnerOptimizer, weights: Tree) -> bool:
    """Whether ``optimizer`` steps through the `joined` weights as through these: elementwise, and all of one type."""
    return is_elementwise(optimizer) and len({weight.dtype for weight in tree.tensors(weights)}) == 1


def joined(values: Tree) -> Tree:
    """A tree of one vector with all entries."""
    return {"all": tree.flatten(values)}


def joined_state(state: InnerState) -> InnerState:
    """``state`` with its weights and each slot `joined`."""
    return InnerState(joined(state.weights), {name: joined(slot) for name, slot in state.slots.items()}, state.step)


def _is_better_joined(optimizer: InnerOptimizer, grad: Tree) -> bool:
    """Whether a step is differentiated with all entries in one tensor: on a GPU, where each tensor costs kernels."""
    values = tree.tensors(grad)
    return len(values) > 1 and values[0].device.type == "cuda" and can_join(optimizer, grad)


def step_vjp(
    optimizer: InnerOptimizer, state: InnerState, grad: Tree, weights: Tree, slots: dict[str, Tree] | None = None
) -> tuple[Tree, dict[str, Tree], Tree]:
    """Backpropagates through one step.

    Args:
        optimizer: The inner optimizer. A shortcut is ``optimizer.step_vjp(grad, weights, slots)``.
        state: The state before the step.
        grad: The gradient that the step used.
        weights: Adjoint of the weights after the step.
        slots: Adjoint of the slots after the step; None for zero.

    Returns:
        Adjoints of the weights and slots before the step, and of ``grad``: without ``slots``
        (d w' / d grad)^T ``weights``.

    Raises:
        InvalidValueError: If torch.autograd finds no dependence of the step on ``grad``.
    """
    if offers(optimizer, "step_vjp"):
        return optimizer.step_vjp(grad, weights, slots)  # type: ignore[attr-defined]
    if _is_better_joined(optimizer, grad):
        adjoints = None if slots is None else {name: joined(slot) for name, slot in slots.items()}
        w, s, g = step_vjp(optimizer, joined_state(state), joined(grad), joined(weights), adjoints)
        apart = {name: tree.unflatten(slot["all"], grad) for name, slot in s.items()}
        return tree.unflatten(w["all"], grad), apart, tree.unflatten(g["all"], grad)
    before = tree.map(lambda x: x.detach().requires_grad_(x.is_floating_point()), (state.weights, state.slots, grad))
    with torch.enable_grad():
        after = optimizer.step(InnerState(before[0], before[1], state.step), before[2])
    results = tree.tensors((after.weights, {} if slots is None else after.slots))
    pairs = zip(results, tree.tensors((weights, slots or {})), strict=True)
    used = [pair for pair in pairs if pair[0].requires_grad]
    leaves = tree.tensors(before)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    parts = iter(torch.autograd.grad([r for r, _ in used], wanted, [c for _, c in used], allow_unused=True))
    found = [next(parts) if leaf.requires_grad else None for leaf in leaves]
    if all(part is None for part in found[-len(tree.tensors(grad)) :]):
        limit = "differentiable by torch.autograd (without torch.no_grad) for this estimator, or have a step_vjp"
        raise InvalidValueError(f"step of the inner optimizer must be {limit}", field="inner_optimizer")
    w, s, g = tree.rebuild(before, [torch.zeros_like(leaves[i]) if f is None else f for i, f in enumerate(found)])
    return w, s, g


def projection(
    optimizer: InnerOptimizer, origin: InnerState, origin_grad: Tree, origin_end: InnerState, v: Tree
) -> Callable[[InnerState, Tree], Tensor]:
    """Compares steps with the step from ``origin`` with ``origin_grad`` to ``origin_end``.

    Returns:
        A function ``(state, grad)`` -> <w' - w'_origin, v>, a 0-d tensor; w' is the result of the step. A
        shortcut ``optimizer.projection(origin, origin_grad, v)`` returns the same without making w'.
    """
    if offers(optimizer, "projection"):
        return optimizer.projection(origin, origin_grad, v)  # type: ignore[attr-defined]

    def compare(state: InnerState, grad: Tree) -> Tensor:
        return tree.dot(tree.subtract(optimizer.step(state, grad).weights, origin_end.weights), v)

    return compare


def require_optimizers(optimizers: dict[str, Any]) -> None:
    """Raises InvalidValueError for the first of {field: value} that has not what an optimizer has, and is not None."""
    for name, value in optimizers.items():
        good = hasattr(value, "init") and hasattr(value, "step") and not isinstance(value, type)
        require(value is None or good, name, "an optimizer, as sgenas.optim.SGD(lr=0.1) is one", value)


def with_lr(optimizer: Any, lr: float) -> Any:
    """The optimizer with another learning rate, its attribute ``lr``."""
    if dataclasses.is_dataclass(optimizer):
        return dataclasses.replace(optimizer, lr=lr)  # type: ignore[type-var]
    other = copy.copy(optimizer)
    other.lr = lr
    return other


def l2_coefficient(optimizer: InnerOptimizer, weights: Tree) -> float:
    """c of the condition d L / d w + c w = 0 that holds where the steps of ``optimizer`` come to rest.

    A shortcut ``optimizer.l2_coefficient()`` returns it. Otherwise c follows from one step in float64: w
    enters only in the sum grad + c w, besides the plain w' = w + ..., so that
    (I - d w' / d w)^T u = -c (d w' / d grad)^T u for every u.

    Raises:
        InvalidValueError: If the condition does not have this form.
    """
    if offers(optimizer, "l2_coefficient"):
        return float(optimizer.l2_coefficient())  # type: ignore[attr-defined]
    state = optimizer.init(tree.map(Tensor.double, weights))
    noise = torch.randn(tree.size(weights), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # so short that it is not clipped
    grad = tree.unflatten(moved(1e-6 * noise / noise.norm(), tree.tensors(weights)[0].device), state.weights)
    by_weights, _, by_grad = step_vjp(optimizer, state, grad, tree.map(torch.ones_like, grad))
    by_weights, by_grad = tree.flatten(by_weights), tree.flatten(by_grad)
    ratio = (by_weights - 1) @ by_grad / (by_grad @ by_grad)
    coefficient, error = tree.numbers([ratio, (1 - by_weights + ratio * by_grad).norm()])
    if not error <= 1e-9 * len(noise):
        name = type(optimizer).__name__
        raise InvalidValueError(
            f"{name} has no fixed point of the form d L / d w + c w = 0, which implicit estimators need; use"
            " another estimator, or an optimizer with L2 regularization",
            field=name,
        )
    return coefficient


def check_settings(optimizer: Any) -> None:
    """Validates the settings ``lr``, ``weight_decay`` and ``grad_clip`` that SGD and Adam share."""
    name, decay, clip = type(optimizer).__name__, optimizer.weight_decay, optimizer.grad_clip
    require(0 < optimizer.lr < math.inf, f"{name}.lr", "> 0 and finite", optimizer.lr)
    require(0 <= decay < math.inf, f"{name}.weight_decay", ">= 0 and finite", decay)
    require(clip is None or clip > 0, f"{name}.grad_clip", "> 0 or None", clip)


def check_slots(optimizer: InnerOptimizer, state: InnerState, names: tuple[str, ...]) -> None:
    """Raises InvalidValueError unless ``state`` has the slots ``names``, shaped as the weights."""
    for name in names:
        slot = state.slots.get(name)
        # sums of tensors of other shapes would pass by broadcasting
        if slot is None or not tree.same_structure(slot, state.weights):
            raise InvalidValueError(
                f"state.slots must hold {name!r}, shaped as state.weights, for {optimizer}; use the state"
                " that its init returns",
                field="state.slots",
            )


def clipped(grad: Tree, max_norm: float | None, norm: Tensor) -> Tree:
    """``grad * min(1, max_norm / (norm + 1e-6))``, as torch.nn.utils.clip_grad_norm_ has it."""
    if max_norm is None:
        return grad
    return tree.scale(grad, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
