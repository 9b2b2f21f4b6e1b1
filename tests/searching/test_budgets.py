"""Budgets of a search: every architecture that it writes is within, and a penalty moves the alphas alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import stop_after
from tiny_searches import cells, module_search, unstarted_cells
from torch import nn

import sgenas
from sgenas import SGE, Budget, Genotype, tree
from sgenas.errors import InvalidValueError
from sgenas.optim import Adam
from sgenas.spaces import NasBench201Settings, ThresholdEdges
from sgenas.spaces.networks import network_size

SIZES: dict[str, int] = {"channels": 4, "layers": 3}


def size_of(genotype: Genotype) -> Any:
    return network_size(genotype, channels=4, layers=3, input_channels=1, resolution=8)


def test_every_cell_of_a_search_is_within_the_budget(tmp_path: Path) -> None:
    free = cells().run(progress=False)
    sizes = size_of(free.genotype)
    assert "derived_params" not in free.history[-1]
    budget = Budget(max_params=sizes.params - 1, max_macs=sizes.macs - 1, **SIZES)
    config = cells(budget=budget)
    config.run(tmp_path, stop=stop_after(2), progress=False)
    result = config.run(tmp_path, progress=False)
    assert result.genotype == Genotype.load(tmp_path / "genotype.json") != free.genotype
    assert Genotype.from_dict(result.history[-1]["architecture"]) == result.genotype
    for row in result.history:
        size = size_of(Genotype.from_dict(row["architecture"]))
        assert (row["derived_params"], row["derived_macs"]) == (size.params, size.macs)
        assert size.params < sizes.params
        assert size.macs < sizes.macs
    # the search is the same: a limit constrains the derivation alone
    assert [row["inner_loss"] for row in result.history] == [row["inner_loss"] for row in free.history]


@pytest.mark.parametrize(
    ("method", "space"),
    [
        ("pc-darts", {"channels": 8, "partial_channels": 4}),
        ("fair-darts", {}),
        ("beta-darts", None),
        ("fair-darts", None),
    ],
)
def test_every_method_and_space_keeps_to_a_budget(method: str, space: dict[str, Any] | None) -> None:
    config = cells(
        method=method, space=space or {}, epochs=1, warmup_epochs=0, budget=Budget(max_params=10**9, **SIZES)
    )
    if method == "fair-darts" and space is not None:
        # at the start no operation reaches its usual threshold
        config = replace(config, discretization=ThresholdEdges(threshold=0.3))
    if space is None:
        config = replace(config, space=NasBench201Settings(channels=2, layers=1))
    loose = config.run(progress=False)
    params = loose.history[-1]["derived_params"]
    assert params == size_of(loose.genotype).params
    tight = replace(config, budget=Budget(max_params=params - 1, **SIZES)).run(progress=False)
    assert size_of(tight.genotype).params == tight.history[-1]["derived_params"] < params


def test_penalty_is_in_the_outer_loss_alone() -> None:
    penalized = Budget(penalty="params", penalty_weight=3.0, **SIZES)
    run = unstarted_cells(budget=penalized, estimator=SGE(num_directions=2))
    batch, weights = next(run._val), run.state.weights
    (penalty,) = run.penalties()
    assert run.costs is not None
    # near the uniform mixture, where it is 1
    assert penalty(run.alphas).item() == pytest.approx(3, rel=0.02)
    problem = run.objectives().problem(run.weight_optimizer(), run.penalties(), None)
    difference = problem.outer_objective(weights, run.alphas, batch) - problem.inner_loss(weights, run.alphas, batch)
    torch.testing.assert_close(difference, penalty(run.alphas), rtol=1e-4, atol=1e-5)
    leaves = tree.leaves(run.alphas)
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(penalty(leaves), list(leaves.values())))


def test_heavy_penalty_makes_the_cell_cheap() -> None:
    heavy = Budget(penalty="macs", penalty_weight=100.0, **SIZES)
    result = cells(budget=heavy, arch_optimizer=Adam(lr=0.3, betas=(0.5, 0.999))).run(progress=False)
    for _, cell in result.genotype.cells:
        assert all("conv" not in edge.operation for edge in cell.edges)
    assert result.history[-1]["cost_penalty"] < 0.6 * 100


def test_module_keeps_to_a_budget() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
    choice = sgenas.Choice({"wide": wide, "linear": nn.Linear(8, 8), "skip": nn.Identity()}, name="block")
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), choice, nn.Linear(8, 1))
    free = sum(parameter.numel() for parameter in nn.Linear(1, 8).parameters()) + 9
    for limit, allowed in ((10**6, {"wide", "linear", "skip"}), (free + 72, {"linear", "skip"}), (free, {"skip"})):
        result = module_search(model, budget=Budget(max_params=limit), epochs=1)
        assert result.choices["block"] in allowed
        derived = sum(parameter.numel() for parameter in result.derive().parameters())
        assert result.history[-1]["derived_params"] == derived <= limit


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        (Budget(max_params=5, **SIZES), "Budget.max_params"),
        (Budget(max_params=9, channels=10**12), None),
        (Budget(max_params=9, layers=2), None),
    ],
)
def test_budget_that_no_cell_meets_ends_before_the_search(budget: Budget, field: str | None, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError) as caught:
        cells(budget=budget).run(tmp_path / "run", progress=False)
    assert field in (None, caught.value.field)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
