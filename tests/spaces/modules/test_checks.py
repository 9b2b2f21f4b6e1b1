"""The check at the start of a module search."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgenas.errors import InvalidValueError
from sgenas.spaces.modules import Choice, ModuleSpace, check_loss


def loss(model: Any, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def choice() -> Choice:
    return Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="c")


def check(model: nn.Module, loss: Any = loss) -> None:
    space = ModuleSpace(model)
    alphas = space.initial_alphas(torch.Generator().manual_seed(0))
    check_loss(space, loss, space.initial_weights(), alphas, torch.ones(4, 3))
    assert all(alpha.grad is None and not alpha.requires_grad for alpha in alphas.values())


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(3, 3), choice()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_pure_losses_and_a_choice_in_two_places_pass() -> None:
    act = choice()
    check(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), act, nn.Dropout(0.5), nn.Linear(3, 3), act))


@pytest.mark.parametrize(
    ("model", "loss", "field", "word"),
    [
        (nn.Sequential(nn.Linear(3, 3), choice(), Counter()), loss, "model", "'2.count'"),
        (nn.Sequential(nn.Linear(3, 3), choice(), Noisy()), loss, "loss", "same batch"),
        (Unused(), loss, "loss", "choice 'c'"),
        (nn.Sequential(nn.Linear(3, 3), choice()), lambda model, batch: model(batch), "loss", r"\(4, 3\)"),
        (nn.Sequential(nn.Linear(3, 3), choice()), lambda model, batch: 0.5, "loss", "got float"),
        (nn.Sequential(nn.Linear(3, 3), choice()), lambda model, batch: model(batch).sum().detach(), "loss", "'c'"),
    ],
)
def test_losses_that_are_not_functions_of_their_arguments_raise(
    model: nn.Module, loss: Any, field: str, word: str
) -> None:
    with pytest.raises(InvalidValueError, match=word) as caught:
        check(model, loss)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
