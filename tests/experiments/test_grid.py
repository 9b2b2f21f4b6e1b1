import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgenas.errors import InvalidValueError, RunDirError
from sgenas.experiments.grid import Dataset, Grid, GridSettings, extend, load_grid
from sgenas.experiments.presets import TableRow
from sgenas.methods import METHODS, Method

COMMAND = ("2026-11-24T10:00:00+00:00", "sgenas table1")


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((path / "grid.json").read_text())
    edit(content)
    (path / "grid.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "name", "spec"),
    [
        ("cifar10", "cifar10", "cifar10"),
        ("cifar10=parquet:/data/all", "cifar10", "parquet:/data/all"),
        ("parquet:/data/cifar10", "cifar10", "parquet:/data/cifar10"),
        ("parquet:/d/cifar-train.parquet,/d/cifar-test.parquet", "cifar-train", None),
        ("folder:my.photos", "my.photos", "folder:my.photos"),
        # an = in a path is no name
        ("parquet:/a=b/birds", "birds", "parquet:/a=b/birds"),
    ],
)
def test_dataset_is_named_or_called_after_its_path(text: str, name: str, spec: str | None) -> None:
    assert Dataset.parse(text) == Dataset(name, spec or text)


@pytest.mark.parametrize("text", ["", "parquet:", "cifar10=", "parquet:/data/ö"])
def test_dataset_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Dataset.parse(text)
    assert caught.value.field == "data"


def test_new_grid_has_every_row_seed_by_seed(tmp_path: Path) -> None:
    settings = GridSettings("paper", methods=("darts", "pc-darts", "fair-darts", "beta-darts"))
    grid, jobs = extend(tmp_path / "new", settings, COMMAND)
    assert not (tmp_path / "new").exists()
    assert grid.jobs == jobs
    assert len(jobs) == 8 * 2 * 3
    # a grid that is cut short has whole tables of fewer seeds
    assert [job.seed for job in jobs[:17]] == [0] * 16 + [1]
    assert jobs[12].name == "cifar100/darts-sge/seed-0"
    assert jobs[12].search_dir == tmp_path / "new/runs/cifar100/darts-sge/seed-0/search"
    assert jobs[12].search.data.data == jobs[12].entry.training.data.data == "cifar100"
    assert jobs[16].search.seed == jobs[16].training(grid.jobs[0].entry.training.genotype).seed == 1
    assert len({job.path for job in jobs}) == len(jobs)


def test_grid_is_kept_and_grows(tmp_path: Path) -> None:
    asked = GridSettings("smoke", seeds=(1,), methods=("darts",))
    first, _ = extend(tmp_path, asked, COMMAND)
    first.save()
    assert load_grid(tmp_path) == first
    more = GridSettings(data=("digits", "more=folder:photos"), seeds=(0,))
    second, jobs = extend(tmp_path, more, ("later", "again"))
    assert second.plan.seeds == (0, 1)
    assert [dataset.name for dataset in second.datasets] == ["digits", "more"]
    assert second.datasets[1].spec == f"folder:{Path('photos').absolute()}"
    # only what is asked for is run: one seed of each dataset
    assert {(job.seed, job.entry.dataset.name) for job in jobs} == {(0, "digits"), (0, "more")}
    second.save()
    third, jobs = extend(tmp_path, GridSettings(methods=("gdas",)), COMMAND)
    # a new method stands with the rows of its estimator
    assert [row.name for row in third.rows] == [
        *("darts-first-order", "gdas-first-order", "darts-sge", "gdas-sge"),
    ]
    assert {job.entry.row.method for job in jobs} == {"gdas"}
    assert [command for _, command in third.plan.commands] == ["sgenas table1", "again", "sgenas table1"]


def test_registered_method_joins_and_leaves_old_grids_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, _ = extend(tmp_path / "old", GridSettings("smoke", seeds=(0,)), COMMAND)
    old.save()
    monkeypatch.setitem(METHODS._items, "toy", Method("a test", spaces={"darts": {"operations": "paper"}}))
    assert load_grid(tmp_path / "old") == old
    new, _ = extend(tmp_path / "new", GridSettings("smoke", seeds=(0,)), COMMAND)
    assert {*new.rows} - {*old.rows} == {TableRow("toy", "first-order"), TableRow("toy", "sge")}
    assert new.job("digits/toy-sge/seed-0").search.method == "toy"


def test_missing_keys_take_defaults_and_kept_settings_win(tmp_path: Path) -> None:
    grid, _ = extend(tmp_path, GridSettings("smoke", seeds=(0,), methods=("darts",)), COMMAND)
    grid.save()

    def older(content: dict[str, Any]) -> None:
        del content["seeds"], content["commands"]
        del content["entries"][0]["search"]["deterministic"], content["entries"][0]["training"]["ema"]
        content["entries"][1]["search"]["epochs"] = 7

    change(tmp_path, older)
    found = load_grid(tmp_path)
    assert found.plan.seeds == (0, 1, 2)
    assert found.plan.entries[0].search == grid.plan.entries[0].search
    assert found.jobs[1].search.epochs == 7
    extended, _ = extend(tmp_path, GridSettings(seeds=(5,)), COMMAND)
    assert extended.jobs[1].search.epochs == 7
    change(tmp_path, lambda content: content.pop("entries"))
    assert len(load_grid(tmp_path).rows) == 2 * len([1 for name in METHODS if "darts" in METHODS.get(name).spaces])


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda content: content.update(sedes=[1]), "sedes"),
        (lambda content: content["entries"][0]["search"].update(epoch=3), "epoch"),
        (lambda content: content["entries"][0]["search"]["estimator"].update(drections=3), "drections"),
        (lambda content: content["entries"][0]["row"].update(method="dart"), "darts"),
        (lambda content: content["entries"][0]["dataset"].update(name="../.."), r"\.\./"),
        (lambda content: content.update(seeds=[1, 1]), "seeds"),
    ],
)
def test_unknown_or_bad_setting_of_a_grid_is_named(tmp_path: Path, edit: Any, word: str) -> None:
    extend(tmp_path, GridSettings("smoke", seeds=(0,), methods=("darts",)), COMMAND)[0].save()
    change(tmp_path, edit)
    with pytest.raises(InvalidValueError, match=rf"grid\.json: .*{word}") as caught:
        load_grid(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "error"),
    [
        ("", InvalidValueError),
        (', "preset": "smoke", "entries": 3', RunDirError),
        (', "preset": "smoke", "entries": [{}]', RunDirError),
    ],
)
def test_damaged_grid_is_one_line(tmp_path: Path, rest: str, error: type[Exception]) -> None:
    (tmp_path / "grid.json").write_text('{"format": "sgenas-table1", "version": 2' + rest + "}")
    with pytest.raises(error, match=r"grid\.json") as caught:
        load_grid(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_preset_dataset_or_directory_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "grid"
    extend(out, GridSettings("smoke", seeds=(0,), methods=("darts",)), COMMAND)[0].save()
    for settings, field in (
        (GridSettings("small"), "preset"),
        (GridSettings(data=("digits=svhn",)), "data"),
    ):
        with pytest.raises(InvalidValueError) as caught:
            extend(out, settings, COMMAND)
        assert caught.value.field == field
    with pytest.raises(InvalidValueError, match="preset must be one of"):
        extend(tmp_path / "new", GridSettings(), COMMAND)
    (tmp_path / "mine.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RunDirError):
            extend(path, GridSettings("smoke"), COMMAND)
    with pytest.raises(RunDirError, match="holds no grid"):
        load_grid(tmp_path)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"preset": "huge"}, "preset"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": (0, 0)}, "seeds"),
        ({"methods": ("dartz",)}, "method"),
        ({"estimators": ("sgee",)}, "estimator"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        GridSettings(**settings)
    assert caught.value.field == field


def test_job_is_found_by_its_name(grid: Grid) -> None:
    for job in grid.jobs:
        assert grid.job(job.name) == job
    with pytest.raises(InvalidValueError, match=r"job must be one of the 16 .* got 'x'"):
        grid.job("x")
