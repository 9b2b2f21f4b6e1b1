"""The check of second derivatives at the start of a module search."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgenas.bilevel import SGE, ConjugateGradient, Estimator, FiniteDifference, Unrolled
from sgenas.errors import InvalidValueError
from sgenas.searching.second_derivatives import require_second_derivatives
from sgenas.spaces import Choice, ModuleSpace


def loss(model: Any, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def choice() -> Choice:
    return Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="c")


def check(model: nn.Module, batch: Tensor, estimator: Estimator) -> None:
    space = ModuleSpace(model)
    alphas = {name: torch.zeros(shape) for name, shape in space.shapes.items()}
    space.verify(batch, loss)
    require_second_derivatives(space, batch, loss, space.initial_weights(), alphas, estimator)


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class Twice(nn.Module):
    """Uses its hidden values a second time, with or without their gradient."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.layer, self.choice, self.how = nn.Linear(3, 3), choice(), how

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.choice(self.layer(x))
        return hidden * self.how(hidden) + hidden


def reversed_between_layers() -> nn.Module:
    """The layers before the reversal climb the loss, those behind descend: no function has such gradients."""
    return nn.Sequential(nn.Linear(3, 3), Act(Reversal.apply), choice(), nn.Linear(3, 3))


class Act(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("make", "estimator"),
    [
        (lambda: Twice(Tensor.detach), Unrolled()),
        (lambda: Twice(Tensor.detach), ConjugateGradient(damping=1.0)),
        (reversed_between_layers, Unrolled()),
        (reversed_between_layers, FiniteDifference()),
    ],
)
def test_derivatives_of_gradients_that_are_not_those_of_the_training_are_refused(
    make: Any, estimator: Estimator
) -> None:
    torch.manual_seed(0)
    batch, model = torch.randn(4, 3), make()
    with pytest.raises(InvalidValueError, match="sge"):
        check(model, batch, estimator)
    check(model, batch, SGE())
    check(Twice(torch.tanh), batch, estimator)


@pytest.mark.parametrize("estimator", [pytest.param(Unrolled(), marks=pytest.mark.slow), FiniteDifference()], ids=str)
def test_networks_with_kinks_pass(estimator: Estimator) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
        )
        model = nn.Sequential(body, nn.BatchNorm1d(8), choice(), nn.Linear(8, 3))
        check(model, torch.randn(16, 1, 8, 8), estimator)
