"""Costs of the choices in a module: what `derive` leaves, the best within limits, the penalty's gradient."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas.engine.module_costs import ModuleCosts
from sgenas.errors import InvalidValueError
from sgenas.nets.sizes import count_macs, count_parameters


class Net(nn.Module):
    """A choice within a choice, two of one name, a shared layer, a width, inputs."""

    def __init__(self) -> None:
        super().__init__()
        inner = sgenas.Choice(
            {"one": nn.Conv2d(4, 4, 1), "three": nn.Conv2d(4, 4, 3, padding=1)}, name="kernel"
        )
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = sgenas.Choice(
            {"skip": nn.Identity(), "conv": nn.Sequential(nn.BatchNorm2d(4), inner)}, name="block"
        )
        self.first = sgenas.Choice({"a": nn.Linear(4, 4), "b": nn.Identity()}, name="twice")
        self.second = sgenas.Choice({"a": nn.Linear(4, 4, bias=False), "b": nn.Identity()}, name="twice")
        shared = nn.Linear(4, 4)
        self.left = sgenas.Choice({"shared": shared, "none": nn.Identity()}, name="left")
        self.right = sgenas.Choice({"none": nn.Identity(), "shared": shared}, name="right")
        self.width = sgenas.WidthChoice([2, 4], name="width", dim=-1)
        self.source = sgenas.InputChoice(2, name="source")
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block(self.stem(images)).mean(dim=(2, 3))
        y = self.right(self.left(self.second(self.first(self.width(x)))))
        return self.head(self.source([x, y]))


@pytest.fixture
def space() -> sgenas.ModuleSpace:
    return sgenas.ModuleSpace(Net())


IMAGE = torch.zeros(1, 1, 6, 6)


def all_choices(space: sgenas.ModuleSpace) -> list[dict[str, Any]]:
    return [dict(zip(space.options, taken, strict=True)) for taken in product(*space.options.values())]


def alphas_of(space: sgenas.ModuleSpace, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(len(options), generator=draw, dtype=torch.float64)
        for name, options in space.options.items()
    }


def test_costs_are_those_of_what_is_derived(space: sgenas.ModuleSpace) -> None:
    costs = ModuleCosts(space, {"params": 10**6, "macs": 10**6}, example=IMAGE)
    found = all_choices(space)
    assert len(found) == 2**7
    for choices in found[::3]:
        derived = space.derive(choices)
        assert costs.of(choices) == {"params": count_parameters(derived), "macs": count_macs(derived, IMAGE)}
    kept = {"block": "conv", "kernel": "one", "twice": "a", "left": "none", "right": "none", "source": 0}
    assert costs.of(kept | {"width": 2}) == costs.of(kept | {"width": 4})


@pytest.mark.parametrize("seed", range(4))
def test_the_best_choices_within_limits(space: sgenas.ModuleSpace, seed: int) -> None:
    alphas = alphas_of(space, seed)
    mixing = space.mixing(alphas)
    loose = ModuleCosts(space, {"params": 10**6, "macs": 10**6}, example=IMAGE)
    free = space.strongest(alphas)
    assert loose.choices(alphas) == free

    def score(choices: dict[str, Any]) -> float:
        return sum(mixing[name][space.options[name].index(taken)].item() for name, taken in choices.items())

    scored = [(score(choices), loose.of(choices)) for choices in all_choices(space)]
    smallest, largest = (pick(cost["params"] for _, cost in scored) for pick in (min, max))
    for share in (0.0, 0.3, 0.7):
        limits = {"params": int(smallest + share * (largest - smallest)), "macs": 3000}
        costs = ModuleCosts(space, limits, example=IMAGE)
        chosen = costs.choices(alphas)
        assert all(costs.of(chosen)[name] <= most for name, most in limits.items())
        within = [value for value, cost in scored if all(cost[name] <= limits[name] for name in limits)]
        assert score(chosen) == pytest.approx(max(within))


@pytest.mark.parametrize("relaxation", ["softmax", "sigmoid"])
def test_the_penalty_is_the_expectation_over_all_choices(relaxation: str) -> None:
    space = sgenas.ModuleSpace(Net(), relaxation=relaxation)
    costs = ModuleCosts(space, {}, cost="params", weight=2.5)
    alphas = {name: value.requires_grad_() for name, value in alphas_of(space, 0).items()}
    penalty = costs.penalty
    assert penalty is not None
    flat = list(alphas.values())
    assert torch.autograd.gradcheck(lambda *given: penalty(dict(zip(alphas, given, strict=True))), flat)
    if relaxation == "softmax":
        mixing = space.mixing(alphas)
        params = [(choices, costs.of(choices)["params"]) for choices in all_choices(space)]
        least = min(count for _, count in params)
        expected = 0.0
        for choices, count in params:
            chance = 1.0
            for name, taken in choices.items():
                chance *= mixing[name][space.options[name].index(taken)].item()
            expected += chance * (count - least)
        uniform = sum(count - least for _, count in params) / len(params)
        assert penalty(alphas).item() == pytest.approx(2.5 * expected / uniform, rel=1e-9)


def test_a_search_keeps_to_its_limits_and_learns_to_be_small() -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x[:, 0])
    large = nn.Sequential(nn.Linear(5, 20), nn.Linear(20, 5))
    model = nn.Sequential(
        sgenas.Choice({"large": large, "small": nn.Linear(5, 5)}, name="part"), nn.Linear(5, 1)
    )

    def loss(network: Any, batch: Any) -> Tensor:
        return (network(batch[0]).squeeze(-1) - batch[1]).square().mean()

    def searched(**settings: Any) -> Any:
        space = sgenas.ModuleSpace(model)
        return sgenas.search(space, data, data, loss, batch_size=30, progress=False, **settings)

    bound = searched(epochs=1, max_params=40)
    assert bound.choices == {"part": "small"}
    assert bound.history[-1]["params"] == 36 == count_parameters(bound.derive("fresh"))
    penalised = searched(epochs=6, cost="macs", cost_weight=50.0, example=x[:1], alpha_lr=0.3)
    assert penalised.choices == {"part": "small"}
    assert penalised.history[-1]["macs"] == 30
    assert penalised.probabilities["part"]["small"] > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limits": {"params": 0}}, "max_params must be >= 1, got 0"),
        # 40 of the stem, 10 of the head, and the smallest choices leave no other
        ({"limits": {"params": 49}}, "max_params must be >= 50, which the smallest choices have, got 49"),
        ({"limits": {}, "cost": "seconds"}, "cost must be one of params, macs, got 'seconds'"),
        ({"limits": {}, "cost": "params", "weight": 0.0}, "cost_weight must be > 0 and finite, got 0.0"),
        ({"limits": {}, "weight": 2.0}, "cost_weight only applies with cost, got 2.0"),
        ({"limits": {"macs": 9}}, "example must be an argument of the model, got NoneType"),
        (
            {"limits": {"params": 99}, "example": IMAGE},
            "example must be None without a limit or cost of macs",
        ),
        (
            {"limits": {"macs": 9}, "example": torch.zeros(2)},
            "example must be an argument of the model, got ",
        ),
    ],
)
def test_settings_without_sense_are_refused(
    space: sgenas.ModuleSpace, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        ModuleCosts(space, **settings)


def test_too_many_combinations_within_each_other() -> None:
    inside = nn.Sequential(
        *(sgenas.Choice({"a": nn.Linear(2, 2), "b": nn.Identity()}, name=f"inner {i}") for i in range(13))
    )
    space = sgenas.ModuleSpace(sgenas.Choice({"all": inside, "none": nn.Linear(2, 2)}, name="outer"))
    with pytest.raises(InvalidValueError, match="at most 10000 combinations, got 16384"):
        ModuleCosts(space, {"params": 99})


class Odd(nn.Module):
    """Its second choice costs more the more often the first one's option is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.first = sgenas.Choice({"a": nn.Linear(2, 2), "b": nn.Identity()}, name="first")
        self.second = sgenas.Choice({"a": nn.Identity(), "b": nn.Linear(2, 2)}, name="second")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x if isinstance(self.first, nn.Linear) else torch.cat([x, x]))


def test_costs_that_do_not_add_up_are_found_out() -> None:
    with pytest.raises(InvalidValueError, match="costs of the choices must add up"):
        ModuleCosts(sgenas.ModuleSpace(Odd()), {"macs": 99}, example=torch.zeros(1, 2))
