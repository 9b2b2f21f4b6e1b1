"""The losses of a step: penalties, precision, and stacked members for any loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_searches import unstarted_cells
from torch import Tensor

from sgenas import SGE, tree
from sgenas.searching.objectives import _member_functions
from sgenas.spaces import BetaDecay

MEMBERS = 3


class Counted:
    """A stacked model: member m multiplies by factors[m]."""

    def __init__(self) -> None:
        self.factors = torch.tensor([1.0, 2.0, 3.0])
        self.passes = 0

    def __call__(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.passes += 1
        return self.factors[:, None] * x * scale

    def one(self, member: int) -> Callable[..., Tensor]:
        return lambda x, *, scale=1.0: self.factors[member] * x * scale


def once(model: Callable[..., Tensor], batch: Any) -> Tensor:
    return model(batch).square().sum()


def twice(model: Callable[..., Tensor], batch: Any) -> Tensor:
    return (model(batch) - model(batch.flip(0), scale=2.0)).square().sum()


def same_arguments_anew(model: Callable[..., Tensor], batch: Any) -> Tensor:
    # a new tensor for each member, with equal values
    return model(batch + 1).sum() + model(batch * 2).sum()


def chained(model: Callable[..., Tensor], batch: Any) -> Tensor:
    return model(model(batch)).sum()


def by_output(model: Callable[..., Tensor], batch: Any) -> Tensor:
    out = model(batch)
    return out.sum() if out.sum() > 5 else model(batch, scale=3.0).sum() + model(batch.flip(0)).sum()


@pytest.mark.parametrize(
    ("loss", "passes"),
    [(once, 1), (twice, 2), (same_arguments_anew, 2), (chained, 4), (by_output, 3)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_members_of_a_stacked_pass_equal_single_models(loss: Callable[..., Tensor], passes: int) -> None:
    batch, model = torch.tensor([1.0, 2.0]), Counted()
    found = [loss(function, batch) for function in _member_functions(model, MEMBERS)]
    expected = [loss(model.one(member), batch) for member in range(MEMBERS)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    # one pass per call if the arguments are the same, whatever the number of members
    assert model.passes == passes


@pytest.mark.parametrize(("precision", "tolerance"), [("ieee", 1e-5), ("bf16", 0.05)])
def test_stacked_losses_equal_single_ones_in_the_supernet(precision: str, tolerance: float) -> None:
    run = unstarted_cells(precision=precision)
    batch, problem = next(run._train), run.objectives().problem(run.weight_optimizer(), [], None)
    draw = torch.Generator().manual_seed(0)
    alphas = [tree.map(lambda leaf: leaf + torch.randn(leaf.shape, generator=draw), run.alphas) for _ in range(2)]
    stacked = problem.stacked_inner_loss(tree.stack([run.state.weights] * 2), tree.stack(alphas), batch)
    expected = torch.stack([problem.inner_loss(run.state.weights, each, batch) for each in alphas])
    assert stacked.dtype == torch.float32
    torch.testing.assert_close(stacked, expected, rtol=tolerance, atol=tolerance)


def test_penalties_are_in_the_direct_gradient_alone() -> None:
    """Against the same step without: the gradients differ by the regularizer's own."""
    results, runs = [], []
    for regularizer in (None, BetaDecay(weight=3.0)):
        run = unstarted_cells(regularizer=regularizer, estimator=SGE(num_directions=2))
        run.step = 39_100 // 2  # half of the weight
        for table in run.alphas.values():
            table += torch.randn(table.shape, generator=torch.Generator().manual_seed(table.numel()))
        problem = run.objectives().problem(run.weight_optimizer(), run.penalties(), None)
        inner, outer = [next(run._train)], next(run._val)
        results.append(run.estimator(problem, run.state, run.alphas, inner, outer, seed=0))
        runs.append(run)
    leaves = tree.leaves(runs[1].alphas)
    own = torch.autograd.grad(0.5 * BetaDecay(weight=3.0)(leaves), list(leaves.values()))
    without, added = results
    for name, expected in zip(leaves, own, strict=True):
        torch.testing.assert_close(added.direct[name] - without.direct[name], expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(added.indirect[name], without.indirect[name])


def test_noise_of_a_step_is_shared_by_all_its_passes() -> None:
    """Both sides of a difference see the same sample: the difference has no part of the noise's variance."""
    run = unstarted_cells(method="gdas")
    space, draw = run.objectives().space, torch.Generator().manual_seed(0)
    noise, other = (space.draw_noise(run.alphas, draw) for _ in range(2))
    batch, optimizer = next(run._train), run.weight_optimizer()
    first, again, differs = (
        run.objectives().problem(optimizer, [], each).inner_loss(run.state.weights, run.alphas, batch)
        for each in (noise, noise, other)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, differs)
