"""Runs side by side: grouped by settings, mean and deviation, one page."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from html_page import EVIL, Page

from sgenas.cli import main
from sgenas.errors import InvalidValueError, RunFolderError
from sgenas.report import read_run, write_comparison
from sgenas.report.compare import grouped, mean_and_deviation


@pytest.fixture
def runs(make_run: Callable[..., Path]) -> list[Path]:
    """Two groups: sge with seeds 0 and 1, first order with seed 0."""

    def run(name: str, seed: int, estimator: str, epochs: int) -> Path:
        config = {"seed": seed, "data": {"name": "digits"}, "estimator": {"name": estimator, "q": 10}}
        return make_run(name, epochs, config)

    return [run("a", 0, "sge", 3), run("b", 0, "first-order", 3), run("c", 1, "sge", 2)]


def test_groups_are_runs_that_differ_in_the_seed_alone(runs: list[Path]) -> None:
    sge, first = grouped([read_run(path) for path in runs])
    assert (sge.name, first.name) == ("name sge", "name first-order")
    assert sge.differences == {"estimator.name": "sge"}
    assert [record.path.name for record in sge.records] == ["a", "c"]
    assert sge.last("val_accuracy") == [0.5, 0.375]
    (alone,) = grouped([read_run(runs[1])])
    assert (alone.name, alone.differences) == ("b", {})


def test_trainings_differ_in_their_cells(make_run: Callable[..., Path]) -> None:
    def record(name: str, cells: Any, seed: int) -> Any:
        return read_run(make_run(name, 1, {"seed": seed, "genotype": {"cells": cells}}))

    one, two = grouped([record("a", [1], 0), record("b", [2], 0), record("c", [1], 1)])
    assert (one.name, two.name) == ("genotype cells 1", "genotype cells 2")
    assert len(one.records) == 2


def test_a_group_is_named_by_few_settings(make_run: Callable[..., Path]) -> None:
    def record(name: str, method: str, lr: float, estimator: str) -> Any:
        return read_run(
            make_run(name, 1, {"lr": lr, "method": method, "seed": 0, "estimator": {"estimator": estimator}})
        )

    records = [
        record("a", "darts", 0.025, "sge"),
        record("b", "darts", 0.025, "first-order"),
        record("c", "fair-darts", 0.1 * 0.05, "sge"),
    ]
    found = grouped(records)
    assert [group.name for group in found] == [
        "darts, sge",
        "darts, first-order",
        "fair-darts, sge",
    ]
    # 0.1 * 0.05 is 0.005000000000000001
    assert found[2].differences == {"lr": "0.005", "method": "fair-darts", "estimator.estimator": "sge"}
    # where method and estimator do not tell, the next setting does
    other = grouped([records[0], record("d", "darts", 0.5, "sge")])
    assert [group.name for group in other] == ["lr 0.025", "lr 0.5"]


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([]) is None
    assert mean_and_deviation([3.0]) == (3.0, None)
    assert mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, stdev([1.0, 2.0, 6.0]))


def test_the_page_has_a_row_for_each_group(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text())
    assert {"name sge", "name first-order", "0, 1", "43.75 \u00b1 8.84", "50.00", "estimator.name"} < set(
        page.words
    )
    # searches of different lengths: 3 and 2 epochs of 1,200 passes
    assert "3,000" in page.words
    assert page.tags.count("svg") == 1 + 2 * 3
    assert "script" not in page.tags
    for name, value in page.attributes:
        assert name.startswith("xmlns") or "http" not in value


def test_hostile_settings_stay_text(make_run: Callable[..., Path], tmp_path: Path) -> None:
    paths = [make_run(f"<b>{name}", 2, {EVIL: name, "data": EVIL}) for name in (EVIL.replace("/", ""), "x")]
    text = write_comparison(paths, tmp_path / "all.html").read_text()
    assert "<script" not in text
    assert "<b>" not in text


def test_runs_that_have_not_finished_an_epoch(make_run: Callable[..., Path], tmp_path: Path) -> None:
    paths = [make_run("a", 0), make_run("b", 0)]
    words = Page(write_comparison(paths, tmp_path / "all.html").read_text()).words
    assert words.count("no cell yet") == 2


def test_what_cannot_be_compared(runs: list[Path], make_run: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "all.html"
    with pytest.raises(InvalidValueError, match=r"runs must be given once, got .*/a twice"):
        write_comparison([runs[0], runs[1], runs[0]], out)
    training = make_run("training", 1)
    config = training / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"kind": "training"}))
    with pytest.raises(InvalidValueError, match="all searches or all trainings, got search and training"):
        write_comparison([runs[0], training], out)
    with pytest.raises(RunFolderError, match="holds no run"):
        write_comparison([runs[0], tmp_path], out)
    with pytest.raises(RunFolderError, match="must be a file to write, got a folder"):
        write_comparison(runs, tmp_path)
    assert not out.exists()


def test_the_command(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    out = tmp_path / "all.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert "mean and standard deviation" in out.read_text()
    assert main(["report", str(runs[0])]) == 0
    assert (runs[0] / "report.html").exists()
    assert main(["report", str(runs[0]), "--out", str(tmp_path / "one.html")]) == 0
    assert (tmp_path / "one.html").read_text() == (runs[0] / "report.html").read_text()
    capsys.readouterr()
    assert "holds no run" in fails("report", str(tmp_path), str(runs[0]))
