"""Each method with each estimator, in each space that it knows: it runs, learns and can be resumed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sgenas import trees
from sgenas.engine import Search, SearchConfig, resume_search, run_search
from sgenas.engine.run_folder import RunFolder
from sgenas.methods import METHODS, preset
from sgenas.spaces import regularisers

ESTIMATORS = ("first-order", "second-order", "sge")
PLACES = [(name, place) for name, row in METHODS.items() for place in row.spaces]
Make = Callable[..., SearchConfig]


def settings(make: Make, method: str, place: str, estimator: str) -> SearchConfig:
    config = make(
        method=method,
        epochs=2,
        estimator={"estimator": estimator, "directions": 2 if estimator == "sge" else 10},
    )
    space = dataclasses.replace(
        config.space, channels=4, partial_channels=2 if method == "pc-darts" else None
    )
    if place == "nasbench201":
        space = dataclasses.replace(space, space=place, layers=8, nodes=4, cells=1)
    return dataclasses.replace(config, space=space)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("method", "place"), PLACES)
def test_any_method_goes_with_any_estimator(
    method: str,
    place: str,
    estimator: str,
    small: Make,
    tmp_path: Path,
    assert_same_runs: Callable[..., None],
) -> None:
    config = settings(small, method, place, estimator)
    whole = run_search(config, tmp_path / "whole")
    assert whole.finished
    assert all(row["val_loss"] > 0 for row in whole.epochs)
    asked = iter(range(100))
    run_search(config, tmp_path / "parts", stop=lambda: next(asked) == 3)
    assert resume_search(tmp_path / "parts").finished
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("method", ["fair-darts", "beta-darts"])
def test_what_a_method_adds_is_in_the_direct_part_alone(method: str, small: Make, tmp_path: Path) -> None:
    """Against the same search without it: the gradient differs by the regulariser's own, no more."""
    weight = 3.0
    grads, searches = {}, {}
    for factor in (0.0, weight):
        config = settings(small, method, "darts", "sge")
        alphas = dataclasses.replace(config.alphas, regulariser_weight=factor)
        search = Search(dataclasses.replace(config, alphas=alphas), RunFolder(tmp_path / str(factor)))
        search.epoch = 1  # of 2, where a weight that rises is half of its end
        draw = torch.Generator().manual_seed(0)
        for table in search.alphas.values():
            table += torch.randn(table.shape, generator=draw)
        problem = search._problem(search._weight_optimizer())
        inner, outer = [next(search.inner_stream)], next(search.outer_stream)
        result = search.estimator(
            problem, search.state, search.alphas, inner, outer, generator=search.directions
        )
        grads[factor], searches[factor] = result, search
    share = 0.5 if METHODS[method].rising else 1.0
    leaves = trees.leaves(searches[weight].alphas)
    form = regularisers.beta_decay if method == "beta-darts" else regularisers.zero_one_squared
    own = torch.autograd.grad(share * weight * form(leaves), list(leaves.values()))
    for name, expected in zip(leaves, own, strict=True):
        difference = grads[weight].direct[name] - grads[0.0].direct[name]
        torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            grads[weight].indirect[name], grads[0.0].indirect[name], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["source", "paper"])
def test_presets_are_settings_that_exist(method: str, kind: str) -> None:
    config = SearchConfig.of_method(method, kind)
    flat = {}
    for group in dataclasses.asdict(config).values():
        if isinstance(group, dict):
            flat |= group
    for name, value in preset(method, kind).items():
        assert flat[name] == value
