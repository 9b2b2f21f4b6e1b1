"""Configurations: components to plain data and back, old files, changes by dotted path."""

import inspect
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tiny_searches import CELLS, cells

from sgenas import SGE, SearchConfig, TrainConfig, search, train
from sgenas.bilevel import Estimator
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.errors import InvalidValueError, SgenasError
from sgenas.methods import METHODS
from sgenas.optim import INNER_OPTIMIZERS, SGD, Adam, InnerOptimizer
from sgenas.run.config import first_difference, from_plain, merged, to_plain
from sgenas.searching.config import PASSED_ON as SEARCH_PASSED_ON
from sgenas.spaces import (
    DISCRETIZATIONS,
    REGULARIZERS,
    RELAXATIONS,
    SPACES,
    Budget,
    Discretization,
    Regularizer,
    Relaxation,
)
from sgenas.training.config import PASSED_ON as TRAIN_PASSED_ON

COMPONENTS = [
    *(("estimator", Estimator, name, ESTIMATORS.get(name)()) for name in ESTIMATORS),
    *(("weight_optimizer", InnerOptimizer, name, INNER_OPTIMIZERS.get(name)(lr=0.5)) for name in INNER_OPTIMIZERS),
    *(("space", None, name, SPACES.get(name)()) for name in SPACES),
    *(("relaxation", Relaxation, name, RELAXATIONS.get(name)()) for name in RELAXATIONS),
    *(("regularizer", Regularizer, name, REGULARIZERS.get(name)()) for name in REGULARIZERS),
    *(("discretization", Discretization, name, DISCRETIZATIONS.get(name)()) for name in DISCRETIZATIONS),
]


def again(config: SearchConfig) -> SearchConfig:
    return SearchConfig.from_dict(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize(("group", "base", "name", "component"), COMPONENTS, ids=[row[2] for row in COMPONENTS])
def test_config_with_each_registered_component_is_read_back(group: str, base: Any, name: str, component: Any) -> None:
    config = replace(SearchConfig(), **{group: component})
    assert again(config) == config
    plain = config.to_dict()[group]
    assert plain["name"] == name
    if base is not None:
        assert from_plain(base, plain) == component


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(),
        CELLS,
        cells(estimator=SGE(num_directions=3, smoothing="auto", control_variate="neumann")),
        SearchConfig(weight_optimizer=SGD(lr=0.1, grad_clip=None), arch_optimizer=Adam(lr=0.1, betas=(0.9, 0.99))),
        SearchConfig(trajectory_lr=0.1, budget=Budget(max_params=1000, channels=4), log_every=3),
        *(SearchConfig.of_method(name) for name in METHODS),
        *(SearchConfig.of_method(name, preset="paper") for name, row in METHODS._items.items() if row.paper_name),
    ],
)
def test_config_is_read_back(config: SearchConfig) -> None:
    assert again(config) == config


@pytest.mark.parametrize(
    ("config", "function", "passed_on", "worked_out"),
    [
        (SearchConfig, search, SEARCH_PASSED_ON, {"space", "threads"}),
        (TrainConfig, train, TRAIN_PASSED_ON, {"schedule", "auxiliary_weight", "drop_path"}),
    ],
)
def test_every_setting_named_like_an_argument_is_passed_on_or_worked_out(
    config: Any, function: Any, passed_on: tuple[str, ...], worked_out: set[str]
) -> None:
    assert len(set(passed_on)) == len(passed_on)
    shared = inspect.signature(function).parameters.keys() & config.__dataclass_fields__.keys()
    assert shared == {*passed_on} | worked_out


def test_old_file_with_missing_settings_takes_the_defaults() -> None:
    plain = cells(epochs=7).to_dict()
    del plain["precision"], plain["data"]["cutout"], plain["estimator"], plain["weight_optimizer"]["grad_clip"]
    found = SearchConfig.from_dict(plain)
    assert found.epochs == 7
    assert found.precision == SearchConfig().precision
    assert found.weight_optimizer == replace(CELLS.weight_optimizer, grad_clip=None)
    assert SearchConfig.from_dict({}) == SearchConfig()


def changed(path: str, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(SearchConfig().to_dict()))
    place = data
    *groups, name = path.split(".")
    for group in groups:
        place = place[group]
    place[name] = value
    return data


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "object"),
        (changed("colour", 1), "'colour'"),
        (changed("epoch", 1), "did you mean 'epochs'"),
        (changed("data.colour", 1), "'colour'"),
        (changed("estimator.num_directions", 1), "'num_directions'"),
        (changed("estimator.name", "third-order"), "'third-order'"),
        (changed("estimator.name", None), "estimator"),
        (changed("epochs", "3"), "epochs"),
        (changed("epochs", True), "epochs"),
        (changed("epochs", 0), "epochs"),
        (changed("data.train_images", 1.5), "train_images"),
        (changed("weight_optimizer", None), "weight_optimizer"),
        (changed("weight_optimizer", {"name": "sgd"}), "weight_optimizer.lr must be set"),
        (changed("arch_optimizer.betas", [0.5]), "betas"),
        (changed("arch_optimizer.betas", "ab"), "betas"),
        (changed("space.operations", [["none"]]), "operations"),
        (changed("weight_optimizer.lr", 2**70), "lr"),
    ],
)
def test_bad_data_is_refused_in_one_line(data: Any, named: str) -> None:
    with pytest.raises(SgenasError) as caught:
        SearchConfig.from_dict(data)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_are_read_as_floats() -> None:
    found = SearchConfig.from_dict(changed("weight_optimizer.lr", 1)).weight_optimizer
    assert isinstance(found, SGD)
    assert isinstance(found.lr, float)


def test_unregistered_component_is_named() -> None:
    @dataclass(frozen=True)
    class Mine(SGE):
        pass

    with pytest.raises(InvalidValueError, match="Mine must be registered"):
        to_plain(Mine())


def test_merged_puts_settings_in_and_replaces_components_by_name() -> None:
    plain = {"epochs": 1, "estimator": {"name": "sge", "smoothing": 0.5}, "regularizer": None}
    assert merged(plain, {"epochs": 2, "estimator.num_directions": 3}) == {
        "epochs": 2,
        "estimator": {"name": "sge", "smoothing": 0.5, "num_directions": 3},
        "regularizer": None,
    }
    # in any order: the new component has only what is given for it
    found = merged(plain, {"estimator.max_hvps": 3, "estimator.name": "neumann"})
    assert found["estimator"] == {"name": "neumann", "max_hvps": 3}
    assert merged(plain, {"regularizer.name": "zero-one"})["regularizer"] == {"name": "zero-one"}
    assert plain["epochs"] == 1
    assert plain["estimator"] == {"name": "sge", "smoothing": 0.5}
    with pytest.raises(InvalidValueError) as caught:
        merged(plain, {"regularizer.weight": 2.0})
    assert caught.value.field == "weight"


def test_method_settings_and_recommendations_give_way_to_given_ones() -> None:
    found = SearchConfig.of_method("fair-darts", {"estimator.name": "sge", "epochs": 3})
    assert (found.epochs, found.data.batch_size) == (3, 128)
    # differences need a smooth network, or larger perturbations where max pooling stays
    assert found.space.activation == "silu"
    assert found.estimator == SGE(smoothing=0.1)
    given = {"estimator.name": "sge", "estimator.smoothing": 0.3, "space.activation": "relu"}
    found = SearchConfig.of_method("darts", given)
    assert found.space.activation == "relu"
    assert found.estimator == SGE(smoothing=0.3)
    smooth = SearchConfig.of_method("darts", {"estimator.name": "sge", "space.pooling": "smooth"})
    assert smooth.estimator == SGE(smoothing=0.01)
    assert SearchConfig.of_method(base=found, settings={"seed": 4}) == replace(found, seed=4)
    assert SearchConfig.of_method("darts").estimator == SearchConfig().estimator


@pytest.mark.parametrize(
    ("ours", "theirs", "named"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 2]}}, ""),
        ({"a": 1}, {"a": 2}, "a is 1 here, 2 there"),
        ({"b": {"c": [1, 2]}}, {"b": {"c": [1, 3]}}, "b.c[1]"),
        ({"b": {"c": (1, 2)}}, {"b": {"c": [1, 2]}}, ""),
        ({"b": [1]}, {"b": [1, 2]}, "b"),
        ({"new": 1, "a": 1}, {"a": 1}, ""),
        ({"a": 1}, {"a": 1, "gone": 2}, "gone"),
        ({"a": float("nan")}, {"a": float("nan")}, ""),
    ],
)
def test_first_difference_is_named_and_missing_settings_are_none(ours: Any, theirs: Any, named: str) -> None:
    found = first_difference(ours, theirs)
    assert found.startswith(named)
    assert bool(found) == bool(named)


def test_fields_without_init_are_no_settings() -> None:
    @dataclass(frozen=True)
    class Part:
        given: int = 1
        kept: int = field(default=2, init=False)

    assert to_plain(Part()) == {"given": 1}
    assert from_plain(Part, {"given": 3}) == Part(3)
