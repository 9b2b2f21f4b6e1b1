"""Terms of the outer loss against the formulas of their sources."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgenas import tree
from sgenas.errors import InvalidValueError
from sgenas.spaces import BetaDecay, ConcentrationAnchor, Regularizer, ZeroOne
from sgenas.tree import TensorDict


def tables() -> TensorDict:
    draw = torch.Generator().manual_seed(0)
    return {kind: torch.randn(14, 7, generator=draw, dtype=torch.float64) for kind in ("normal", "reduce")}


def test_beta_decay_and_its_gradient() -> None:
    alphas = tables()
    leaves = tree.leaves(alphas)
    value = BetaDecay(weight=3.0)(leaves)
    by_hand = sum(row.exp().sum().log() for table in alphas.values() for row in table) / 28
    torch.testing.assert_close(value, 3.0 * by_hand)
    for name, grad in zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True):
        torch.testing.assert_close(grad, 3.0 * alphas[name].softmax(-1) / 28)


def test_beta_decay_counts_a_choice_as_one_edge() -> None:
    alphas = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([2.0, 0.5, 0.0])}
    expected = (alphas["a"].logsumexp(0) + alphas["b"].logsumexp(0)) / 2
    torch.testing.assert_close(BetaDecay(weight=1.0)(alphas), expected)


def test_only_beta_decay_rises_with_the_steps() -> None:
    alphas = tables()
    term = BetaDecay()
    for epoch in (0, 3, 99):
        # the released code: 50 epoch / 100, in epochs of 391 steps
        expected = 50.0 * epoch / 100 * term.value(alphas)
        torch.testing.assert_close(term.at_step(391 * epoch)(alphas), expected)
        torch.testing.assert_close(term.at_step(7).at_step(391 * epoch)(alphas), expected)
    for fixed in (ZeroOne(), ConcentrationAnchor()):
        assert torch.equal(fixed.at_step(0)(alphas), fixed(alphas))


@pytest.mark.parametrize(("form", "distance"), [("squared", torch.square), ("absolute", torch.abs)])
def test_zero_one_loss(form: str, distance: Callable[[Tensor], Tensor]) -> None:
    alphas = tables()
    entries = torch.cat([table.flatten() for table in alphas.values()])
    expected = -10.0 * distance(1 / (1 + (-entries).exp()) - 0.5).mean()
    torch.testing.assert_close(ZeroOne(form=form)(alphas), expected)


def test_zero_one_loss_has_no_gradient_at_zero() -> None:
    zero = tree.leaves({"a": torch.zeros(3, 2)})
    value = ZeroOne()(zero)
    assert value.item() == 0
    assert (torch.autograd.grad(value, zero["a"])[0] == 0).all()


def test_anchor_has_the_gradient_of_weight_decay_for_positive_alphas() -> None:
    alphas = tree.leaves(tables())
    value = ConcentrationAnchor(weight=0.1)(alphas)
    c = torch.cat([F.elu(table) + 1 for table in alphas.values()])
    torch.testing.assert_close(value, 0.1 * ((c - 1) ** 2).sum() / 2)
    for table, grad in zip(alphas.values(), torch.autograd.grad(value, list(alphas.values())), strict=True):
        torch.testing.assert_close(grad[table > 0], 0.1 * table[table > 0])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: BetaDecay(weight=-1.0), "BetaDecay.weight"),
        (lambda: BetaDecay(weight=math.nan), "BetaDecay.weight"),
        (lambda: ZeroOne(form="cubic"), "ZeroOne.form"),
    ],
)
def test_bad_regularizers_raise(make: Callable[[], Regularizer], field: str) -> None:
    with pytest.raises(InvalidValueError) as error:
        make()
    assert error.value.field == field


def test_beta_decay_leaves_the_weights_of_edges_alone() -> None:
    """PC-DARTS' tables (E,) next to (E, O); a choice whose name ends in the same way is one of its own."""
    cells = tables()
    weighed = cells | {f"{name}_edges": torch.ones(len(table)) for name, table in cells.items()}
    assert torch.equal(BetaDecay().value(weighed), BetaDecay().value(cells))
    choices = {"a": torch.tensor([0.0, 1.0]), "a_edges": torch.tensor([2.0, 3.0])}
    expected = torch.stack([choice.logsumexp(0) for choice in choices.values()]).mean()
    torch.testing.assert_close(BetaDecay().value(choices), expected)
