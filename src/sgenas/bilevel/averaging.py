"""From projections along random directions to a gradient, with control variates, and how noisy it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas.bilevel.control_variates import fitted
from sgenas.bilevel.directions import Drawn


@dataclass(frozen=True)
class Average:
    """gradient: (p,). variance: the estimated mean squared length of its error, 0-d, None where it cannot be
    known. coefficients: of each guess in each block, (B, K)."""

    gradient: Tensor
    variance: Tensor | None
    coefficients: Tensor


COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda directions, left: left @ directions / len(directions),
    "least-squares": lambda directions, left: torch.linalg.pinv(directions) @ left,
}
"""name -> the gradient (p,) that directions (q, p) and what is left of their projections (q,) tell of."""


def average(drawn: Drawn, measured: Tensor, guesses: Sequence[Tensor] = (), combine: str = "mean") -> Average:
    """In every block, `mean`: sum_k c_k h_k + mean_j (s_j - sum_k c_jk <h_k, u_j>) u_j, see
    `control_variates`; `least-squares`: the g nearest to sum_k c_k h_k among those with the least
    sum_j (s_j - <g, u_j>)^2, with c fitted to all of the projections.

    measured: the projections s, (Q,). guesses: the h_k, each (p,). The variance is that of `mean`.
    """
    matrix, group = drawn.matrix, drawn.group
    measured = measured.to(matrix)
    known = torch.stack(list(guesses)).to(matrix) if guesses else matrix.new_empty(0, matrix.shape[1])
    parts, variances, coefficients = [], [], []
    for rows, columns in drawn.blocks:
        directions, guessed = matrix[rows, columns], known[:, columns]
        products = directions @ guessed.T
        # the mean stays unbiased where a direction has no say in its own coefficients
        fit = fitted(measured[rows], products, group if combine == "mean" else 0)
        left = measured[rows] - (fit * products).sum(dim=1)
        coefficients.append(fit.mean(dim=0))
        parts.append(coefficients[-1] @ guessed + COMBINATIONS[combine](directions, left))
        if combine == "mean" and drawn.independent and len(directions) > group:
            terms = (left[:, None] * directions).reshape(-1, group, directions.shape[1]).mean(dim=1)
            variances.append(terms.var(dim=0).sum() / len(terms))
    whole = len(variances) == len(drawn.blocks)
    return Average(
        torch.cat(parts), torch.stack(variances).sum() if whole else None, torch.stack(coefficients)
    )
