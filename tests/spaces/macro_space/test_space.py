"""The supernet of NAS-Bench-Macro against its discrete networks and a slow sum over operations."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_supernets import drawn
from tiny_searches import cells
from torch import Tensor, nn

import sgenas
from sgenas import tree
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.errors import InvalidValueError
from sgenas.methods import METHODS
from sgenas.spaces import (
    Budget,
    Dirichlet,
    EdgeNormalizedSoftmax,
    GumbelSoftmax,
    MacroSettings,
    MacroSpace,
    Relaxation,
    Sigmoid,
    Softmax,
    TopEdges,
    macro,
)
from sgenas.spaces.macro_space.strings import OPERATIONS, all_strings, from_string, to_string
from sgenas.spaces.networks import network_size
from sgenas.tree import TensorDict

ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "softplus": F.softplus}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3, side: int = 12) -> Tensor:
    return torch.randn(4, channels, side, side, generator=generator(3), dtype=torch.float64)


def with_weights(network: nn.Module, weights: TensorDict, digits: str) -> nn.Module:
    """``network`` in float64 with the supernet's weights; scales and shifts of its layers stay 1 and 0."""
    state = {
        "stem.0.weight": weights["stem.0.weight"],
        "stem.1.weight": weights["stem.1.weight"],
        "stem.1.bias": weights["stem.1.bias"],
        "last.0.weight": weights["last.weight"],
        "last.1.weight": weights["norm.weight"],
        "last.1.bias": weights["norm.bias"],
        "classifier.weight": weights["classifier.weight"],
        "classifier.bias": weights["classifier.bias"],
    }
    for layer, digit in enumerate(digits):
        name = OPERATIONS[int(digit)]
        if digit != "0":
            for index, part in ((0, "expand"), (3, "depthwise"), (6, "project")):
                own = weights[f"layers.{layer}.operations.{name}.{part}.weight"]
                state[f"layers.{layer}.convolutions.{index}.weight"] = own
        elif layer in (0, 2, 5):
            state[f"layers.{layer}.0.weight"] = weights[f"layers.{layer}.operations.{name}.weight"]
    network.double().load_state_dict(state, strict=False)
    return network


@pytest.mark.parametrize("digits", ["00000000", "22212220", "11111111", "02012100", "20120012"])
def test_supernet_with_one_hot_mixing_equals_the_discrete_network(digits: str) -> None:
    space = macro(channels=3, num_classes=5)
    weights, _ = drawn(space)
    mixing = tree.map(Tensor.double, space.one_hot(from_string(digits)))
    network = with_weights(space.build(from_string(digits), channels=3), weights, digits)
    torch.testing.assert_close(space.bind_mixing(weights, mixing)(images()), network(images()), rtol=1e-9, atol=1e-9)


def norm(x: Tensor) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def affine(x: Tensor, weights: TensorDict, name: str) -> Tensor:
    return norm(x) * weights[f"{name}.weight"].view(1, -1, 1, 1) + weights[f"{name}.bias"].view(1, -1, 1, 1)


def slow_logits(space: MacroSpace, weights: TensorDict, mixing: Tensor, x: Tensor) -> Tensor:
    """The supernet as the sum over all operations of each layer, each computed completely."""
    activate = ACTIVATIONS[space.settings.activation]
    x = activate(affine(F.conv2d(x, weights["stem.0.weight"], padding=1), weights, "stem.1"))
    for layer in range(8):
        stride, terms = 2 if layer in (0, 2, 5) else 1, []
        for name in space.operations:
            place = f"layers.{layer}.operations.{name}"
            if name == "skip_connect":
                terms.append(x if stride == 1 else norm(F.conv2d(x, weights[f"{place}.weight"], stride=2)))
                continue
            depthwise = weights[f"{place}.depthwise.weight"]
            inner = activate(norm(F.conv2d(x, weights[f"{place}.expand.weight"])))
            pad, groups = depthwise.shape[-1] // 2, len(depthwise)
            inner = activate(norm(F.conv2d(inner, depthwise, stride=stride, padding=pad, groups=groups)))
            value = norm(F.conv2d(inner, weights[f"{place}.project.weight"]))
            terms.append(value + x if stride == 1 else value)
        x = sum((weight * term for weight, term in zip(mixing[layer], terms, strict=True)), torch.zeros(()))
    features = activate(affine(F.conv2d(x, weights["last.weight"]), weights, "norm")).mean(dim=(2, 3))
    return features @ weights["classifier.weight"].T + weights["classifier.bias"]


CASES: list[tuple[dict[str, Any], Relaxation, int]] = [
    ({"channels": 3}, Softmax(), 16),
    ({"channels": 2, "activation": "silu"}, Dirichlet(), 9),
    ({"channels": 2, "activation": "softplus"}, GumbelSoftmax(), 12),
    ({"channels": 4, "operations": ("mb6_k5", "skip_connect")}, Sigmoid(), 13),
    ({"channels": 17, "operations": ("mb3_k3",)}, Softmax(), 8),
]


@pytest.mark.parametrize(("settings", "relaxation", "side"), CASES)
def test_supernet_equals_the_slow_sum_over_operations(
    settings: dict[str, Any], relaxation: Relaxation, side: int
) -> None:
    space = macro(num_classes=3, relaxation=relaxation, **settings)
    weights, alphas = drawn(space)
    noise = space.draw_noise(alphas, generator(7))
    cotangent = torch.randn(4, 3, generator=generator(4), dtype=torch.float64)
    results = []
    for logits in (
        lambda w, a, x: space.bind(w, a, noise)(x),
        lambda w, a, x: slow_logits(space, w, space.mixing(a, noise)["cell"], x),
    ):
        w, a, x = tree.leaves(weights), tree.leaves(alphas), images(side=side).requires_grad_()
        out = logits(w, a, x)
        leaves = [*w.values(), *a.values(), x]
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), leaves, allow_unused=True)])
    for label, ours, slow in zip(["logits", *weights, *alphas, "images"], *results, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-8, atol=1e-9, msg=f"{label} differs")


@pytest.mark.parametrize("settings", [{"channels": 2}, {"channels": 3, "operations": ("skip_connect", "mb6_k5")}])
def test_stacked_members_equal_one_member_at_a_time(settings: dict[str, Any]) -> None:
    space = macro(num_classes=3, **settings)
    members = [drawn(space, seed) for seed in range(3)]
    w, a = (tree.leaves(tree.stack(list(part))) for part in zip(*members, strict=True))
    together = space.bind_members(w, a)(images())
    assert together.shape == (3, 4, 3)
    found = torch.autograd.grad(together.sin().sum(), [*w.values(), *a.values()])
    for member, parts in enumerate(members):
        own, own_alphas = (tree.leaves(part) for part in parts)
        alone = space.bind(own, own_alphas)(images())
        torch.testing.assert_close(together[member], alone, rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(
            found, torch.autograd.grad(alone.sin().sum(), [*own.values(), *own_alphas.values()]), strict=True
        ):
            torch.testing.assert_close(ours[member], theirs, rtol=1e-9, atol=1e-9)


def test_supernet_works_under_torch_func() -> None:
    space = macro(channels=2, num_classes=3)
    weights, alphas = drawn(space)

    def loss(weights: TensorDict, alphas: TensorDict) -> Tensor:
        return space.bind(weights, alphas)(images()).square().sum()

    w, a = tree.leaves(weights), tree.leaves(alphas)
    plain = torch.autograd.grad(loss(w, a), [*w.values(), *a.values()])
    grads = torch.func.grad(loss, argnums=(0, 1))(weights, alphas)
    for ours, theirs in zip([*grads[0].values(), *grads[1].values()], plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    _, tangent = torch.func.jvp(loss, (weights, alphas), drawn(space, 7))
    torch.testing.assert_close(tangent, sum(map(tree.dot, grads, drawn(space, 7))))


def test_derived_network_round_trips_and_has_the_largest_weights() -> None:
    space = macro(channels=2)
    for digits in ("22212220", "01200120"):
        alphas = tree.scale(space.one_hot(from_string(digits)), 3.0)
        genotype = space.derive(alphas)
        assert to_string(genotype) == digits
        assert space.architecture_from_dict(space.architecture_to_dict(genotype)) == genotype
    # equal weights: the first operation
    assert to_string(space.derive({"cell": torch.zeros(8, 3)})) == "00000000"


def test_budget_counts_networks_and_takes_the_best_within_limits() -> None:
    space = macro(num_classes=10)
    budget = Budget(max_params=900_000, max_macs=40_000_000, penalty="macs")
    costs = space.cost_model(budget, torch.zeros(2, 3, 32, 32))
    for digits in ("00000000", "02012100", "11111221", "21021021"):
        size = network_size(from_string(digits))
        assert costs.of(from_string(digits)) == {"params": size.params, "macs": size.macs}
    params, macs = (
        np.array([[costs.tables[name].values["cell"][row, column] for column in range(3)] for row in range(8)])
        for name in ("params", "macs")
    )
    rest = [costs.tables[name].fixed[1,] for name in ("params", "macs")]
    rows, names = np.arange(8), list(all_strings())
    networks = np.array([list(map(int, digits)) for digits in names])
    fits = (rest[0] + params[rows, networks].sum(1) <= 900_000) & (rest[1] + macs[rows, networks].sum(1) <= 40e6)
    assert 0 < fits.sum() < len(names)
    for seed in range(3):
        alphas = {"cell": 2 * torch.randn(8, 3, generator=generator(seed))}
        mixing = alphas["cell"].double().softmax(dim=-1).numpy()
        scores = np.where(fits, mixing[rows, networks].sum(1), -1)
        assert to_string(costs.derive(alphas)) == names[int(scores.argmax())]
        expected = (mixing * macs).sum() / macs.mean(axis=1).sum()
        assert costs.penalty(alphas).item() == pytest.approx(expected)


@pytest.mark.parametrize("operations", [("mb6_k5", "skip_connect")])
def test_budget_of_a_smaller_network_with_fewer_operations(operations: tuple[str, ...]) -> None:
    space = macro(num_classes=4, input_channels=1, operations=operations)
    costs = space.cost_model(Budget(max_params=10**9, channels=8), (1, 14, 11))
    for digits in map("".join, list(product("02", repeat=8))[::60]):
        with torch.device("meta"):
            network = space.build(from_string(digits), channels=8)
        assert costs.of(from_string(digits))["params"] == sum(each.numel() for each in network.parameters())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: macro(channels=0), "MacroSettings.channels"),
        (lambda: macro(operations=("none", "mb3_k3")), "MacroSettings.operations"),
        (lambda: macro(discretization=TopEdges()), "discretization"),
        (lambda: macro(relaxation=EdgeNormalizedSoftmax()), "relaxation"),
        (lambda: macro().with_parts(relaxation=EdgeNormalizedSoftmax()), "relaxation"),
        (lambda: METHODS.get("pc-darts").apply(macro()), "method"),
        (lambda: METHODS.get("fair-darts").apply(macro()), "method"),
        (lambda: METHODS.get("darts").apply(macro(), discretization=TopEdges()), "discretization"),
        (lambda: macro().cost_model(Budget(max_params=10), (3, 32, 32)), "Budget.max_params"),
        (lambda: macro().cost_model(Budget(max_params=10**9, layers=8), (3, 32, 32)), "Budget.layers"),
        (
            lambda: macro().cost_model(Budget(max_latency=1.0, latency_table="t.json"), (3, 32, 32)),
            "Budget.max_latency",
        ),
    ],
)
def test_parts_and_settings_that_make_no_sense_raise(make: Any, field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.slow
def test_search_within_a_budget_resumes_to_the_same_end(tmp_path: Path) -> None:
    config = sgenas.SearchConfig.of_method(
        "drnas",
        {
            "space.name": "nasbench-macro",
            "space.channels": 2,
            "data.data": "digits",
            "data.train_images": 32,
            "data.batch_size": 8,
            "epochs": 2,
            "warmup_epochs": 0,
            "device": "cpu",
            "threads": 1,
            "budget.max_params": 1_000_000,
            "estimator.name": "sge",
            "estimator.num_directions": 2,
        },
    )
    assert isinstance(config.space, MacroSettings)
    assert sgenas.SearchConfig.from_dict(config.to_dict()) == config
    whole = config.run(tmp_path / "whole", progress=False)
    steps = iter([False, True])
    stopped = config.run(tmp_path / "parts", progress=False, stop=lambda: next(steps))
    assert not stopped.finished
    resumed = config.run(tmp_path / "parts", progress=False)
    assert tree.leaves(resumed.alphas).keys() == {"cell"}
    assert torch.equal(whole.alphas["cell"], resumed.alphas["cell"])
    assert resumed.genotype == whole.genotype
    assert whole.history[-1]["derived_params"] <= 1_000_000
    assert whole.derive(channels=2).classifier.out_features == 10


# batches of 8 images of one pixel at the end have a steep loss
@pytest.mark.filterwarnings("ignore::sgenas.errors.RangeWarning")
@pytest.mark.parametrize(
    "estimator",
    [name if name in ("first-order", "sge") else pytest.param(name, marks=pytest.mark.slow) for name in ESTIMATORS],
)
def test_every_estimator_searches_the_space(estimator: str) -> None:
    config = replace(cells(epochs=1, data={"train_images": 32}), space=MacroSettings(channels=1, activation="silu"))
    few = {"num_directions": 2, "max_hvps": 2}
    kind = ESTIMATORS.get(estimator)
    made = kind(**{name: value for name, value in few.items() if name in kind.__dataclass_fields__})
    result = replace(config, estimator=made).run(progress=False)
    assert result.alphas["cell"].isfinite().all()
    assert result.history[-1]["direct_norm"] > 0
    assert (result.history[-1]["indirect_norm"] > 0) == (estimator != "first-order")
