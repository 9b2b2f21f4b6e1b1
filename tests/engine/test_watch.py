"""The collapse watch, alone and in a search; the table of true accuracies; alphas that move seldom."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgenas import trees
from sgenas.engine import Search, SearchConfig, resume_search, run_search, watch
from sgenas.engine.run_folder import RunFolder
from sgenas.errors import ConfigError, DataError
from sgenas.spaces import AccuracyTable, Genotype, space
from sgenas.spaces.genotype import Cell, Edge
from sgenas.spaces.nasbench201_strings import all_strings, to_string

Make = Callable[..., SearchConfig]


def rows_of(path: Path, kind: str = "epoch") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_skip_connections() -> None:
    edges = (Edge(0, 2, "skip_connect"), Edge(1, 2, "sep_conv_3x3"), Edge(0, 3, "skip_connect"))
    normal = Cell(edges, concat=(2, 3), nodes=2)
    reduce = Cell(edges[1:2], concat=(2,), nodes=2)
    genotype = Genotype("darts", (("normal", normal), ("reduce", reduce)))
    assert watch.skip_connections(genotype) == {"normal": 2, "reduce": 0}


def test_edge_entropies() -> None:
    table = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    found = watch.edge_entropies({"cell": 0.3 * table})["cell"]
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5]))


@pytest.mark.parametrize(
    ("values", "earliest", "stop"),
    [
        ([1.0] * 9, 0, None),
        ([1.0] * 4 + [1.0, 1.0, 1.0, 1.0, 2.6], 0, 4),  # mean of the last five 1.32
        ([1.0] * 4 + [1.0, 1.0, 1.0, 1.0, 2.4], 0, None),  # 1.28
        ([1.0] * 8 + [9.0], 5, None),  # too early to go back to
        ([1.0] * 7 + [9.0], 0, None),  # no whole window before
        ([-1.0] * 5 + [9.0] * 4, 0, None),  # no ratio to a negative mean
    ],
)
def test_early_stop(values: list[float], earliest: int, stop: int | None) -> None:
    assert watch.early_stop(list(enumerate(values)), earliest) == stop


def test_a_search_logs_the_signs(small: Make, tmp_path: Path) -> None:
    config = small(watch={"eigenvalue_every": 2, "derived_every": 3})
    run_search(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert ["eigenvalue" in row for row in rows] == [False, True, False]
    assert ["derived_accuracy" in row for row in rows] == [False, False, True]
    last = rows[-1]
    assert last["accuracy_gap"] == pytest.approx(last["val_accuracy"] - last["derived_accuracy"])
    cell = json.loads((tmp_path / "run" / "genotype.json").read_text())["cells"]["normal"]
    assert last["skips_normal"] == sum(edge["operation"] == "skip_connect" for edge in cell["edges"])
    arrays = np.load(tmp_path / "run" / "alphas.npz")
    mixing = arrays["normal_mixing"]
    by_hand = -(mixing * np.log(mixing)).sum(-1) / math.log(mixing.shape[-1])
    np.testing.assert_allclose(arrays["normal_entropy"], by_hand, rtol=1e-5)
    assert last["entropy_normal"] == pytest.approx(by_hand[-1].mean(), rel=1e-5)


def test_the_eigenvalue_is_that_of_the_outer_loss(small: Make, tmp_path: Path) -> None:
    """Against the whole Hessian, computed column by column."""
    config = small(space={"activation": "softplus", "pooling": "smooth"})
    search = Search(config, RunFolder(tmp_path / "run"))
    loss, batch = search._outer_loss(), next(search._validation.batches())

    def of_flat(flat: torch.Tensor) -> torch.Tensor:
        return loss(search.state.weights, trees.unflatten(flat, search.alphas), batch)

    whole = torch.autograd.functional.hessian(of_flat, trees.flatten(search.alphas))
    largest = torch.linalg.eigvalsh(whole.double())[-1].item()
    assert search.eigenvalue() == pytest.approx(largest, rel=0.05)


def test_the_derived_cell_is_measured_with_the_weights_of_the_supernet(small: Make, tmp_path: Path) -> None:
    """Where the alphas leave no doubt, the derived cell without its competitors is the supernet itself."""
    place = {"space": "nasbench201", "layers": 8, "nodes": 4, "cells": 1, "channels": 4}
    search = Search(small(space=place), RunFolder(tmp_path / "run"))
    wanted = torch.tensor([3, 1, 4, 2, 3, 1])
    search.alphas["cell"].copy_(1000.0 * torch.nn.functional.one_hot(wanted, 5))
    assert search.evaluate(search.genotype) == pytest.approx(search.evaluate(), rel=1e-5)
    search.alphas["cell"].zero_()
    assert search.evaluate(search.genotype) != pytest.approx(search.evaluate(), rel=1e-3)


def test_early_stop_ends_the_search_with_the_earlier_cell(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_runs: Callable[..., None]
) -> None:
    config = small(
        epochs=20,
        estimator={"estimator": "first-order", "directions": 10},
        watch={"eigenvalue_every": 1, "early_stop": True, "early_stop_from": 3},
        alphas={"alpha_lr": 0.1},
    )
    monkeypatch.setattr(Search, "eigenvalue", lambda self: 1.0 if self.epoch < 8 else 9.0)
    result = run_search(config, tmp_path / "whole")
    assert result.finished
    assert len(result.epochs) == 9
    assert result.epochs[-1]["stopped_early_with_epoch"] == 4
    expected = rows_of(tmp_path / "whole")[4]["cell"]
    assert {name: str(cell) for name, cell in result.genotype.cells} == expected
    assert Genotype.load(tmp_path / "whole" / "genotype.json") == result.genotype
    # finished for good, and the same when it was stopped on the way
    assert resume_search(tmp_path / "whole").epochs == ()
    asked = iter(range(100))
    run_search(config, tmp_path / "parts", stop=lambda: next(asked) == 20)
    assert resume_search(tmp_path / "parts").genotype == result.genotype
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the right form, cell number i with accuracy 10 + i / 200 on one data set."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    rows = {arch: [10 + index / 200] for index, arch in enumerate(all_strings())}
    AccuracyTable(["cifar10"], rows).save(path)
    return path


def test_a_table_tells_the_true_accuracy_at_every_epoch(small: Make, tmp_path: Path, table: Path) -> None:
    place = {"space": "nasbench201", "layers": 8, "nodes": 4, "cells": 1, "channels": 4}
    config = small(space=place, watch={"table": str(table)}, alphas={"alpha_lr": 0.1})
    result = run_search(config, tmp_path / "run")
    index = list(all_strings()).index(to_string(result.genotype))
    last = rows_of(tmp_path / "run")[-1]
    assert last["true_cifar10"] == 10 + index / 200
    assert last["rank_cifar10"] == 15625 - index
    assert last["regret_cifar10"] == pytest.approx((15624 - index) / 200)


def test_a_bad_table_is_known_before_the_search(small: Make, tmp_path: Path, table: Path) -> None:
    place = {"space": "nasbench201", "layers": 8, "nodes": 4, "cells": 1}
    short = tmp_path / "short.csv"
    short.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match=r"--table .*short.csv.* must have 15625 rows, got 15624"):
        run_search(small(space=place, watch={"table": str(short)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_alphas_move_at_every_kth_step(small: Make, tmp_path: Path) -> None:
    config = small(alphas={"alpha_every": 2}, log_every=1)
    run_search(config, tmp_path / "run")
    steps = rows_of(tmp_path / "run", "step")
    assert ["outer_loss" in row for row in steps] == [index % 2 == 1 for index in range(9)]
    last = rows_of(tmp_path / "run")[-1]
    # Q = 2, N = 1: 4 passes where the alphas move, 1 where they do not
    assert last["forward"] == 4 * 4 + 5
    moved = [row["outer_loss"] for row in steps if row["epoch"] == 2 and "outer_loss" in row]
    assert last["outer_loss"] == pytest.approx(sum(moved) / len(moved))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": {"alpha_every": 0}}, "--alpha-every must be >= 1, got 0"),
        ({"watch": {"early_stop": True}}, "--early-stop only applies with --eigenvalue-every"),
        ({"watch": {"early_stop_from": 3}}, "--early-stop-from only applies with --early-stop"),
        ({"watch": {"table": "t.csv"}}, "--table only applies with --space nasbench201"),
        ({"watch": {"derived_every": -1}}, "--derived-every must be >= 0, got -1"),
        (
            {"space": {"activation": "tanh"}},
            "--activation must be one of auto, relu, silu, softplus, got 'tanh'",
        ),
        ({"space": {"pooling": "soft"}}, "--pooling must be one of hard, smooth, got 'soft'"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str, small: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("estimator", "wanted", "used"),
    [
        ("sge", "auto", "silu"),
        ("second-order", "auto", "relu"),
        ("sge", "relu", "relu"),
        ("first-order", "softplus", "softplus"),
    ],
)
def test_the_activation_follows_the_estimator(
    estimator: str, wanted: str, used: str, small: Make, tmp_path: Path
) -> None:
    config = small(
        estimator={"estimator": estimator, "directions": 2 if estimator == "sge" else 10},
        space={"activation": wanted},
    )
    search = Search(config, RunFolder(tmp_path / "run"))
    assert search.describe()["activation"] == used
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    by_name = space("darts", channels=2, layers=3, nodes=1, input_channels=1, activation=used)
    expected = by_name.logits(search.state.weights, search.alphas, images)
    assert torch.equal(search.space.logits(search.state.weights, search.alphas, images), expected)


@pytest.mark.parametrize(
    ("space_settings", "given", "used"),
    [
        ({}, None, 0.1),
        ({"pooling": "smooth"}, None, 0.01),
        ({"pooling": "smooth", "activation": "relu"}, None, 0.1),
        ({"space": "nasbench201", "layers": 8, "nodes": 4, "cells": 1}, None, 0.01),
        ({}, 0.5, 0.5),
    ],
)
def test_the_smoothing_follows_the_network(
    space_settings: dict[str, Any], given: float | None, used: float, small: Make, tmp_path: Path
) -> None:
    config = small(space=space_settings, estimator={"smoothing": given})
    search = Search(config, RunFolder(tmp_path / "run"))
    assert search.describe()["smoothing"] == search.estimator.smoothing == used


def test_alphas_that_would_never_move(small: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--alpha-every must be at most the 9 steps"):
        Search(small(alphas={"alpha_every": 10}), RunFolder(tmp_path / "run"))
