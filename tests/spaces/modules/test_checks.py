"""The check at the start of a module search."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from sgenas.errors import InvalidValueError
from sgenas.spaces.modules import Choice, ModuleSpace


def loss(model: Any, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def choice() -> Choice:
    return Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="c")


def check(model: nn.Module, loss: Any = loss) -> None:
    space = ModuleSpace(model)
    space.verify(torch.ones(4, 3), loss, space.initial_weights(), space.initial_alphas(torch.Generator()))
    assert all(parameter.grad is None for parameter in model.parameters())


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


class Calls(nn.Module):
    """Keeps its state where a pass cannot see it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(3, 3), choice()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Held(nn.Module):
    """Uses its weight through something other than the attribute."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.choice = choice()
        weight = self.layer.weight
        self.kept: Any = {
            "list": [weight],
            "dict": {"deep": [weight]},
            "tuple": (weight,),
            "unregistered": [nn.Parameter(torch.ones(3, 3))],
            "lambda": lambda x: x @ self.layer.weight.T,
            "cached": None,
        }[how]
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "cached":
            # a value of an earlier pass
            self.kept = self.layer.weight.detach().clone() if self.kept is None else self.kept
            return self.choice(self.layer(x) @ self.kept)
        if self.how == "lambda":
            return self.choice(self.kept(x))
        held = self.kept["deep"] if self.how == "dict" else self.kept
        return self.choice(x @ held[0].T)


class Drawing(nn.Module):
    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * float(self.draw())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.reentrant = nn.Sequential(nn.Linear(3, 3), choice(), nn.Linear(3, 3)), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), choice(), nn.Dropout(0.5), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(3, 3), choice(), Drawing(lambda: torch.rand(()) < 0.5)),
        Held("list"),
        Held("dict"),
        Checkpointed(False),
        Checkpointed(True),
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), choice()),
        nn.Sequential(prune.l1_unstructured(nn.Linear(3, 3), "weight", amount=3), choice()),
    ],
)
def test_functions_of_weights_and_alphas_pass(model: nn.Module) -> None:
    check(model)


def test_a_choice_in_two_places_passes() -> None:
    act = choice()
    check(nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act, nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("model", "loss", "field", "word"),
    [
        (nn.Sequential(nn.Linear(3, 3), choice(), Counter()), loss, "model", "'2.count'"),
        (nn.Sequential(nn.Linear(3, 3), choice(), Calls()), loss, "loss", "same batch"),
        (nn.Sequential(nn.Linear(3, 3), choice()), lambda m, b: m(b).mean() * torch.rand(()), "loss", "same batch"),
        (nn.Sequential(nn.Linear(3, 3), choice(), Drawing(random.random)), loss, "model", "from Python"),
        (nn.Sequential(nn.Linear(3, 3), choice(), Drawing(lambda: np.random.rand())), loss, "model", "from NumPy"),
        (nn.Sequential(nn.Linear(3, 3), choice(), Drawing(np.random.rand)), loss, "model", "generator 2.draw"),
        (nn.Sequential(nn.Linear(3, 3), choice(), Drawing(random.Random(0).random)), loss, "model", "generator 2.draw"),
        (Held("tuple"), loss, "model", "'kept'"),
        (Held("unregistered"), loss, "model", "'kept'"),
        (Held("lambda"), loss, "model", "'kept'"),
        (Held("cached"), loss, "model", "plain copy"),
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
