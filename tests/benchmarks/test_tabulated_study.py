"""The study and the comparison of cures: their settings, and figures of runs that are written here."""

import dataclasses
import itertools
from argparse import Namespace
from pathlib import Path
from typing import Any

import cures
import pytest
import tabulated_study as study

import sgenas
from sgenas.report.run_record import RunRecord
from sgenas.searching.callbacks.collapse import epoch_to_return_to
from sgenas.searching.selection import RandomSelection
from sgenas.spaces import AccuracyTable
from sgenas.spaces.nasbench201_space.strings import all_strings, from_string

ACCURACIES = {arch: (10 + 80 * n * 7919 % 9973 / 9973,) for n, arch in enumerate(all_strings())}
NAMES = list(ACCURACIES)


@pytest.fixture(scope="module")
def table() -> AccuracyTable:
    return AccuracyTable(["cifar10"], ACCURACIES)


def record(name: str, passes: list[int]) -> RunRecord:
    rows = [
        {"forward": forward, "seconds": 1.0, "tabulated_cifar10": ACCURACIES[name][0] + n}
        for n, forward in enumerate(passes)
    ]
    return RunRecord(Path("run"), "search", {}, {}, epochs=tuple(rows), genotype=from_string(name))


def test_pairs_are_of_one_seed_and_of_the_epoch_with_equal_passes(
    table: AccuracyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {
        ("first-order", 0): record(NAMES[10], [5, 10]),
        ("first-order", 1): record(NAMES[20], [5, 10]),
        ("sge", 0): record(NAMES[30], [9, 18, 27]),
        ("sge", 1): record(NAMES[40], [11, 22]),
        ("sge", 2): record(NAMES[50], [9, 18]),
    }
    monkeypatch.setattr(study, "run_of", lambda given, method, arm, seed: runs.get((arm, seed)))
    given = Namespace(seeds=[0, 1, 2, 3], reference=None)
    found = study.row(given, table, "darts", "sge")
    own = {name: ACCURACIES[NAMES[name]][0] for name in (10, 20, 30, 40)}
    assert found["seeds"] == [0, 1, 2]
    assert found["differences"] == [own[30] - own[10], own[40] - own[20]]
    # the second one has no epoch with as few passes
    assert found["at_equal_passes"] == [own[30], None]
    assert found["passes"] == [27, 22, 18]
    given.reference = "sge"
    assert study.row(given, table, "darts", "first-order")["differences"] == [own[10] - own[30], own[20] - own[40]]


def test_run_of_other_settings_ends_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Namespace(space="nasbench201", data="digits", table=None, changes='{"data.image_size": null}')
    given.out, given.name = "runs", "preset"
    plain = study.configuration(given, "darts", "first-order", 3).to_dict()
    own = dataclasses.replace(record(NAMES[0], [5]), config=plain | {"data": plain["data"] | {"data": "/absolute"}})
    monkeypatch.setattr(study, "finished", lambda path: own)
    assert study.run_of(given, "darts", "first-order", 3) is own
    with pytest.raises(SystemExit, match="selection is .* here, None there"):
        study.run_of(given, "darts", "preset", 3)


def test_arms_are_what_they_are_called() -> None:
    given = Namespace(space="nasbench201", data="digits", table=None, changes='{"data.image_size": null}')
    configs = {arm: study.configuration(given, "darts", arm, 5) for arm in (*study.ARMS, *study.STRATEGIES)}
    assert {arm for arm, config in configs.items() if config.selection is not None} == {"preset"}
    assert [configs[arm].strategy for arm in study.STRATEGIES] == list(study.STRATEGIES)
    # the preset's selection apart, first order is the preset
    assert dataclasses.replace(configs["preset"], selection=None) == configs["first-order"]
    names = {arm: type(config.estimator).__name__ for arm, config in configs.items() if arm in study.ESTIMATORS}
    expected = ["FirstOrder", "FiniteDifference", "SGE", "SGE", "FirstOrder", "FirstOrder", "Unrolled"]
    assert list(names.values()) == [*expected, "Neumann", "ConjugateGradient", "EvolutionStrategies"]
    silu = configs["first-order-silu"]
    assert silu == dataclasses.replace(configs["first-order"], space=configs["sge"].space)
    plain, recommended = configs["sge-plain"], configs["sge"]
    assert (plain.space.activation, plain.estimator.smoothing) == ("relu", 0.01)  # type: ignore[attr-defined]
    assert (recommended.space.activation, recommended.estimator.smoothing) == ("silu", 0.01)  # type: ignore[attr-defined]


def test_spaces_differ_in_the_space_alone() -> None:
    same = {"data": "digits", "table": None, "changes": '{"data.image_size": null}', "name": "small", "out": "runs"}
    givens = {space: Namespace(space=space, **same) for space in study.SPACES}
    assert {study.directory(given, "darts", "sge", 3).parent.parent.name for given in givens.values()} == set(givens)
    for method, arm in itertools.product(("darts", "beta-darts"), study.ARMS):
        cells, macro = (study.configuration(given, method, arm, 3) for given in givens.values())
        assert (macro.space.name, macro.space.channels) == ("nasbench-macro", cells.space.channels)
        assert dataclasses.replace(macro, space=cells.space) == cells


def test_table_arms_take_as_many_candidates_as_the_strategies(table: AccuracyTable) -> None:
    drawn = {}
    for kind, seed in itertools.product(study.STRATEGIES, (0, 1)):
        found = study.from_table(Namespace(seeds=[seed]), table, kind)
        drawn[kind, seed] = found["final"][0]["cifar10"]
    pool: Any = study.TablePool(table)
    RandomSelection().fill(pool, sgenas.random.generator(0, "selection"))
    assert drawn["random", 0] == max(pool.known.values())
    assert len(pool) == 100
    assert drawn["random", 0] != drawn["random", 1]


def test_early_stop_may_take_a_cell_after_a_fifth_of_the_epochs() -> None:
    given = Namespace(data="digits", table=None, **dict.fromkeys(cures.SIZES) | {"epochs": 20})
    config = cures.configuration(given, "early-stop", 0)
    assert (config.early_stop, config.early_stop_from) == (True, 4)
    plain = cures.configuration(given, "darts", 0)
    assert dataclasses.replace(config, early_stop=False, eigenvalue_every=0, early_stop_from=10) == plain


def test_early_stop_that_could_never_stop_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AccuracyTable, "load", lambda path: None)
    monkeypatch.setattr("sys.argv", ["cures.py", "--arms", "early-stop", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="at least 9, got 4"):
        cures.main()
    assert epoch_to_return_to([(n, 1.0 + n) for n in range(9)], 0) is not None
    assert epoch_to_return_to([(n, 1.0 + n) for n in range(8)], 0) is None
