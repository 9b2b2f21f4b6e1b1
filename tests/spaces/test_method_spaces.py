"""The spaces of PC-DARTS and Fair DARTS, and what methods add to the outer loss."""

from typing import Any

import pytest
import torch
from plain_darts import ACTIVATIONS, Bends, plain_logits, smooth_max_pool
from torch import Tensor

import sgenas
from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.spaces import regularisers, relaxation
from sgenas.spaces.derivation import edges_above, edges_of
from sgenas.trees import Tree

SPACES = [
    ("pc-darts", {"channels": 8, "partial_channels": 4}, 5, 16),
    ("pc-darts", {"channels": 6, "partial_channels": 3, "nodes": 3, "operations": "paper"}, 3, 9),
    ("pc-darts", {"channels": 4, "partial_channels": 2, "nodes": 2}, 4, 13),
    ("pc-darts", {"channels": 4, "partial_channels": 1, "nodes": 2}, 3, 8),
    ("fair-darts", {"channels": 4}, 5, 16),
    ("fair-darts", {"channels": 3, "nodes": 3}, 3, 9),
    ("darts", {"channels": 4, "nodes": 2, "activation": "silu", "pooling": "smooth"}, 3, 8),
    ("pc-darts", {"channels": 4, "partial_channels": 2, "activation": "softplus", "pooling": "smooth"}, 3, 9),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_alphas(space: sgenas.spaces.DartsSpace, seed: int) -> Tree:
    """As `space` names and shapes them, large enough to tell the operations apart."""
    draw = generator(seed)
    return {
        name: torch.randn(table.shape, generator=draw, dtype=torch.float64)
        for name, table in space.initial_alphas(generator()).items()
    }


@pytest.mark.parametrize(("name", "settings", "layers", "size"), SPACES)
def test_supernet_equals_the_plain_definition(
    name: str, settings: dict[str, Any], layers: int, size: int
) -> None:
    space = sgenas.space(name, layers=layers, classes=7, **settings)
    weights = trees.map_tree(Tensor.double, space.initial_weights(generator(1)))
    alphas = draw_alphas(space, 2)
    images = torch.randn(5, 3, size, size, generator=generator(3), dtype=torch.float64)
    cotangent = torch.randn(5, 7, generator=generator(4), dtype=torch.float64)
    bends = Bends(ACTIVATIONS[settings.get("activation", "relu")])
    if settings.get("pooling") == "smooth":
        bends = bends._replace(max_pool=smooth_max_pool)
    results = []
    for logits in (
        lambda w, a: space.logits(w, a, images),
        lambda w, a: plain_logits(space, w, a, images, layers, bends),
    ):
        w, a = trees.leaves(weights), trees.leaves(alphas)
        out = logits(w, a)
        leaves = [*w.values(), *a.values()]
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), leaves, allow_unused=True)])
    for label, ours, plain in zip(["logits", *weights, *alphas], *results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10, msg=f"{label} differs")


@pytest.mark.parametrize(("name", "settings", "layers", "size"), [SPACES[1], SPACES[2], SPACES[5], SPACES[7]])
def test_members_go_through_one_call_as_they_would_alone(
    name: str, settings: dict[str, Any], layers: int, size: int
) -> None:
    space = sgenas.space(name, layers=layers, classes=3, **settings)
    weights = [trees.map_tree(Tensor.double, space.initial_weights(generator(seed))) for seed in range(2)]
    alphas = [draw_alphas(space, seed) for seed in range(2)]
    images = torch.randn(4, 3, size, size, generator=generator(3), dtype=torch.float64)
    together = space.stacked_logits(trees.stack(weights), trees.stack(alphas), images)
    for member in range(2):
        alone = space.logits(weights[member], alphas[member], images)
        torch.testing.assert_close(together[member], alone, rtol=1e-10, atol=1e-10)


def test_pc_darts_alphas_and_mixing() -> None:
    space = sgenas.space("pc-darts", channels=8, layers=3)
    alphas = space.initial_alphas(generator())
    assert {name: tuple(table.shape) for name, table in alphas.items()} == {
        "normal": (14, 8),
        "reduce": (14, 8),
        "normal_edges": (14,),
        "reduce_edges": (14,),
    }
    assert trees.size(alphas) == 252
    assert 0 < trees.norm(alphas) < 0.1
    mixing = space.mixing(draw_alphas(space, 1))
    assert set(mixing) == {"normal", "reduce"}
    for node in range(2, 6):
        rows = [row for row, (_, target) in enumerate(space.edges) if target == node]
        torch.testing.assert_close(mixing["normal"][rows].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_pc_darts_derives_by_operation_times_edge() -> None:
    """An edge with a sharp operation but a small weight of its own loses against two plain ones."""
    space = sgenas.space("pc-darts", channels=8, layers=3)
    alphas = {name: torch.zeros_like(table) for name, table in space.initial_alphas(generator()).items()}
    first = [row for row, (_, target) in enumerate(space.edges) if target == 3]  # from 0, 1, 2
    alphas["normal"][first[0], 4] = 5.0
    alphas["normal_edges"][first[0]] = -5.0
    cell = space.derive(alphas)["normal"]
    assert [edge.source for edge in cell.edges if edge.target == 3] == [1, 2]
    alphas["normal_edges"][first[0]] = 0.0
    kept = [edge for edge in space.derive(alphas)["normal"].edges if edge.target == 3]
    assert (kept[0].source, kept[0].operation) == (0, "sep_conv_3x3")


@pytest.mark.parametrize(("channels", "partial"), [(8, 3), (8, 0), (8, 8), (6, 4), (3, 2)])
def test_channels_that_k_does_not_divide(channels: int, partial: int) -> None:
    with pytest.raises(
        InvalidValueError, match=f"partial_channels must divide channels {channels} .*{partial}"
    ):
        sgenas.space("pc-darts", channels=channels, partial_channels=partial, layers=3)


def test_fair_darts_starts_undecided_and_empty() -> None:
    space = sgenas.space("fair-darts", channels=4, layers=3)
    assert "none" not in space.operations
    alphas = space.initial_alphas(generator())
    assert trees.size(alphas) == 196
    assert all((table == 0.5).all() for table in space.mixing(alphas).values())
    assert space.derive(alphas)["normal"].edges == ()
    by_rank = sgenas.space("fair-darts", channels=4, layers=3, derivation="top2").derive(alphas)
    assert len(by_rank["normal"].edges) == 8


def test_fair_darts_thresholds() -> None:
    strong, weak = 3.0, 1.0  # sigmoid 0.95 and 0.73
    cells = {}
    for rule in ("threshold", "threshold-edges", "top2"):
        space = sgenas.space("fair-darts", channels=4, layers=3, derivation=rule)
        alphas = space.initial_alphas(generator())
        table = alphas["normal"]
        rows = [row for row, (_, target) in enumerate(space.edges) if target == 4]  # from 0, 1, 2, 3
        table[rows[0], 3], table[rows[0], 5], table[rows[0], 6] = strong, strong + 1, strong + 2
        table[rows[1], 2] = strong
        table[rows[2], 0] = weak
        table[rows[3], 0] = strong + 0.5
        cells[rule] = [(e.source, e.operation) for e in space.derive(alphas)["normal"].edges if e.target == 4]
    names = sgenas.space("fair-darts", channels=4, layers=3).operations
    assert cells["threshold"] == [(0, names[6]), (3, names[0])]
    assert cells["threshold-edges"] == [(0, names[6]), (0, names[5]), (1, names[2]), (3, names[0])]
    assert cells["top2"] == cells["threshold"]


def test_a_threshold_leaves_out_even_the_best_edges() -> None:
    space = sgenas.space("fair-darts", channels=4, layers=3, threshold=0.9)
    alphas = space.initial_alphas(generator())
    alphas["normal"][0, 0] = 3.0
    alphas["normal"][1, 0] = 2.0  # 0.88
    assert [edge.source for edge in space.derive(alphas)["normal"].edges] == [0]


@pytest.mark.parametrize(
    ("name", "derivation"),
    [
        ("fair-darts", "threshold"),
        ("fair-darts", "threshold-edges"),
        ("fair-darts-nasbench201", "threshold"),
    ],
)
def test_a_weight_that_is_the_threshold_is_enough(name: str, derivation: str) -> None:
    most = torch.sigmoid(torch.tensor(2.0)).item()
    space = sgenas.space(name, channels=4, derivation=derivation, threshold=most)
    alphas = trees.map_tree(lambda table: torch.full_like(table, -3.0), space.initial_alphas(generator()))
    alphas[space.kinds[0]][0, 2] = 2.0
    assert [edge.source for edge in space.derive(alphas)[space.kinds[0]].edges] == [0]


def test_the_first_weights_are_those_of_seed_0() -> None:
    default = sgenas.space("darts", channels=4, layers=3)
    seeded = sgenas.space("darts", channels=4, layers=3, generator=generator(0))
    for name, weight in default.supernet.state_dict().items():
        assert torch.equal(weight, seeded.supernet.state_dict()[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"derivation": "best"}, "derivation must be one of top2, threshold, threshold-edges, got 'best'"),
        ({"threshold": 1.0}, r"threshold must be in \(0, 1\), got 1.0"),
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\), got 0.0"),
        ({"partial": 2}, "partial must be 1 with sigmoids, got 2"),
        ({"operations": "darts"}, "operations must not hold none with sigmoids, got .*'none'"),
    ],
)
def test_bad_fair_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        sgenas.space("fair-darts", channels=4, layers=3, **settings)


def test_bad_fair_settings_of_the_benchmark() -> None:
    with pytest.raises(InvalidValueError, match="derivation must be one of .*, got 'top2'"):
        sgenas.space("fair-darts-nasbench201", channels=4, derivation="top2")


def test_edges_above_checks_the_shape() -> None:
    with pytest.raises(InvalidValueError, match=r"mixing must have shape \(2, 2\), got \(3, 2\)"):
        edges_above(torch.zeros(3, 2), ("skip_connect", "none"), 1, 0.5)


def test_softmax_over_incoming_edges() -> None:
    targets = [target for _, target in edges_of(3)]
    values = torch.randn(2, len(targets), generator=generator(), dtype=torch.float64)
    weights = relaxation.over_incoming(values, targets)
    for node in set(targets):
        rows = [row for row, target in enumerate(targets) if target == node]
        torch.testing.assert_close(weights[:, rows], values[:, rows].softmax(-1))


def test_beta_decay_and_its_gradient() -> None:
    alphas = {
        "normal": torch.randn(14, 7, generator=generator(), dtype=torch.float64),
        "reduce": torch.randn(14, 7, generator=generator(1), dtype=torch.float64),
    }
    leaves = trees.leaves(alphas)
    value = regularisers.beta_decay(leaves)
    by_hand = sum(row.exp().sum().log() for table in alphas.values() for row in table) / 28
    torch.testing.assert_close(value, by_hand)
    for name, grad in zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True):
        torch.testing.assert_close(grad, alphas[name].softmax(-1) / 28)


def test_zero_one_loss() -> None:
    alphas = {"normal": torch.tensor([[0.0, 2.0]]), "reduce": torch.tensor([[-1.0, 0.0]])}
    sigma = [0.5, 0.8807971, 0.2689414, 0.5]
    squared = -sum((s - 0.5) ** 2 for s in sigma) / 4
    absolute = -sum(abs(s - 0.5) for s in sigma) / 4
    assert regularisers.zero_one_squared(alphas).item() == pytest.approx(squared, rel=1e-5)
    assert regularisers.zero_one_absolute(alphas).item() == pytest.approx(absolute, rel=1e-5)
    zero = trees.leaves({"a": torch.zeros(3, 2)})
    value = regularisers.zero_one_squared(zero)
    assert value.item() == 0
    assert (torch.autograd.grad(value, zero["a"])[0] == 0).all()


def test_first_alphas_are_a_thousandth_of_normal_numbers() -> None:
    """Kind by kind, and behind them PC-DARTS' edges."""
    for name in ("darts", "pc-darts", "nasbench201"):
        space = sgenas.space(name)
        stream = generator(5)
        for kind, table in space.initial_alphas(generator(5)).items():
            assert torch.equal(table, 1e-3 * torch.randn(table.shape, generator=stream)), kind


DARTS_SIZES = {"channels": 16, "layers": 8, "classes": 10, "nodes": 4}
BENCHMARK_SIZES = {"channels": 16, "cells": 5, "classes": 10, "input_channels": 3}
SIZES = {
    "darts": DARTS_SIZES,
    "fair-darts": DARTS_SIZES,
    "pc-darts": DARTS_SIZES | {"partial_channels": 4},
    "nasbench201": BENCHMARK_SIZES,
    "fair-darts-nasbench201": BENCHMARK_SIZES,
    "pc-darts-nasbench201": BENCHMARK_SIZES | {"partial_channels": 4},
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_by_default_are_those_of_the_papers(name: str) -> None:
    shapes = [
        {key: weight.shape for key, weight in space.initial_weights(generator()).items()}
        for space in (sgenas.space(name), sgenas.space(name, **SIZES[name]))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "tanh"}, "activation must be one of .*, got 'tanh'"),
        ({"pooling": "soft"}, "pooling must be one of .*, got 'soft'"),
    ],
)
def test_unknown_activations_and_poolings(settings: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        sgenas.space("darts", channels=4, layers=3, **settings)
