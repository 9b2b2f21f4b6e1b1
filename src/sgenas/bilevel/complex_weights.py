"""Complex weights as real ones: real and imaginary part become a last dimension of two.

Estimators and optimizers see real tensors only, so a complex weight gets the numbers of two real ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgenas import tree
from sgenas.optim import InnerState
from sgenas.tree import Tree

if TYPE_CHECKING:
    from sgenas.bilevel.problem import BilevelProblem, Trajectory


def occur(state: InnerState) -> bool:
    """Whether there are complex weights."""
    return any(weight.is_complex() for weight in tree.tensors(state.weights))


def as_real(values: Tree) -> Tree:
    """The same tree with a last dimension (real, imaginary) for each complex tensor, as views."""
    return tree.map(lambda value: torch.view_as_real(value.resolve_conj()) if value.is_complex() else value, values)


def as_like(values: Tree, like: Tree) -> Tree:
    """Inverse of ``as_real``: complex tensors where those of ``like`` are, which has the same structure."""

    def joined(value: Tensor, other: Tensor) -> Tensor:
        # (not view_as_complex, which refuses slices at odd places of a joined matrix)
        return torch.complex(value[..., 0], value[..., 1]) if other.is_complex() else value

    return tree.map(joined, values, like)


def real_state(state: InnerState) -> InnerState:
    """The state in real tensors."""
    return replace(state, weights=as_real(state.weights), slots=as_real(state.slots))


def complex_state(state: InnerState, like: Tree) -> InnerState:
    """Inverse of ``real_state`` for weights ``like``; slots shaped as the weights become complex with them."""
    real = as_real(like)
    slots = {
        name: as_like(slot, like) if tree.same_structure(slot, real) else slot for name, slot in state.slots.items()
    }
    return replace(state, weights=as_like(state.weights, like), slots=slots)


def real_problem(problem: "BilevelProblem", like: Tree) -> "BilevelProblem":
    """The problem over real tensors whose losses see weights ``like``; it counts into the same counter."""

    def seen(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda weights, alphas, batch: loss(as_like(weights, like), alphas, batch)

    stacked = problem.stacked_inner_loss
    return replace(
        problem,
        inner_loss=seen(problem.inner_loss),
        outer_loss=seen(problem.outer_loss),
        stacked_inner_loss=None if stacked is None else seen(stacked),
        # (these losses are new at each call)
        known=problem.findings,
        replays=None,
    )


def run(
    problem: "BilevelProblem", state: InnerState, alphas: Tree, batches: Sequence[Any], **settings: Any
) -> "Trajectory":
    """``problem.run`` by way of real tensors. Gradients are d L / d Re w + i d L / d Im w, as in PyTorch."""
    like = state.weights
    real = real_problem(problem, like).run(real_state(state), alphas, batches, **settings)
    steps = (
        replace(
            step,
            before=complex_state(step.before, like),
            grad=as_like(step.grad, like),
            after=complex_state(step.after, like),
            graph=None,
        )
        for step in real.steps
    )
    return replace(real, end=complex_state(real.end, like), steps=tuple(steps))
