"""Batch normalization with the statistics of the batch, and a node's sum of normalized terms.

zhat = (z - mean) / sqrt(var + 1e-5), mean and (biased) var of each channel over the batch and all pixels,
without scale and shift and without running statistics (arXiv:1502.03167; not affine, as in the DARTS search).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgenas import tree
from sgenas.spaces.kernels import hand_written, laid_out

EPSILON = 1e-5


def normalize(x: Tensor) -> Tensor:
    """zhat of x (B, C, H, W)."""
    return F.batch_norm(x, None, None, training=True, eps=EPSILON)


def affine_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """zhat with the scale and shift of `norm`, which may be those of M members."""
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def weighted_sum(weights: Sequence[Tensor], terms: Sequence[Tensor], normalized: Sequence[bool]) -> Tensor:
    """sum_k weights[k] * terms[k], where term k is normalized first if ``normalized[k]``.

    Args:
        weights: Each (C,), one factor per channel.
        terms: Each (B, C, H, W); at least one.
        normalized: One flag per term.
    """
    if hand_written(terms[0]):
        return _WeightedSum.apply(tuple(normalized), *weights, *terms)
    total = _plain_sum(weights, terms, normalized)
    recorded = total.requires_grad and not tree.transformed() and not torch.compiler.is_compiling()
    if recorded and total.device.type == "cuda":
        # a slice of the gradient of the cell's output: copied once, not by the derivative of every term
        total.register_hook(laid_out)  # type: ignore[no-untyped-call]
    return total


def _plain_sum(weights: Sequence[Tensor], terms: Sequence[Tensor], normalized: Sequence[bool]) -> Tensor:
    total: Tensor | None = None
    shift = torch.zeros_like(weights[0]) if any(normalized) else None
    for weight, term, flag in zip(weights, terms, normalized, strict=True):
        if flag:
            # the weight as scale of the normalization: one call, and one for both derivatives
            value = F.batch_norm(term, None, None, weight, shift, training=True, eps=EPSILON)
            total = value if total is None else total + value
        else:
            factor = weight.view(1, -1, 1, 1)
            total = factor * term if total is None else torch.addcmul(total, term, factor)
    assert total is not None
    return total


class _WeightedSum(torch.autograd.Function):
    """The sum without the normalized terms themselves, which are neither written to memory nor kept.

    A term needs its mean and variance, then enters as z * (weight / sqrt(var + epsilon)), and the means of all terms
    are subtracted from the sum at once. In the backward pass the weight is the scale of a batch normalization, whose
    derivative gives both gradients in one call.
    """

    @staticmethod
    def forward(ctx: Any, normalized: tuple[bool, ...], *tensors: Tensor) -> Tensor:
        count = len(normalized)
        weights, terms = tensors[:count], tensors[count:]
        total: Tensor | None = None
        shift: Tensor | None = None
        statistics: list[Tensor] = []
        for weight, term, flag in zip(weights, terms, normalized, strict=True):
            factor = weight
            if flag:
                mean, variance = torch.batch_norm_update_stats(term, None, None, 0.0)
                scale = (variance + EPSILON).rsqrt_()
                statistics += [mean, scale]
                factor = weight * scale
                shift = factor * mean if shift is None else shift.addcmul_(factor, mean)
            factor = factor.view(1, -1, 1, 1)
            total = term * factor if total is None else total.addcmul_(term, factor)
        assert total is not None
        if shift is not None:
            total.sub_(shift.view(1, -1, 1, 1))
        ctx.normalized = normalized
        ctx.save_for_backward(*weights, *terms, *statistics)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        # a slice of the gradient of the cell's output: copied once here, not by every call below
        grad = laid_out(grad)
        count = len(ctx.normalized)
        saved = ctx.saved_tensors
        weights, terms, statistics = saved[:count], saved[count : 2 * count], iter(saved[2 * count :])
        if torch.is_grad_enabled():
            # A second derivative is wanted, for which mean and variance must not count as constants.
            # Aliases, so that a term from which another is computed gets the derivative at fixed other terms.
            inputs = [value.view_as(value) for value in saved[: 2 * count]]
            wanted = [value for value, needs in zip(inputs, ctx.needs_input_grad[1:], strict=True) if needs]
            total = _plain_sum(inputs[:count], inputs[count:], ctx.normalized)
            found = iter(torch.autograd.grad(total, wanted, grad, create_graph=True))
            return None, *(next(found) if needs else None for needs in ctx.needs_input_grad[1:])
        to_weights: list[Tensor | None] = []
        to_terms: list[Tensor | None] = []
        for index, (weight, term, flag) in enumerate(zip(weights, terms, ctx.normalized, strict=True)):
            wants_weight, wants_term = (ctx.needs_input_grad[1 + index], ctx.needs_input_grad[1 + count + index])
            if flag:
                mask = [wants_term, wants_weight, False]
                to_term, to_weight, _ = torch.ops.aten.native_batch_norm_backward(
                    grad, term, weight, None, None, next(statistics), next(statistics), True, EPSILON, mask
                )
            else:
                to_term = grad * weight.view(1, -1, 1, 1) if wants_term else None
                to_weight = (grad * term).sum((0, 2, 3)) if wants_weight else None
            to_weights.append(to_weight)
            to_terms.append(to_term)
        return None, *to_weights, *to_terms
