import math
from collections.abc import Callable

import pytest

from sgenas.experiments.grid import Grid, Place
from sgenas.experiments.published import TABLE_1
from sgenas.experiments.table import Spread, collect, device_of, facts, per_run, spread


def test_spread_by_hand() -> None:
    assert spread([]) is None
    assert spread([3.0]) == Spread(3.0, None, 1)
    found = spread([90.0, 92.0, 94.0])
    assert found is not None
    # deviations -2, 0, 2: variance (4 + 0 + 4) / (3 - 1)
    assert (found.mean, found.count) == (92.0, 3)
    assert found.deviation == pytest.approx(2.0)


def test_the_lines_put_the_seeds_together(grid: Grid, done: Callable[..., None]) -> None:
    done(grid.place("digits/darts-sge/seed-0"), 0.5, params=1_000_000, seconds=3600.0)
    done(grid.place("digits/darts-sge/seed-1"), 0.7, params=2_000_000, seconds=7200.0)
    ((dataset, lines),) = collect(grid).parts
    assert dataset.name == "digits"
    line = lines[4]
    assert (line.mode, line.name, line.runs) == ("SGE", "SGE-NAS-a (DARTS)", "2 of 2")
    assert line.top1 is not None
    assert line.top1.mean == pytest.approx(60)
    assert line.top1.deviation == pytest.approx(math.sqrt(200))
    assert line.params is not None
    assert (line.params.mean, line.params.deviation) == (1.5, pytest.approx(math.sqrt(0.5)))
    assert line.search_hours == Spread(1.5, pytest.approx(math.sqrt(0.5)), 2)
    assert line.forward == Spread(1234, 0, 2)
    assert line.devices == ("CPU (x86_64, 1 thread)",)
    assert line.published is None


def test_what_is_missing_is_told(
    grid: Grid, done: Callable[..., None], failed: Callable[[Place, str], None]
) -> None:
    done(grid.place("digits/darts-sge/seed-0"), 0.5)
    failed(grid.place("digits/darts-sge/seed-1"), "the search diverged")
    table = collect(grid)
    line = table.parts[0][1][4]
    assert line.runs == "1 of 2, 1 failed"
    assert line.top1 == Spread(50.0, None, 1)
    assert [str(status) for status in table.failed] == ["failed in the search: the search diverged"]
    assert len(table.unfinished) == 14
    assert {str(status) for status in table.unfinished} == {"not begun"}
    assert dict(facts(table))["Runs"] == "1 of 16 done, 1 failed, 14 not finished"
    empty = table.parts[0][1][0]
    assert (empty.top1, empty.devices, empty.runs) == (None, (), "0 of 2")


def test_the_facts_name_dates_machine_versions_command_and_seeds(
    grid: Grid, done: Callable[..., None]
) -> None:
    before = dict(facts(collect(grid)))
    assert "Dates" not in before
    assert before["Command"] == "sgenas table1 --preset smoke --out OUT"
    done(grid.place("digits/darts-sge/seed-0"), 0.5)
    found = dict(facts(collect(grid)))
    assert found["Seeds"] == "0, 1"
    assert found["Dates"] == "2026-11-24T10:00:00+00:00 to 2026-11-24T12:00:00+00:00"
    assert found["Device"] == "CPU (x86_64, 1 thread)"
    assert found["Machine"] == "Linux-6-x86_64, 2 cores"
    assert found["Versions"] == "sgenas 0.1.0 at 0123456789ab, torch 2.14.1, Python 3.11.7"
    assert "--nodes 1" in found["Search"]


def test_a_device_in_words() -> None:
    cpu = {"device": "cpu", "device_name": "x86_64", "threads": 2}
    assert device_of(cpu) == "CPU (x86_64, 2 threads)"
    assert device_of(cpu | {"device": "cuda:1", "device_name": "NVIDIA H100"}) == "NVIDIA H100"


def test_every_run_is_listed_with_its_figures(grid: Grid, done: Callable[..., None]) -> None:
    done(grid.place("digits/pc-darts-sge/seed-1"), 0.5)
    runs = {run["name"]: run for run in per_run(collect(grid))}
    assert len(runs) == 16
    assert runs["digits/darts-sge/seed-0"]["figures"] is None
    assert runs["digits/pc-darts-sge/seed-1"]["state"] == "done"
    assert runs["digits/pc-darts-sge/seed-1"]["figures"]["search"]["last"]["forward"] == 1234


def test_the_papers_claims_follow_from_its_table() -> None:
    # "34.3 % GPU hours less than beta-DARTS" and "1.05 % to 3.50 % of top-1 on CIFAR-100"
    sgd, sge = (TABLE_1["cifar100", "beta-darts", estimator] for estimator in ("first-order", "sge"))
    assert 1 - sge.cost / sgd.cost == pytest.approx(0.343, abs=1e-3)
    gains = [
        TABLE_1["cifar100", method, "sge"].top1 - TABLE_1["cifar100", method, "first-order"].top1
        for method in ("darts", "pc-darts", "fair-darts", "beta-darts")
    ]
    assert max(gains) == pytest.approx(3.50)
    assert min(gains) == pytest.approx(1.05, abs=0.03)
