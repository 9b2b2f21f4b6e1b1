"""From projections along random directions to a gradient, with a control variate, and how noisy it is.

With a baseline h (a guess of the indirect gradient) and projections s_j along directions u_j, the estimate is

    c h + (1/Q) sum_j (s_j - c_j <h, u_j>) u_j,     c the mean of c_j.

c_j is fitted by least squares to the projections of the other directions, so that for independent directions
it is independent of u_j and the estimate stays unbiased for every h. The part of the gradient that h explains
is no longer measured by few random directions: the noise scales with the rest.
"""

import torch
from torch import Tensor

AGGREGATIONS = ("mean", "least-squares")


def aggregate(
    directions: Tensor, projections: Tensor, kind: str, baseline: Tensor | None = None, how: str = "mean"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient (p,) that projections s (Q,) along ``directions`` (Q, p) indicate, and what is known of it.

    Args:
        directions: The u_j.
        projections: The s_j.
        kind: How the directions were drawn.
        baseline: h of the module's docstring, (p,), or None.
        how: ``"mean"``, the formula of the module's docstring; or ``"least-squares"``, the g nearest to c h
            among those with the least sum_j (s_j - <g, u_j>)^2, c fitted to all projections.

    Returns:
        The gradient, and 0-d tensors by name: ``standard_error``, the estimated norm of its error, for means over
        independent directions; ``coefficient``, c, with a baseline.
    """
    # how many consecutive directions depend on each other by construction
    group = 2 if kind == "antithetic" else 1
    projections, known = projections.to(directions), dict[str, Tensor]()
    left, gradient = projections, torch.zeros_like(directions[0])
    if baseline is not None:
        row = baseline.to(directions)[None]
        products = directions @ row.T
        # the mean stays unbiased if a direction does not influence its own coefficient
        fit = _fitted(projections, products, group if how == "mean" else 0)
        left = projections - (fit * products).sum(dim=1)
        mean = fit.mean(dim=0)
        known["coefficient"], gradient = mean[0], mean @ row
    if how == "least-squares":
        return gradient + torch.linalg.pinv(directions) @ left, known
    gradient = gradient + left @ directions / len(directions)
    # orthogonal directions depend on each other
    if kind != "orthogonal":
        terms = (left[:, None] * directions).reshape(-1, group, directions.shape[1]).mean(dim=1)
        if len(terms) > 1:
            variance = terms.var(dim=0).sum() / len(terms)
        else:
            # E |<g, u> u|^2 is (p + 2) |g|^2 for Gaussian directions, of which |g|^2 is that of the mean
            variance = (1 - 1 / (terms.shape[1] + 2)) * terms.square().sum()
        known["standard_error"] = variance.sqrt()
    return gradient, known


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
