"""Cheap guesses of the indirect part that take noise out of SGE, and how much to trust each of them.

With guesses h_k and projections s_j along directions u_j, the estimate of the indirect part is

    sum_k c_k h_k + (1/Q) sum_j (s_j - sum_k c_jk <h_k, u_j>) u_j,     c_k the mean of c_jk over j.

c_j is fitted by least squares to the projections of the other directions, so that for independent directions
it says nothing about u_j and the estimate stays unbiased, whatever the guesses are. What a guess explains is
no longer measured by few random directions: the noise scales with what is left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgenas.bilevel.finite_difference import one_step_indirect
from sgenas.bilevel.problem import BilevelProblem, Trajectory
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

RADIUS = 0.01


@dataclass(frozen=True)
class Known:
    """What is known before any direction is followed, and what a guess can be made from.

    problem, alphas, the N inner batches, the unperturbed trajectory on them, v = d L_val / d w at its end,
    and `memory`, the indirect part of the estimate before this one, None at the first.
    """

    problem: BilevelProblem
    alphas: Tree
    batches: Sequence[Any]
    trajectory: Trajectory
    v: Tree
    memory: Tree | None


Variate = Callable[[Known], Tree | None]
"""A guess of the indirect part, shaped as the alphas; None where there is none yet."""


def finite_difference(known: Known) -> Tree:
    """DARTS' one-step term at the last inner step, see `FiniteDifference`; one-sided, if the trajectory
    has what that takes."""
    return one_step_indirect(
        known.problem, known.trajectory, known.alphas, known.batches[-1], known.v, RADIUS
    )


def memory(known: Known) -> Tree | None:
    """The indirect part of the estimate before; free."""
    return known.memory


@dataclass(frozen=True)
class Named:
    """A variate that has a name: the guess, the forward and backward passes that it costs, and whether it
    needs d L_train / d alphas from the last step of the unperturbed trajectory."""

    guess: Variate
    passes: int = 0
    alpha_gradient: bool = False


VARIATES: dict[str, Named] = {
    "finite-difference": Named(finite_difference, 2),
    "one-sided": Named(finite_difference, 1, alpha_gradient=True),
    "memory": Named(memory),
}
"""`one-sided` is `finite-difference` without the pass on its other side: a worse guess, as unbiased an
estimate."""


def guesses(variates: Sequence[str | Variate], known: Known) -> list[Tree]:
    """Those that there are. Raises InvalidValueError for one that is not shaped as the alphas."""
    found = []
    for variate in variates:
        guess = (VARIATES[variate].guess if isinstance(variate, str) else variate)(known)
        if guess is None:
            continue
        ours = {name: tuple(alpha.shape) for name, alpha in known.alphas.items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in guess.items()}
        if theirs != ours:
            raise InvalidValueError(f"control_variate must be shaped as the alphas {ours}, got {theirs}")
        found.append({name: guess[name].detach() for name in ours})
    return found


def fitted(measured: Tensor, products: Tensor, group: int) -> Tensor:
    """Coefficients c (Q, K) from projections s (Q,) and <h_k, u_j> (Q, K), each from the other directions.

    group: directions that depend on each other and are left out together, side by side: 2 for antithetic
    pairs; 0 leaves none out, all have the same coefficients. Where fewer than K + 1 directions are left,
    there is nothing to fit and c is 1 / K: the mean of the guesses as they are.
    """
    count, variates = products.shape
    if not variates:
        return products
    if count - group < variates + 1:
        return torch.full_like(products, 1 / variates)
    if not group:
        return (torch.linalg.pinv(products) @ measured).expand(products.shape)
    rows = []
    for first in range(0, count, group):
        others = torch.ones(count, dtype=torch.bool, device=products.device)
        others[first : first + group] = False
        # the pseudo-inverse: two guesses may be the same, or zero
        rows.append(torch.linalg.pinv(products[others]) @ measured[others])
    return torch.stack(rows).repeat_interleave(group, dim=0)
