"""Settings, sizes and first weights of the cell spaces."""

import dataclasses
import json
from typing import Any

import pytest
import torch

from sgenas import tree
from sgenas.errors import InvalidValueError
from sgenas.fields import documentation
from sgenas.spaces import SPACES, CellSpace, DartsSettings, EdgeNormalizedSoftmax, Sigmoid, TopEdges, darts, nasbench201


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["darts", "nasbench201"])
def test_settings_document_their_fields_and_go_through_json(name: str) -> None:
    settings_class = SPACES.get(name)
    names = [field.name for field in dataclasses.fields(settings_class)]
    assert set(documentation(settings_class)) == set(names)
    settings = settings_class(channels=8, operations=("skip_connect", "avg_pool_3x3"))
    again = settings_class(**json.loads(json.dumps(dataclasses.asdict(settings))))
    assert again == settings
    assert again.build(1, 4).operations == ("skip_connect", "avg_pool_3x3")


def test_published_size_of_the_darts_supernet() -> None:
    space = darts()
    weights = space.initial_weights(generator())
    assert tree.size(weights) == 1_930_618
    assert set(weights) == {name for name, _ in space.supernet.named_parameters()}
    assert not list(space.supernet.buffers())
    sizes = {"darts": 224, "paper": 196}
    assert darts(operations="skip_connect").operations == ("skip_connect",)
    for operations, size in sizes.items():
        assert tree.size(darts(operations=operations).initial_alphas(generator())) == size
    assert tree.size(darts(relaxation=EdgeNormalizedSoftmax()).initial_alphas(generator())) == 252


@pytest.mark.parametrize(
    ("channels", "layers", "classes", "input_channels"), [(16, 5, 10, 3), (3, 2, 7, 1), (1, 1, 2, 4)]
)
def test_size_of_the_benchmark_supernet(channels: int, layers: int, classes: int, input_channels: int) -> None:
    space = nasbench201(channels=channels, layers=layers, num_classes=classes, input_channels=input_channels)
    c = channels
    stem = 9 * input_channels * c + 2 * c
    searched = layers * 6 * (9 + 1) * (c**2 + (2 * c) ** 2 + (4 * c) ** 2)
    blocks = sum(9 * k * 2 * k + 9 * (2 * k) ** 2 + k * 2 * k + 2 * 2 * 2 * k for k in (c, 2 * c))
    head = 2 * 4 * c + 4 * c * classes + classes
    assert tree.size(space.initial_weights(generator())) == stem + searched + blocks + head
    assert not list(space.supernet.buffers())
    if (channels, layers) == (16, 5):
        assert stem + searched + blocks + head == 1_686_106
    assert {name: tuple(t.shape) for name, t in space.initial_alphas(generator()).items()} == {"cell": (6, 5)}


@pytest.mark.parametrize(
    ("space", "weight", "shape", "one"),
    [
        (darts(channels=8, layers=3), "cells.1.input_last.pointwise.weight", (16, 32, 1, 1), "stem.1.weight"),
        (
            nasbench201(channels=8, layers=1),
            "layers.0.edges.0.operations.nor_conv_3x3.conv.weight",
            (8, 8, 3, 3),
            "norm.weight",
        ),
    ],
)
def test_weights_are_drawn_as_pytorch_does_by_default(
    space: CellSpace, weight: str, shape: tuple[int, ...], one: str
) -> None:
    state = torch.get_rng_state()
    weights, again = (space.initial_weights(generator()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    drawn = weights[weight]
    bound = 1 / drawn[0].numel() ** 0.5
    assert drawn.shape == shape
    assert 0.9 * bound < drawn.abs().max() <= bound
    assert torch.equal(weights[one], torch.ones_like(weights[one]))
    assert (weights[one.replace("weight", "bias")] == 0).all()


def test_parts_are_exchanged_in_a_copy() -> None:
    space = darts(channels=4, layers=3, operations="paper")
    fair = space.with_parts(relaxation=Sigmoid())
    assert fair.relaxation == Sigmoid()
    assert fair.discretization == space.discretization
    assert space.relaxation != Sigmoid()
    assert fair.to("cpu") is fair


def test_options_fill_only_settings_that_are_none() -> None:
    options = {"operations": "paper", "partial_channels": 2}
    rule = TopEdges(edges_per_node=1)
    space = DartsSettings(channels=4, layers=3).build(1, 5, discretization=rule)
    filled = space.with_parts(options=options)
    assert (len(filled.operations), filled.partial_channels) == (7, 2)
    assert (filled.input_channels, filled.num_classes, filled.discretization) == (1, 5, rule)
    assert (len(space.operations), space.partial_channels) == (8, 1)
    chosen = DartsSettings(channels=4, layers=3, operations="darts", partial_channels=1).build()
    assert chosen.with_parts(options=options).settings == chosen.settings


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("darts", {"layers": 2}, "layers"),
        ("darts", {"channels": 1}, "channels"),
        ("darts", {"nodes": 0}, "nodes"),
        ("darts", {"operations": "all"}, "operations"),
        ("darts", {"operations": ["conv_7x7"]}, "operations"),
        ("darts", {"operations": ["nor_conv_3x3"]}, "operations"),
        ("darts", {"operations": ["none"]}, "operations"),
        ("darts", {"operations": "none"}, "operations"),
        ("darts", {"operations": []}, "operations"),
        ("darts", {"operations": ["skip_connect", "skip_connect"]}, "operations"),
        ("darts", {"activation": "tanh"}, "activation"),
        ("darts", {"pooling": "soft"}, "pooling"),
        ("darts", {"channels": 8, "partial_channels": 3}, "partial_channels"),
        ("darts", {"channels": 8, "partial_channels": 0}, "partial_channels"),
        ("darts", {"channels": 8, "partial_channels": 8}, "partial_channels"),
        ("nasbench201", {"channels": 0}, "channels"),
        ("nasbench201", {"layers": 0}, "layers"),
        ("nasbench201", {"operations": "paper"}, "operations"),
        ("nasbench201", {"activation": "tanh"}, "activation"),
        ("nasbench201", {"channels": 4, "partial_channels": 3}, "partial_channels"),
    ],
)
def test_bad_settings_name_the_field(name: str, settings: dict[str, Any], field: str) -> None:
    settings_class = SPACES.get(name)
    with pytest.raises(InvalidValueError) as error:
        settings_class(**settings)
    assert error.value.field == f"{settings_class.__name__}.{field}"


@pytest.mark.parametrize("make", [darts, nasbench201])
@pytest.mark.parametrize("sizes", [{"num_classes": 1}, {"input_channels": 0}])
def test_bad_images_name_the_field(make: Any, sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError) as error:
        make(**sizes)
    assert error.value.field in sizes
