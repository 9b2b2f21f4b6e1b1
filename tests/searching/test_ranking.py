"""Rank correlation of a supernet with a table: against scipy and definitions, during and after a search."""

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from stopping import stop_after
from tiny_searches import cells, module_search

from sgenas.cli.main import main
from sgenas.errors import CheckpointError, DataError, InvalidValueError, RunDirError
from sgenas.run.callbacks import Callback
from sgenas.run.checkpoint import load_checkpoint, save_checkpoint
from sgenas.searching.callbacks import Evaluation, SupernetRanking, rank_supernet
from sgenas.searching.callbacks.ranking import rank_correlations
from sgenas.searching.ranking import rank_run
from sgenas.spaces import AccuracyTable, NasBench201Settings
from sgenas.spaces.nasbench201_space.strings import all_strings

SPACE = NasBench201Settings(channels=2, layers=1)
ACCURACIES = {arch: (10 + 80 * n * 7919 % 9973 / 9973,) for n, arch in enumerate(all_strings())}


@pytest.fixture(scope="module")
def table() -> AccuracyTable:
    return AccuracyTable(["cifar10"], ACCURACIES)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    with path.open("w", newline="") as opened:
        csv.writer(opened).writerows([("arch", "cifar10_test"), *((arch, *row) for arch, row in ACCURACIES.items())])
    return path


def by_definition(x: Any, y: Any) -> float:
    """Pairs in the same order minus pairs in opposite order, over the geometric mean of the pairs without ties."""
    concordant = discordant = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        product = (x[i] - x[j]) * (y[i] - y[j])
        concordant, discordant = concordant + (product > 0), discordant + (product < 0)
        untied_x, untied_y = untied_x + (x[i] != x[j]), untied_y + (y[i] != y[j])
    return float((concordant - discordant) / (untied_x * untied_y) ** 0.5)


@pytest.mark.parametrize("levels", [2, 3, 10, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_the_definition_with_ties(levels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = draw.integers(levels, size=(2, 40))
    y = np.where(draw.random(40) < 0.5, x, y)
    tau, rho = rank_correlations(x, y)
    assert tau == pytest.approx(by_definition(x, y), abs=1e-12)
    assert rho == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1], abs=1e-12)


def test_same_order_has_1_opposite_order_minus_1_and_no_order_none() -> None:
    assert rank_correlations([1, 2, 3], [10, 11, 90]) == (1.0, 1.0)
    assert rank_correlations([1, 2, 3], [3, 2, 1]) == (-1.0, -1.0)
    assert rank_correlations([1, 2, 3], [5, 5, 5]) == (None, None)


class Kept(Callback):
    """Keeps the search at its end."""

    run: Any

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        self.run = run


def test_ranking_has_both_accuracies_of_distinct_architectures(table: AccuracyTable) -> None:
    """Against the supernet with one-hot mixing weights, batch by batch."""
    kept = Kept()
    cells(space=SPACE, epochs=1).run(progress=False, callbacks=[kept])
    run = kept.run
    found = rank_supernet(run, table, count=6, batches=2)
    assert found.dataset == "cifar10"
    assert len(set(found.architectures)) == 6
    for architecture, ours, theirs in zip(found.architectures, found.supernet, found.tabulated, strict=True):
        network = run.supernet(run.space.one_hot(architecture))
        hits = count = 0
        with torch.no_grad():
            for images, labels in itertools.islice(run.callbacks[0].batches(), 2):
                hits += int((network(images).argmax(dim=1) == labels).sum())
                count += len(labels)
        assert ours == pytest.approx(hits / count, abs=1e-7)
        assert theirs == table.query(architecture)["cifar10"]
    assert (found.kendall_tau, found.spearman) == rank_correlations(found.supernet, found.tabulated)
    assert rank_supernet(run, table, count=6, batches=2) == found
    assert rank_supernet(run, table, count=6, batches=2, seed=1).architectures != found.architectures


def test_ranking_takes_what_a_small_space_has(table: AccuracyTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgenas.searching.drawing.TRIES", 200)
    kept = Kept()
    space = NasBench201Settings(channels=1, layers=1, operations=("none", "skip_connect"))
    cells(space=space, epochs=1).run(progress=False, callbacks=[kept])
    assert len(rank_supernet(kept.run, table, batches=1).architectures) == 64


def test_command_gives_what_the_callback_logged(table: AccuracyTable, file: Path, tmp_path: Path) -> None:
    callback = SupernetRanking(table, every=2, count=5, batches=1, seed=3)
    path = tmp_path / "run"
    config = cells(space=SPACE, table=str(file))
    result = config.run(path, progress=False, callbacks=[callback])
    assert "kendall_tau" not in result.history[0]
    plain = config.run(progress=False)
    assert torch.equal(plain.alphas["cell"], result.alphas["cell"]), "measuring changes no number of the search"
    before = {each.name: each.stat().st_mtime_ns for each in path.iterdir()}
    found, epochs = rank_run(path, count=5, batches=1, seed=3)
    assert epochs == 2
    assert (found.kendall_tau, found.spearman) == (result.history[1]["kendall_tau"], result.history[1]["spearman"])
    assert {each.name: each.stat().st_mtime_ns for each in path.iterdir()} == before


def test_command_ranks_a_search_in_the_middle(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    cells(space=SPACE, epochs=3).run(path, stop=stop_after(4), progress=False)
    assert main(["rank", str(path), "--table", str(file), "--count", "4", "--batches", "1"]) == 0
    out = capsys.readouterr().out
    assert "Kendall's tau" in out
    assert "after 1 epoch\n" in out


def test_run_without_a_table_or_from_python_is_refused(tmp_path: Path) -> None:
    cells(space=SPACE, epochs=1).run(tmp_path / "cells", progress=False)
    with pytest.raises(InvalidValueError) as caught:
        rank_run(tmp_path / "cells")
    assert caught.value.field == "table"
    module_search(run_dir=tmp_path / "module")
    with pytest.raises(RunDirError, match="SupernetRanking"):
        rank_run(tmp_path / "module")
    with pytest.raises(RunDirError, match="does not exist"):
        rank_run(tmp_path / "nothing")


def test_checkpoint_needs_the_weights_and_the_data_of_its_search_alone(file: Path, tmp_path: Path) -> None:
    cells(space=SPACE, epochs=1).run(tmp_path / "run", progress=False)
    path = tmp_path / "run" / "checkpoint.safetensors"
    whole, settings = load_checkpoint(path), {"count": 3, "batches": 1}
    found = rank_run(tmp_path / "run", file, **settings)
    own = {name: whole["own"][name] for name in ("weights", "fingerprint")}
    save_checkpoint(path, {"epoch": 1, "own": own})
    assert rank_run(tmp_path / "run", file, **settings) == found
    save_checkpoint(path, {"epoch": 1, "own": own | {"fingerprint": "0"}})
    with pytest.raises(DataError, match="images must be those"):
        rank_run(tmp_path / "run", file, **settings)
    save_checkpoint(path, {"epoch": 1, "own": own | {"weights": {}}})
    with pytest.raises(CheckpointError) as caught:
        rank_run(tmp_path / "run", file, **settings)
    assert "\n" not in str(caught.value)


def test_table_of_other_classes_or_another_space_is_refused() -> None:
    other = AccuracyTable(["cifar100"], ACCURACIES)
    with pytest.raises(InvalidValueError, match="classes") as caught:
        cells(space=SPACE, epochs=1).run(progress=False, callbacks=[SupernetRanking(other)])
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidValueError) as caught:
        cells(epochs=1).run(progress=False, callbacks=[SupernetRanking(other)])
    assert caught.value.field == "table"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lines: lines[:-1], "15625 rows"),
        (lambda lines: [*lines[:-1], lines[-1].split(",")[0] + ","], "finite number"),
        (lambda lines: [*lines, lines[-1]], "repeat"),
        (lambda lines: ["{" + ", ".join(f'"{n}": 1' for n in range(20_000))], "columns"),
    ],
)
def test_faulty_table_is_refused_in_one_short_line(change: Any, word: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "faulty.csv"
    path.write_text("\n".join(change(file.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match=word) as caught:
        SupernetRanking(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("settings", [{"every": 0}, {"count": 1}, {"batches": 0}])
def test_setting_out_of_range_is_named_before_the_search(settings: dict[str, int], table: AccuracyTable) -> None:
    with pytest.raises(InvalidValueError) as caught:
        SupernetRanking(table, **settings)
    assert caught.value.field == next(iter(settings))


def test_table_without_a_drawn_architecture_is_refused_before_any_is_measured(
    table: AccuracyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    cells(space=SPACE, epochs=1).run(progress=False, callbacks=[kept])
    few = AccuracyTable(["cifar10"], dict(list(ACCURACIES.items())[:50]), complete=False)
    monkeypatch.setattr(Evaluation, "means", None)
    with pytest.raises(DataError, match="no row for"):
        rank_supernet(kept.run, few, count=6)
