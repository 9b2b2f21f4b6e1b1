"""A node's sum: the hand-written derivatives against PyTorch's own, of first and second order."""

import pytest
import torch
from torch import Tensor

from sgenas.spaces.normalisation import _plain_sum, weighted_sum

FLAGS = [(True,), (False,), (True, False, True), (False, False), (True, True)]


def parts(flags: tuple[bool, ...], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(len(flags))
    weights = [torch.randn(4, generator=generator, dtype=dtype) for _ in flags]
    # means far from zero: the sum must not lose digits to them
    terms = [torch.randn(3, 4, 5, 6, generator=generator, dtype=dtype) + 7 for _ in flags]
    return weights, terms


@pytest.mark.parametrize("flags", FLAGS)
def test_equals_the_plain_sum(flags: tuple[bool, ...]) -> None:
    results = []
    for function in (weighted_sum, _plain_sum):
        weights, terms = parts(flags)
        inputs = [tensor.requires_grad_() for tensor in (*weights, *terms)]
        out = function(weights, terms, flags)
        results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_normalised_terms_have_mean_0_and_variance_1() -> None:
    _weights, terms = parts((True,))
    out = weighted_sum([torch.ones(4, dtype=torch.float64)], terms, (True,))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64))
    variance = out.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, torch.ones(4, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("wanted", [[0], [2], [4], [1, 3], [0, 5]])
def test_only_what_needs_a_gradient_gets_one(wanted: list[int]) -> None:
    flags = (True, False, True)
    results = []
    for function in (weighted_sum, _plain_sum):
        weights, terms = parts(flags)
        inputs = [*weights, *terms]
        for index in wanted:
            inputs[index].requires_grad_()
        out = function(weights, terms, flags)
        results.append(torch.autograd.grad(out.sin().sum(), [inputs[index] for index in wanted]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_second_derivatives() -> None:
    flags = (True, False)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in flags]
    terms = [torch.randn(2, 2, 2, 3, generator=generator, dtype=torch.float64) for _ in flags]
    inputs = [*weights, *(term.requires_grad_() for term in terms)]

    def call(*tensors: Tensor) -> Tensor:
        return weighted_sum(tensors[:2], tensors[2:], flags)

    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_second_derivative_with_a_constant_gradient_above() -> None:
    """A linear loss: the gradient that arrives needs no derivative itself, what was saved does."""
    flags = (True,)
    second = []
    for function in (weighted_sum, _plain_sum):
        weights, terms = parts(flags)
        term = terms[0].requires_grad_()
        out = function(weights, terms, flags)
        weight = torch.arange(float(out.numel()), dtype=torch.float64).reshape(out.shape)
        (first,) = torch.autograd.grad((out * weight).sum(), term, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), term)[0])
    torch.testing.assert_close(*second, rtol=1e-9, atol=1e-9)


def test_second_derivative_where_one_term_is_made_from_another() -> None:
    flags = (False, True)
    second = []
    for function in (weighted_sum, _plain_sum):
        weights, terms = parts(flags)
        base = terms[0].requires_grad_()
        value = base * 1.0  # no leaf, as in a cell
        out = function(weights, [value, value.sin()], flags)
        (first,) = torch.autograd.grad(out.square().sum(), base, create_graph=True)
        second.append([first, torch.autograd.grad(first.square().sum(), base)[0]])
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
