"""From projections along random directions to a gradient, with control variates, and how noisy it is."""

from collections.abc import Sequence
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


def average(drawn: Drawn, measured: Tensor, guesses: Sequence[Tensor] = ()) -> Average:
    """In every block, sum_k c_k h_k + mean_j (s_j - sum_k c_jk <h_k, u_j>) u_j; see `control_variates`.

    measured: the projections s, (Q,). guesses: the h_k, each (p,).
    """
    matrix, group = drawn.matrix, drawn.group
    measured = measured.to(matrix)
    known = torch.stack(list(guesses)).to(matrix) if guesses else matrix.new_empty(0, matrix.shape[1])
    parts, variances, coefficients = [], [], []
    for rows, columns in drawn.blocks:
        directions, left = matrix[rows, columns], measured[rows]
        part = torch.zeros_like(directions[0])
        if guesses:
            products = directions @ known[:, columns].T
            fit = fitted(left, products, group)
            left = left - (fit * products).sum(dim=1)
            coefficients.append(fit.mean(dim=0))
            part = coefficients[-1] @ known[:, columns]
        count = len(directions)
        parts.append(part + left @ directions / count)
        if drawn.independent and count > group:
            terms = (left[:, None] * directions).reshape(-1, group, directions.shape[1]).mean(dim=1)
            variances.append(terms.var(dim=0).sum() / len(terms))
    whole = len(variances) == len(drawn.blocks)
    return Average(
        torch.cat(parts),
        torch.stack(variances).sum() if whole else None,
        torch.stack(coefficients) if guesses else known.new_empty(len(drawn.blocks), 0),
    )
