r"""Errors of estimates, bias and variance apart, and squared lengths from few directions.

Of R estimates g_r of one true vector g, on the same batches, in units of ||g||^2:

    squared error = mean_r ||g_r - g||^2
    variance      = sum_r ||g_r - m||^2 / (R - 1),  m = mean_r g_r
    bias^2        = ||m - g||^2 - variance / R

The last term takes out what the noise in m itself adds, so that bias^2 is unbiased (and may come out a little
below 0 where there is none), and  squared error = bias^2 + variance  holds exactly.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Figures = dict[str, float | None]


def errors(estimates: Tensor, truth: Tensor) -> Figures:
    """Figures of R estimates (R, p) of a true vector (p,), with the formulas of the module's docstring.

    cosine: mean over the estimates, None where one of them is 0. relative_error: mean of ||g_r - g|| / ||g||.
    squared_error, bias, variance: the squares, in units of ||g||^2. R = 1 stands for a deterministic
    estimator: variance 0. All are None where the truth is 0.
    """
    length = truth.norm()
    if length == 0:
        return dict.fromkeys(("cosine", "relative_error", "squared_error", "bias", "variance"))
    distances = (estimates - truth).norm(dim=1) / length
    lengths = estimates.norm(dim=1)
    cosine = None
    if bool((lengths > 0).all()):
        cosine = float((estimates @ truth / (lengths * length)).mean())
    squared = float(distances.square().mean())
    count = len(estimates)
    variance = 0.0
    if count > 1:
        variance = float(estimates.var(dim=0).sum() / length.square())
    bias = float(((estimates.mean(dim=0) - truth).norm() / length).square()) - variance / count
    return {
        "cosine": cosine,
        "relative_error": float(distances.mean()),
        "squared_error": squared,
        "bias": bias,
        "variance": variance,
    }


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean, and its standard error s / sqrt(n), of those that are not None; None where too few are left."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers:
        return None, None
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in numbers) / (len(numbers) - 1)
    return mean, math.sqrt(variance / len(numbers))


def frame(fixed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows (F + K, p): a basis of the F rows of `fixed` (F, p), then K uniformly random ones.

    The random ones are uniform among the unit vectors at right angles to `fixed` and to each other. There are
    at most p rows; float64, on the CPU.
    """
    size = fixed.shape[1]
    drawn = torch.randn(max(count, 0), size, generator=generator, dtype=torch.float64)
    columns = torch.cat([fixed.double(), drawn])[:size].T
    basis, upper = torch.linalg.qr(columns)
    # the signs that make the first row point along the first of `fixed`
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(basis.dtype)
    return (basis * signs).T


def inner_product(first: Tensor, second: Tensor, fixed: int, size: int) -> float:
    """An unbiased estimate of <a, b> from <a, e_k> and <b, e_k>, (F + K,) each, e_k the rows of a `frame`.

    sum over the F fixed rows + (p - F) / K times the sum over the K random ones: what lies in the span of the
    fixed rows is exact, the rest is a sample. Exact for F + K = p; with K = 0 the rest is left out.
    """
    products = first * second
    exact, sampled = products[:fixed].sum(), products[fixed:]
    if len(sampled) == 0:
        return float(exact)
    return float(exact + (size - fixed) / len(sampled) * sampled.sum())
