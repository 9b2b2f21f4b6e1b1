"""What the benchmarks share: figures over seeds, and runs that are finished, unfinished or killed."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import record
from record import difference_text, finished, interval, mean_text, run_unfinished
from scipy import stats

from sgenas.spaces.nasbench201_space.strings import all_strings, from_string

CELL, OTHER = (from_string(text) for text in list(all_strings())[100:300:100])


def write(path: Path, *rows: dict[str, Any], epochs: int = 2, kind: str = "search") -> None:
    """A run directory with these rows of epochs, whose cell is that of the last one."""
    path.mkdir(parents=True, exist_ok=True)
    head = {"format": "sgenas-run", "version": 2, "kind": kind, "config": {"epochs": epochs}, "environment": {}}
    (path / "config.json").write_text(json.dumps(head))
    lines = [
        {"kind": "epoch", "epoch": n, "step": n, "architecture": CELL.to_dict()} | row for n, row in enumerate(rows)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if kind == "search":
        (path / "genotype.json").write_text(CELL.to_json())


def test_interval_is_that_of_a_paired_t_test() -> None:
    first, second = [94.1, 93.6, 94.4, 92.9], [93.9, 93.8, 93.1, 92.0]
    low, high = interval([one - other for one, other in zip(first, second, strict=True)])
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_figures_of_one_seed_have_no_deviation_and_no_interval() -> None:
    assert [mean_text([]), mean_text([1.25]), mean_text([1.0, 2.0])] == ["-", "1.25", "1.50 ± 0.71"]
    assert mean_text([1000, 3000], 0) == "2,000 ± 1,414"
    assert [difference_text([]), difference_text([-0.5])] == ["-", "-0.50"]
    assert difference_text([1.0, 2.0]) == "+1.50 [-4.85, +7.85]"


def test_run_is_finished_with_all_epochs_or_an_early_stop(tmp_path: Path) -> None:
    assert finished(tmp_path / "missing") is None
    write(tmp_path / "run", {})
    assert finished(tmp_path / "run") is None
    write(tmp_path / "run", {}, {})
    assert finished(tmp_path / "run") is not None
    write(tmp_path / "run", {"stopped_early_with_epoch": 0}, epochs=9)
    assert finished(tmp_path / "run") is not None
    write(tmp_path / "training", {}, {}, kind="training")
    assert finished(tmp_path / "training") is not None


def test_search_killed_between_its_last_row_and_its_cell_is_unfinished(tmp_path: Path) -> None:
    write(tmp_path, {}, {"architecture": OTHER.to_dict()})
    assert finished(tmp_path) is None


def test_unfinished_runs_are_started_and_their_failures_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", {}, {})
    started = []

    def start(name: str) -> "CompletedProcess[str]":
        started.append(name)
        if name == "b":
            write(tmp_path / name, {}, {})
        return CompletedProcess([], 1, "", "Traceback\nsgenas: no memory\n")

    run_unfinished("abc", 1, directory=tmp_path.joinpath, start=start, result=lambda found: found.path.name * 2)
    assert started == ["b", "c"]
    assert capsys.readouterr().out == "b: bb\nc: FAILED with 1: sgenas: no memory\n"


def test_results_hold_no_path_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path / "project")
    record.add_result("figures", {"data": f"parquet:{tmp_path / 'shared' / 'a.parquet'}", "out": tmp_path / "project"})
    (line,) = (tmp_path / "project" / "benchmarks" / "results" / "figures.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["data"], found["out"]) == ("parquet:../shared/a.parquet", "../project")
