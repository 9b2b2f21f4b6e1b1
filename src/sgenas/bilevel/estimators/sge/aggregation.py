"""From projections along random directions to a gradient, with a control variate, and how noisy it is.

With a baseline h (a guess of the indirect gradient) and projections s_j along directions u_j, the estimate is

    c h + (1/Q) sum_j (s_j - c_j <h, u_j>) u_j,     c the mean of c_j.

c_j is fitted by least squares to the projections of the other directions, so that for independent directions
it is independent of u_j and the estimate stays unbiased for every h. The part of the gradient that h explains
is no longer measured by few random directions: the noise scales with the rest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.estimators.sge.directions import group_size
from sgenas.device import moved
from sgenas.tree import Tree

AGGREGATIONS = ("mean", "least-squares")


@dataclass(frozen=True)
class Aggregate:
    """gradient: (p,). variance: estimated mean squared norm of its error, 0-d, None if it is unknown.
    coefficient: c of the control variate, 0-d, None without one."""

    gradient: Tensor
    variance: Tensor | None
    coefficient: Tensor | None

    def report(self, diagnostics: dict[str, Tensor], alphas: Tree) -> Tree:
        """The gradient as a tree; adds ``coefficient`` and ``standard_error`` to the diagnostics."""
        device = tree.tensors(alphas)[0].device
        if self.coefficient is not None:
            diagnostics["coefficient"] = moved(self.coefficient, device)
        if self.variance is not None:
            diagnostics["standard_error"] = moved(self.variance.sqrt(), device)
        return tree.unflatten(self.gradient, alphas)


def aggregate(
    directions: Tensor, projections: Tensor, kind: str, baseline: Tensor | None = None, how: str = "mean"
) -> Aggregate:
    """The gradient that projections s (Q,) along ``directions`` (Q, p) indicate.

    Args:
        directions: The u_j.
        projections: The s_j.
        kind: How the directions were drawn.
        baseline: h of the module's docstring, (p,), or None.
        how: ``"mean"``, the formula of the module's docstring; or ``"least-squares"``, the g nearest to c h
            among those with the least sum_j (s_j - <g, u_j>)^2, c fitted to all projections.
    """
    projections, group = projections.to(directions), group_size(kind)
    left, gradient, coefficient = projections, torch.zeros_like(directions[0]), None
    if baseline is not None:
        row = baseline.to(directions)[None]
        products = directions @ row.T
        # the mean stays unbiased if a direction does not influence its own coefficient
        fit = _fitted(projections, products, group if how == "mean" else 0)
        left = projections - (fit * products).sum(dim=1)
        mean = fit.mean(dim=0)
        coefficient, gradient = mean[0], mean @ row
    if how == "least-squares":
        return Aggregate(gradient + torch.linalg.pinv(directions) @ left, None, coefficient)
    gradient = gradient + left @ directions / len(directions)
    variance = None
    # orthogonal directions depend on each other
    if kind != "orthogonal":
        terms = (left[:, None] * directions).reshape(-1, group, directions.shape[1]).mean(dim=1)
        if len(terms) > 1:
            variance = terms.var(dim=0).sum() / len(terms)
        else:
            # E |<g, u> u|^2 is (p + 2) |g|^2 for Gaussian directions, of which |g|^2 is that of the mean
            variance = (1 - 1 / (terms.shape[1] + 2)) * terms.square().sum()
    return Aggregate(gradient, variance, coefficient)


def _fitted(projections: Tensor, products: Tensor, group: int) -> Tensor:
    """Coefficients c_j (Q, 1) from projections (Q,) and <h, u_j> (Q, 1), each from the other directions.

    group: consecutive directions that are left out together; 0: none, so that all coefficients are the same.
    If fewer than three independent ones are left, c is 1: h as it is. From one, c would be a quotient of Gaussians,
    which has no mean; from two, one without a variance.
    """
    left, least = (len(products) // group - 1, 3) if group else (len(products), 2)
    if left < least:
        return torch.ones_like(products)
    if not group:
        return (torch.linalg.pinv(products) @ projections).expand(products.shape)
    rows = []
    for first in range(0, len(products), group):
        others = torch.ones(len(products), dtype=torch.bool, device=products.device)
        others[first : first + group] = False
        # the pseudo-inverse: h may be zero
        rows.append(torch.linalg.pinv(products[others]) @ projections[others])
    return torch.stack(rows).repeat_interleave(group, dim=0)
