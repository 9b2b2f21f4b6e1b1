"""Costs of the choices in a module: those of the derived module, the best within limits, the penalty."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgenas.errors import InvalidValueError
from sgenas.spaces.costs import Budget
from sgenas.spaces.modules import Choice, InputChoice, ModuleSpace, WidthChoice
from sgenas.spaces.networks import count_macs, count_parameters
from sgenas.spaces.relaxations import Relaxation, Sigmoid, Softmax


class Net(nn.Module):
    """A choice within a choice, two of one name, a shared layer, a width, inputs."""

    def __init__(self) -> None:
        super().__init__()
        inner = Choice({"one": nn.Conv2d(4, 4, 1), "three": nn.Conv2d(4, 4, 3, padding=1)}, name="kernel")
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        conv = nn.Sequential(nn.BatchNorm2d(4), inner)
        self.block = Choice({"skip": nn.Identity(), "conv": conv}, name="block")
        self.first = Choice({"a": nn.Linear(4, 4), "b": nn.Identity()}, name="twice")
        self.second = Choice({"a": nn.Linear(4, 4, bias=False), "b": nn.Identity()}, name="twice")
        shared = nn.Linear(4, 4)
        self.left = Choice({"shared": shared, "none": nn.Identity()}, name="left")
        self.right = Choice({"none": nn.Identity(), "shared": shared}, name="right")
        self.width = WidthChoice([2, 4], name="width", dim=-1)
        self.source = InputChoice(2, name="source")
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block(self.stem(images)).mean(dim=(2, 3))
        y = self.right(self.left(self.second(self.first(self.width(x)))))
        return self.head(self.source([x, y]))


@pytest.fixture
def space() -> ModuleSpace:
    return ModuleSpace(Net())


IMAGE = torch.zeros(1, 1, 6, 6)


def all_choices(space: ModuleSpace) -> list[dict[str, Any]]:
    return [dict(zip(space.columns, taken, strict=True)) for taken in product(*space.columns.values())]


def alphas_of(space: ModuleSpace, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in space.shapes.items()}


def test_costs_are_those_of_the_derived_module(space: ModuleSpace) -> None:
    model = space.cost_model(Budget(max_params=10**6, max_macs=10**6), IMAGE)
    found = all_choices(space)
    assert len(found) == 2**7
    for choices in found[::3]:
        derived = space.build(choices)
        assert model.of(choices) == {"params": count_parameters(derived), "macs": count_macs(derived, IMAGE)}
    kept = {"block": "conv", "kernel": "one", "twice": "a", "left": "none", "right": "none", "source": 0}
    assert model.of(kept | {"width": 2}) == model.of(kept | {"width": 4})


@pytest.mark.parametrize("seed", range(4))
def test_derived_choices_are_the_best_within_limits(space: ModuleSpace, seed: int) -> None:
    alphas = alphas_of(space, seed)
    mixing = space.mixing(alphas)
    loose = space.cost_model(Budget(max_params=10**6, max_macs=10**6), IMAGE)
    assert loose.derive(alphas) == space.derive(alphas)

    def score(choices: dict[str, Any]) -> float:
        return sum(mixing[name][space.columns[name].index(taken)].item() for name, taken in choices.items())

    scored = [(score(choices), loose.of(choices)) for choices in all_choices(space)]
    smallest, largest = (pick(cost["params"] for _, cost in scored) for pick in (min, max))
    for share in (0.0, 0.3, 0.7):
        limits = {"params": int(smallest + share * (largest - smallest)), "macs": 3000}
        model = space.cost_model(Budget(max_params=limits["params"], max_macs=3000), IMAGE)
        chosen = model.derive(alphas)
        assert all(model.of(chosen)[name] <= most for name, most in limits.items())
        within = [value for value, cost in scored if all(cost[name] <= limits[name] for name in limits)]
        assert score(chosen) == pytest.approx(max(within))


@pytest.mark.parametrize("relaxation", [Softmax(), Sigmoid()])
def test_penalty_is_the_expectation_over_all_choices(relaxation: Relaxation) -> None:
    space = ModuleSpace(Net(), relaxation=relaxation)
    model = space.cost_model(Budget(penalty="params", penalty_weight=2.5))
    assert space.cost_model(Budget(max_params=10**6)).penalty(alphas_of(space, 0)) is None
    alphas = {name: value.requires_grad_() for name, value in alphas_of(space, 0).items()}

    def penalty(*given: Tensor) -> Tensor:
        found = model.penalty(dict(zip(alphas, given, strict=True)))
        assert found is not None
        return found

    assert torch.autograd.gradcheck(penalty, list(alphas.values()))
    if isinstance(relaxation, Softmax):
        mixing = space.mixing(alphas)
        params = [(choices, model.of(choices)["params"]) for choices in all_choices(space)]
        least = min(count for _, count in params)
        expected = 0.0
        for choices, count in params:
            chance = 1.0
            for name, taken in choices.items():
                chance *= mixing[name][space.columns[name].index(taken)].item()
            expected += chance * (count - least)
        uniform = sum(count - least for _, count in params) / len(params)
        assert penalty(*alphas.values()).item() == pytest.approx(2.5 * expected / uniform, rel=1e-9)


@pytest.mark.parametrize(
    ("budget", "example", "field", "word"),
    [
        # 40 of the stem, 10 of the head, and the smallest choices have no parameters
        ({"max_params": 49}, None, "Budget.max_params", ">= 50"),
        ({"max_macs": 9}, None, "example", "None"),
        ({"max_macs": 9}, torch.zeros(2), "example", "argument of the model"),
        ({"max_params": 99, "channels": 8}, None, "Budget.channels", "None"),
        ({"max_latency": 9.0, "latency_table": "x"}, None, "Budget.max_latency", "None"),
    ],
)
def test_budget_that_does_not_fit_the_module_raises(
    space: ModuleSpace, budget: dict[str, Any], example: Any, field: str, word: str
) -> None:
    with pytest.raises(InvalidValueError, match=word) as caught:
        space.cost_model(Budget(**budget), example)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_limits_that_only_different_choices_meet_raise() -> None:
    few_params = nn.Sequential(layer := nn.Linear(4, 4, bias=False), layer, layer)
    few_macs = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    space = ModuleSpace(Choice({"few params": few_params, "few macs": few_macs}, name="c"))
    assert space.cost_model(Budget(max_params=16)).derive({"c": torch.zeros(2)}) == {"c": "few params"}
    with pytest.raises(InvalidValueError, match="no architecture meets Budget.max_params 16 and Budget.max_macs 32"):
        space.cost_model(Budget(max_params=16, max_macs=32), torch.zeros(1, 4))


def test_too_many_nested_combinations_raise() -> None:
    inside = nn.Sequential(*(Choice({"a": nn.Linear(2, 2), "b": nn.Identity()}, name=f"inner {i}") for i in range(13)))
    space = ModuleSpace(Choice({"all": inside, "none": nn.Linear(2, 2)}, name="outer"))
    with pytest.raises(InvalidValueError, match="at most 10000 combinations, got 16384"):
        space.cost_model(Budget(max_params=99))


class Odd(nn.Module):
    """Its second choice costs more if the first one's option is ``b``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Choice({"a": nn.Linear(2, 2), "b": nn.Identity()}, name="first")
        self.second = Choice({"a": nn.Identity(), "b": nn.Linear(2, 2)}, name="second")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x if isinstance(self.first, nn.Linear) else torch.cat([x, x]))


def test_costs_that_do_not_add_up_raise() -> None:
    with pytest.raises(InvalidValueError, match="costs of the choices must add up"):
        ModuleSpace(Odd()).cost_model(Budget(max_macs=99), torch.zeros(1, 2))


def attention(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.mT, dim=-1) @ x


class ByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return attention(x)


class OwnAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x, x, x, need_weights=False)[0]
        return found


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv1d(5, 5, 3, padding=1), 5 * 5 * 3 * 4),
        (nn.ConvTranspose1d(5, 5, 3, padding=1), 5 * 5 * 3 * 4),
        (ByHand(), 2 * 5 * 5 * 4),
        (OwnAttention(), 4 * 5 * 4 * 4 + 2 * 5 * 5 * 4),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 4 * 5 * 4 * 4 + 2 * 5 * 5 * 4 + 2 * 5 * 4 * 8),
        (nn.Linear(4, 4), 5 * 4 * 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_convolutions_and_matrix_products_are_counted(layer: nn.Module, macs: int) -> None:
    """On one example of 5 tokens of 4 features (or 5 channels of 4 pixels)."""
    space = ModuleSpace(nn.Sequential(nn.LayerNorm(4), Choice({"layer": layer, "nothing": nn.Identity()}, name="c")))
    model = space.cost_model(Budget(max_macs=10**6), torch.zeros(1, 5, 4))
    assert model.of({"c": "layer"}) == {"macs": macs}
    assert model.of({"c": "nothing"}) == {"macs": 0}
    assert torch.backends.mha.get_fastpath_enabled()


def test_layer_whose_multiply_adds_are_not_counted_is_refused_with_a_budget_of_them() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x)[0]
            return found

    space = ModuleSpace(Choice({"lstm": Recurrent(), "nothing": nn.Identity()}, name="c"))
    with pytest.raises(InvalidValueError, match="LSTM") as caught:
        space.cost_model(Budget(max_macs=10**6), torch.zeros(1, 5, 4))
    assert caught.value.field == "model"
    assert space.cost_model(Budget(max_params=10**6)).of({"c": "lstm"}) == {"params": 2 * 4 * 16 + 2 * 16}
