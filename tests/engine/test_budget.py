"""Budgets of a search: every cell that it writes down is within, and the penalty moves the alphas alone."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas import trees
from sgenas.cli import main
from sgenas.engine import BudgetSettings, Search, SearchConfig, resume_search, run_search
from sgenas.engine.run_folder import RunFolder, read_config
from sgenas.errors import ConfigError, DataError
from sgenas.nets import network_size
from sgenas.report import read_run
from sgenas.report.page import render
from sgenas.spaces import Genotype
from sgenas.spaces.costs import expected_cost

Make = Callable[..., SearchConfig]
SIZES: dict[str, int] = {"budget_channels": 4, "budget_layers": 3}


def size_of(genotype: Genotype) -> Any:
    return network_size(genotype, channels=4, layers=3, input_channels=1, resolution=8)


def costs_of(path: Path) -> tuple[list[dict[str, Any]], list[Genotype]]:
    """Epoch rows of a run, and the cells that they tell of."""
    record = read_run(path)
    assert record.genotype is not None
    cells = [
        dataclasses.replace(
            record.genotype,
            cells=tuple((name, cell.rewired(row["cell"][name])) for name, cell in record.genotype.cells),
        )
        for row in record.epochs
    ]
    return list(record.epochs), cells


def test_every_cell_of_a_search_is_within_the_budget(small: Make, tmp_path: Path) -> None:
    free = run_search(small(), tmp_path / "free")
    sizes = size_of(free.genotype)
    assert "derived_params" not in free.epochs[-1]
    budget = {"max_params": sizes.params - 1, "max_macs": sizes.macs - 1} | SIZES
    result = run_search(small(budget=budget), tmp_path / "bound")
    rows, cells = costs_of(result.path)
    assert cells[-1] == result.genotype == Genotype.load(result.path / "genotype.json")
    assert result.genotype != free.genotype
    for row, cell in zip(rows, cells, strict=True):
        size = size_of(cell)
        assert (row["derived_params"], row["derived_macs"]) == (size.params, size.macs)
        assert size.params < sizes.params
        assert size.macs < sizes.macs
    assert read_config(result.path).budget == BudgetSettings(**budget)
    network = json.loads((result.path / "config.json").read_text())["environment"]["budget_network"]
    assert network["channels"] == 4
    assert network["classes"] == 10
    # what trains is the same: a budget bears on the derivation alone
    assert [row["inner_loss"] for row in rows] == [row["inner_loss"] for row in free.epochs]
    assert "parameters, derived" in render(read_run(result.path))
    assert resume_search(result.path).genotype == result.genotype


@pytest.mark.parametrize(
    ("method", "space"),
    [
        ("pc-darts", {"channels": 8}),
        ("fair-darts", {"derivation": "threshold-edges", "threshold": 0.3}),
        ("beta-darts", {}),
        ("darts", {"space": "nasbench201", "layers": 8, "nodes": 4, "cells": 1}),
        ("fair-darts", {"space": "nasbench201", "layers": 8, "nodes": 4, "cells": 1}),
    ],
)
def test_every_method_and_space_keeps_to_a_budget(
    small: Make, tmp_path: Path, method: str, space: dict[str, Any]
) -> None:
    config = small(method=method, space=space, epochs=1, budget={"max_params": 10**9} | SIZES)
    loose = run_search(config, tmp_path / "loose")
    params = loose.epochs[-1]["derived_params"]
    assert params == size_of(loose.genotype).params
    tight = dataclasses.replace(config, budget=BudgetSettings(max_params=params - 1, **SIZES))
    result = run_search(tight, tmp_path / "tight")
    assert size_of(result.genotype).params == result.epochs[-1]["derived_params"] < params


def test_the_penalty_is_in_the_direct_part_alone(small: Make) -> None:
    plain = Search(small(), RunFolder("unused"))
    weighed = Search(small(budget={"cost": "params", "cost_weight": 3.0} | SIZES), RunFolder("unused"))
    batch = plain.next_batch(plain.outer_stream)
    weights, alphas = plain.state.weights, trees.leaves(plain.alphas)
    table, penalty = weighed.costs.tables["params"], weighed.costs.penalty
    assert penalty is not None
    expected = 3 * expected_cost(table, plain.space.mixing(alphas))
    torch.testing.assert_close(penalty(alphas), expected)
    # near the uniform mixture, where it is 1
    assert penalty(alphas).item() == pytest.approx(3, rel=0.02)
    difference = weighed._outer_loss()(weights, alphas, batch) - plain._outer_loss()(weights, alphas, batch)
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-5)
    # the inner loss, and with it every perturbed step, does not know of it
    torch.testing.assert_close(
        weighed._loss(weights, alphas, batch), plain._loss(weights, alphas, batch), rtol=0, atol=0
    )


def test_a_heavy_penalty_makes_the_cell_cheap(small: Make, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"alphas": {"alpha_lr": 0.3}, "epochs": 2}
    heavy = {"cost": "macs", "cost_weight": 100.0} | SIZES
    result = run_search(small(budget=heavy, **changes), tmp_path / "run")
    last = result.epochs[-1]
    pools = tuple(
        (name, cell.rewired("2: max_pool_3x3(0) + avg_pool_3x3(1)")) for name, cell in result.genotype.cells
    )
    assert last["derived_macs"] == size_of(dataclasses.replace(result.genotype, cells=pools)).macs
    assert last["cost_penalty"] < 0.2 * 100


def test_a_budget_that_no_cell_meets_ends_before_the_search(small: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--max-params must be >= \d+, which the smallest .* got 5$"):
        run_search(small(budget={"max_params": 5} | SIZES), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_beyond_all_numbers_is_refused(small: Make) -> None:
    huge = {"max_params": 9, "budget_channels": 10**12}
    with pytest.raises(
        ConfigError, match="must make a network that can be counted, got 1000000000000 and 20"
    ):
        Search(small(budget=huge), RunFolder("unused"))


def test_a_latency_table_from_the_command_line(
    small: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.json"
    words = "latency --channels 4 --layers 3 --nodes 1 --resolution 8 --input-channels 1 --repeats 2"
    command = [*words.split(), "--device", "cpu", "--out", str(path)]
    assert main(command) == 0
    assert "operations where they stand" in capsys.readouterr().out
    assert main(command) == 2
    assert "must be a new file, or pass --overwrite" in capsys.readouterr().err
    table = json.loads(path.read_text())
    assert table["facts"]["device"] == "cpu"
    # made up, so that the outcome is certain: a convolution takes long
    for row in table["operations"]:
        row["milliseconds"] = 100.0 if "conv" in row["operation"] else 1.0
    table["rest_milliseconds"] = 10.0
    path.write_text(json.dumps(table))
    budget = {"max_latency": 50.0, "latency_table": str(path)} | SIZES
    result = run_search(small(budget=budget, epochs=1), tmp_path / "run")
    # 3 cells of two operations
    assert result.epochs[-1]["derived_latency"] == 16.0
    assert "conv" not in str(result.genotype)
    penalised = run_search(
        small(budget=budget | {"cost": "latency", "cost_weight": 0.5}, epochs=1), tmp_path / "other"
    )
    assert penalised.epochs[-1]["cost_penalty"] == pytest.approx(0.5, rel=0.02)
    with pytest.raises(ConfigError, match=r"table.json must be of a network with channels 6, got 4$"):
        run_search(small(budget=budget | {"budget_channels": 6}), tmp_path / "third")
    with pytest.raises(ConfigError, match=r"^--max-latency must be >= 16, which the smallest"):
        run_search(small(budget=budget | {"max_latency": 15.9}), tmp_path / "third")
    table["operations"].pop()
    path.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match="latency table must have Place"):
        run_search(small(budget=budget), tmp_path / "third")
    path.write_text("nothing")
    with pytest.raises(DataError, match=r"^--latency-table .*table.json must be JSON"):
        run_search(small(budget=budget), tmp_path / "third")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_params": 0}, "--max-params must be >= 1, got 0"),
        ({"max_macs": -3}, "--max-macs must be >= 1, got -3"),
        ({"max_latency": 0.0}, "--max-latency must be > 0 and finite, got 0.0"),
        ({"max_latency": 1.0}, "--max-latency only applies with a --latency-table"),
        ({"latency_table": "x"}, "--latency-table only applies with --max-latency or --cost latency"),
        ({"cost": "energy"}, "--cost must be one of params, macs, latency, got 'energy'"),
        ({"cost": "latency"}, "--cost only applies with a --latency-table"),
        ({"cost": "macs", "cost_weight": 0.0}, "--cost-weight must be > 0 and finite, got 0.0"),
        ({"cost_weight": 2.0}, "--cost-weight only applies with --cost"),
        ({"budget_channels": 8}, "--budget-channels only applies with a budget or --cost"),
        ({"max_params": 9, "budget_channels": 1}, "--budget-channels must be >= 2, got 1"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BudgetSettings(**settings)


def test_too_few_layers_for_both_kinds_of_cell() -> None:
    with pytest.raises(ConfigError, match="--budget-layers must be >= 3, got 2"):
        SearchConfig(budget=BudgetSettings(max_params=9, budget_layers=2))
