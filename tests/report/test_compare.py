"""Comparison of runs: grouped by settings, mean and standard deviation, one page."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from html_page import EVIL, Page

from sgenas.errors import InvalidValueError, RunDirError, RunWarning
from sgenas.report import compare, read_run, write_comparison
from sgenas.report.compare import RunGroup, grouped, mean_and_deviation
from sgenas.report.formatting import NOTHING

Make = Callable[..., Path]


@pytest.fixture
def runs(make_run: Make) -> list[Path]:
    """Two groups: sge with seeds 0 and 1, first order with seed 0."""

    def run(name: str, seed: int, estimator: str, epochs: int) -> Path:
        config = {"seed": seed, "data": {"name": "digits"}, "estimator": {"name": estimator}}
        return make_run(name, epochs, config)

    return [run("a", 0, "sge", 3), run("b", 0, "first-order", 3), run("c", 1, "sge", 2)]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not rendered: the test is about the rest of the page."""
    monkeypatch.setattr(compare, "image_bytes", lambda _: b"")


def groups_of(make_run: Make, *configs: dict[str, Any]) -> list[RunGroup]:
    return grouped([read_run(make_run(f"{n}", 1, config), brief=True) for n, config in enumerate(configs)])


def test_runs_of_a_group_differ_in_the_seed_only(runs: list[Path]) -> None:
    sge, first = grouped([read_run(path) for path in runs])
    assert (sge.name, first.name) == ("sge", "first-order")
    assert sge.differences == {"estimator.name": "sge"}
    assert [record.path.name for record in sge.records] == ["a", "c"]
    assert sge.last("val_accuracy") == [0.5, 0.375]
    (alone,) = grouped([read_run(runs[1])])
    assert (alone.name, alone.differences) == ("b", {})


@pytest.mark.usefixtures("undrawn")
def test_unfinished_runs_are_left_out_of_means_and_counted(make_run: Make, tmp_path: Path) -> None:
    settings = {"epochs": 3, "method": "darts"}
    whole, running, early, fresh, unmeasured = (
        make_run(f"{seed}", epochs, settings | {"seed": seed}) for seed, epochs in enumerate((3, 2, 1, 0, 3))
    )
    for path, changes in ((early, {"ended_early": True}), (unmeasured, {"val_accuracy": None})):
        *lines, last = (path / "metrics.jsonl").read_text().splitlines()
        (path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(json.loads(last) | changes)]))
    (group,) = grouped([read_run(path) for path in (whole, running, early, fresh, unmeasured)])
    assert group.last("val_accuracy") == [0.5, 0.25]
    words = Page(write_comparison([whole, running, early, fresh, unmeasured], tmp_path / "all.html").read_text()).words
    assert {"2 of 5", "0, 2", "37.50 ± 17.68", "2,400"} < set(words)
    words = Page(write_comparison([running, fresh], tmp_path / "all.html").read_text()).words
    assert "0 of 2" in words


def test_training_runs_are_grouped_by_their_cells(make_run: Make) -> None:
    configs = [{"seed": seed, "genotype": {"cells": [cell]}} for seed, cell in ((0, 1), (0, 2), (1, 1))]
    one, two = groups_of(make_run, *configs)
    assert (one.name, two.name) == ("genotype cells 1", "genotype cells 2")
    assert len(one.records) == 2


def test_start_weights_of_a_module_come_from_its_seed(make_run: Make) -> None:
    models = [{"start_weights": f"blake2:{seed}", "layers": f"blake2:{layers}"} for seed, layers in ((0, 1), (1, 1))]
    configs = [{"seed": seed, "model": model} for seed, model in enumerate(models)]
    (one,) = groups_of(make_run, *configs)
    assert (len(one.records), one.differences) == (2, {})
    found = groups_of(make_run, *configs, {"seed": 2, "model": models[0] | {"layers": "blake2:2"}})
    assert [(len(group.records), group.differences) for group in found] == [
        (2, {"model.layers": "blake2:1"}),
        (1, {"model.layers": "blake2:2"}),
    ]


def test_group_is_named_by_few_settings(make_run: Make) -> None:
    found = groups_of(
        make_run,
        {"lr": 0.025, "method": "darts", "seed": 0, "estimator": {"name": "sge"}},
        {"lr": 0.025, "method": "darts", "seed": 0, "estimator": {"name": "first-order"}},
        {"lr": 0.1 * 0.05, "method": "fair-darts", "seed": 0, "estimator": {"name": "sge"}},
    )
    assert [group.name for group in found] == ["darts, sge", "darts, first-order", "fair-darts, sge"]
    # 0.1 * 0.05 is 0.005000000000000001
    assert found[2].differences == {"lr": "0.005", "method": "fair-darts", "estimator.name": "sge"}


def test_other_settings_name_a_group_if_method_and_estimator_are_equal(make_run: Make) -> None:
    found = groups_of(make_run, *({"method": "darts", "lr": lr} for lr in (0.025, 0.5)))
    assert [group.name for group in found] == ["lr 0.025", "lr 0.5"]


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([]) == NOTHING
    assert mean_and_deviation([3.0]) == "3.00"
    assert mean_and_deviation([1.0, 2.0, 6.0]) == f"3.00 ± {stdev([1.0, 2.0, 6.0]):.2f}"


def test_page_has_a_row_per_group_best_first(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text())
    words = page.words
    assert {"sge", "first-order", "0, 1", "43.75 ± 8.84", "50.00", "estimator.name"} < set(words)
    assert "3,000" in words, "the mean of 3 and 2 epochs of 1,200 passes"
    assert words.index("first-order") < words.index("sge")
    # the curves and the cells of the first run of each group; the third run is text
    assert page.tags.count("img") == 3
    assert any("normal  2: sep_conv_3x3(0)" in text for text in words)
    assert "script" not in page.tags
    assert not any("http" in value for _, value in page.attributes)


@pytest.mark.usefixtures("undrawn")
def test_hostile_settings_stay_text(make_run: Make, tmp_path: Path) -> None:
    paths = [make_run(f"<b>{name}", 2, {EVIL: name, "data": EVIL}) for name in (EVIL.replace("/", ""), "x")]
    text = write_comparison(paths, tmp_path / "all.html").read_text()
    assert "<script" not in text
    assert "<b>" not in text


@pytest.mark.usefixtures("undrawn")
def test_runs_without_an_epoch_and_modules_are_compared(make_run: Make, module_run: Path, tmp_path: Path) -> None:
    paths = [make_run("a", 0), make_run("b", 0), module_run]
    words = Page(write_comparison(paths, tmp_path / "all.html").read_text()).words
    assert words.count("none yet") == 2
    assert "block.0  conv5\nact  gelu" in words


def test_runs_that_cannot_be_compared_are_refused(runs: list[Path], make_run: Make, tmp_path: Path) -> None:
    out = tmp_path / "all.html"
    training = make_run("training", 1)
    config = training / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"kind": "training"}))
    for given in ([runs[0], runs[1], runs[0]], [runs[0], training], []):
        with pytest.raises(InvalidValueError) as caught:
            write_comparison(given, out)
        assert caught.value.field == "run_dirs"
    for given, where in (([tmp_path, tmp_path / "none"], out), (runs, tmp_path)):
        with pytest.raises(RunDirError):
            write_comparison(given, where)
    assert not out.exists()


@pytest.mark.usefixtures("undrawn")
def test_unreadable_run_hides_no_other(runs: list[Path], tmp_path: Path) -> None:
    whole = Page(write_comparison(runs, tmp_path / "all.html").read_text()).words
    damaged = tmp_path / "<b>damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"format": "sgenas-')
    with pytest.warns(RunWarning) as warned:
        write_comparison([runs[0], damaged, *runs[1:], tmp_path / "gone"], tmp_path / "all.html")
    assert [("damaged" in str(one.message), "gone" in str(one.message)) for one in warned] == [
        (True, False),
        (False, True),
    ]
    words = Page((tmp_path / "all.html").read_text()).words
    for one in warned:
        words.remove(str(one.message).removeprefix("left out: "))
    words.remove("Left out")
    assert "".join(words).split() == "".join(whole).split()


@pytest.mark.usefixtures("undrawn")
def test_many_runs_have_rows_and_few_are_drawn(make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [make_run(f"{lr}-{seed}", 1, {"lr": lr, "seed": seed}) for lr in range(23) for seed in range(2)]
    drawn, curves = [], []
    figure, group = compare.genotype_figure, compare._draw_group
    monkeypatch.setattr(compare, "genotype_figure", lambda cells: drawn.append(1) or figure(cells))
    monkeypatch.setattr(compare, "_draw_group", lambda *given: curves.append(given[4]) or group(*given))
    words = Page(write_comparison(paths, tmp_path / "all.html").read_text()).words
    assert len(drawn) == compare.MAX_CELLS
    assert curves == [False] * 2 * compare.MAX_CURVES, "as many ranges would be one gray"
    assert all(f"lr {lr}" in words for lr in range(23))


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([2, 1, 0], "0 to 2"),
        ([5, 7, 6], "5 to 7"),
        ([1.0, 2.0, 3.0], "1, 2, 3"),
        ([1, 0], "0, 1"),
        ([None, "x", 3], f"{NOTHING}, x, 3"),
        ([7, 3], "3, 7"),
    ],
)
def test_seeds_in_one_line(seeds: list[Any], text: str) -> None:
    assert compare._seeds(seeds) == text
