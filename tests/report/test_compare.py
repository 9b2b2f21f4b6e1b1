"""Runs side by side: grouped by settings, mean and deviation, one page."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from html_page import EVIL, Page

from sgenas.cli import main
from sgenas.errors import InvalidValueError, RunFolderError
from sgenas.report import compare, read_run, run_folder, write_comparison
from sgenas.report.compare import best_first, grouped, mean_and_deviation


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
        write_comparison([tmp_path, tmp_path / "none"], out)
    with pytest.raises(RunFolderError, match="must be a file to write, got a folder"):
        write_comparison(runs, tmp_path)
    assert not out.exists()


def test_a_run_that_cannot_be_read_hides_no_other(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Page(write_comparison(runs, tmp_path / "all.html").read_text()).words
    damaged = tmp_path / "<b>damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"format": "sgenas-')
    lines = [
        f"{damaged / 'config.json'} must be JSON, got text that is not",
        f"run folder {tmp_path / 'gone'} does not exist or is not a folder",
    ]
    given = [runs[0], damaged, *runs[1:], tmp_path / "gone"]
    assert main(["report", *map(str, given), "--out", str(tmp_path / "all.html")]) == 0
    captured = capsys.readouterr()
    assert captured.err == "".join(f"sgenas: warning: left out: {line}\n" for line in lines)
    assert str(tmp_path / "all.html") in captured.out
    words = Page((tmp_path / "all.html").read_text()).words
    for new in ("Left out", *lines):
        words.remove(new)
    assert "".join(words).split() == "".join(whole).split()


def test_of_many_runs_each_has_a_row_and_few_are_drawn(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """45 runs in 23 groups: what is read and drawn is counted."""

    def run(group: int, seed: int) -> Path:
        path = make_run(f"g{group}-{seed}", 2, {"lr": float(group), "seed": seed})
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        # the later ones are the better ones
        rows = [row | {"val_accuracy": group / 100} if row["kind"] == "epoch" else row for row in rows]
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    paths = [run(group, seed) for group in range(23) for seed in range(2 if group else 1)]
    parsed, drawn = [], []
    loads, cell_svg = json.loads, compare.cell_svg
    monkeypatch.setattr(run_folder, "read_arrays", None)
    monkeypatch.setattr(run_folder.json, "loads", lambda text: parsed.append(text) or loads(text))
    monkeypatch.setattr(compare, "cell_svg", lambda cell, name: drawn.append(name) or cell_svg(cell, name))
    text = write_comparison(paths, tmp_path / "all.html").read_text()
    # a run's settings, its two epochs and its genotype; no steps, no alphas
    assert len(parsed) == 4 * len(paths)
    # both cells of one run of each group that has a curve
    assert len(drawn) == 2 * compare.MOST_LINES
    words = Page(text).words
    headings = ["Results", "Curves", "What differs", "Cells"]
    table, legend, differences = (
        [word for word in words[words.index(one) : words.index(next_one)] if word.startswith("lr ")]
        for one, next_one in itertools.pairwise(headings)
    )
    assert table == differences == [f"lr {group}" for group in range(22, -1, -1)]
    assert sorted(legend) == sorted(table[: compare.MOST_LINES])
    assert 'class="card scroll tall"' in text
    # as many ranges would be one grey
    assert "shades reach" not in text


def test_few_runs_are_all_drawn_in_the_order_given(runs: list[Path], tmp_path: Path) -> None:
    text = write_comparison(runs, tmp_path / "all.html").read_text()
    assert 'class="card scroll tall"' not in text
    assert "Best first" not in text
    assert "shades reach" in text
    assert [name for name in ("a", "c", "b") if f"<h3>{name}" in text] == ["a", "c", "b"]
    assert text.index("<h3>a") < text.index("<h3>c") < text.index("<h3>b")


def test_seeds_in_a_line() -> None:
    assert compare._seeds([10, 2, 1, 0]) == "0 to 2, 10"
    assert compare._seeds([1, 0]) == "0, 1"
    assert compare._seeds([None, "x", 3]) == "\u2013, x, 3"
    assert compare._seeds(range(1000)) == "0 to 999"


def test_groups_without_an_accuracy_are_last(make_run: Callable[..., Path]) -> None:
    records = [
        read_run(make_run(name, epochs, {"lr": name})) for name, epochs in (("a", 0), ("b", 1), ("c", 2))
    ]
    assert [group.name for group in best_first(grouped(records), "val_accuracy")] == ["lr c", "lr b", "lr a"]


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
    assert "holds no run" in fails("report", str(tmp_path), str(tmp_path))
