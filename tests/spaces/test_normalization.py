"""A node's sum: the hand-written derivatives against PyTorch's own, of first and second order."""

import pytest
import torch
from torch import Tensor

from sgenas.spaces.normalization import _plain_sum, weighted_sum

FLAGS = [(True,), (False,), (True, False, True), (False, False), (True, True)]


def parts(flags: tuple[bool, ...], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(len(flags))
    weights = [torch.randn(4, generator=generator, dtype=dtype) for _ in flags]
    # means far from zero: the sum must not lose digits to them
    terms = [torch.randn(3, 4, 5, 6, generator=generator, dtype=dtype) + 7 for _ in flags]
    return weights, terms


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [*((flags, None) for flags in FLAGS), *(((True, False, True), which) for which in ([0], [2], [4], [1, 3], [0, 5]))],
)
def test_weighted_sum_equals_the_plain_sum(flags: tuple[bool, ...], wanted: list[int] | None) -> None:
    """``wanted``: weights and terms that need a gradient, None for all."""
    results = []
    for function in (weighted_sum, _plain_sum):
        weights, terms = parts(flags)
        inputs = [*weights, *terms]
        leaves = [inputs[index].requires_grad_() for index in wanted or range(len(inputs))]
        out = function(weights, terms, flags)
        results.append([out, *torch.autograd.grad(out.sin().sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_normalized_terms_have_mean_0_and_variance_1() -> None:
    _weights, terms = parts((True,))
    out = weighted_sum([torch.ones(4, dtype=torch.float64)], terms, (True,))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64))
    variance = out.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, torch.ones(4, dtype=torch.float64), rtol=1e-4, atol=0)


def test_second_derivatives_of_the_sum() -> None:
    flags = (True, False)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in flags]
    terms = [torch.randn(2, 2, 2, 3, generator=generator, dtype=torch.float64) for _ in flags]
    inputs = [*weights, *(term.requires_grad_() for term in terms)]

    def call(*tensors: Tensor) -> Tensor:
        return weighted_sum(tensors[:2], tensors[2:], flags)

    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("case", ["linear loss", "one term from another"])
def test_second_derivatives_where_saved_tensors_need_them(case: str) -> None:
    """A linear loss: the incoming gradient needs no derivative, the saved tensors do."""
    results = []
    for function in (weighted_sum, _plain_sum):
        weights, terms = parts((False, True))
        base = terms[0].requires_grad_()
        if case == "linear loss":
            out = function(weights[:1], [base], (True,))
            loss = (out * torch.arange(float(out.numel()), dtype=torch.float64).reshape(out.shape)).sum()
        else:
            value = base * 1.0  # not a leaf, as in a cell
            loss = function(weights, [value, value.sin()], (False, True)).square().sum()
        (first,) = torch.autograd.grad(loss, base, create_graph=True)
        results.append([first, torch.autograd.grad(first.square().sum(), base)[0]])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
