import json
from pathlib import Path

import pytest

from sgenas.errors import ConfigError, RunFolderError
from sgenas.experiments import grid as grid_module
from sgenas.experiments.grid import Dataset, Grid, load_grid, plan

COMMAND = ("2026-11-24T10:00:00+00:00", "sgenas table1")


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
def test_a_data_set_is_named_or_called_after_its_path(text: str, name: str, spec: str | None) -> None:
    assert Dataset.parse(text) == Dataset(name, spec or text)


@pytest.mark.parametrize("text", ["", "parquet:", "cifar10=", "parquet:/data/ö"])
def test_what_has_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--data must be SPEC or NAME=SPEC"):
        Dataset.parse(text)


def test_the_plan_of_a_new_grid(tmp_path: Path) -> None:
    grid, places = plan(tmp_path / "new", "paper", (), (), COMMAND)
    assert not (tmp_path / "new").exists()
    assert grid.places == places
    assert len(places) == 8 * 2 * 3
    # seed by seed: a grid cut short has whole tables of fewer seeds
    assert [place.seed for place in places[:17]] == [0] * 16 + [1]
    assert places[12].name == "cifar100/darts-sge/seed-0"
    assert places[12].search_folder == tmp_path / "new/runs/cifar100/darts-sge/seed-0/search"
    assert places[12].search.data.data == places[12].training.data.data == "cifar100"
    assert len({place.folder for place in places}) == len(places)


def test_a_grid_is_kept_and_grows(tmp_path: Path) -> None:
    first, _ = plan(tmp_path, "smoke", (), (1,), COMMAND)
    first.save()
    assert load_grid(tmp_path) == first
    second, places = plan(tmp_path, None, ("digits", "more=folder:photos"), (0,), ("later", "again"))
    assert second.seeds == (0, 1)
    assert [dataset.name for dataset in second.data] == ["digits", "more"]
    assert second.data[1].spec == f"folder:{Path('photos').absolute()}"
    assert len(second.places) == 32
    # only what is asked is run: one seed of each data set
    assert {(place.seed, place.dataset.name) for place in places} == {(0, "digits"), (0, "more")}
    second.save()
    third, places = plan(tmp_path, "smoke", (), (), COMMAND)
    assert [command for _, command in third.commands] == ["sgenas table1", "again", "sgenas table1"]
    assert places == second.places


def test_another_preset_data_set_or_setting_is_refused(tmp_path: Path) -> None:
    grid, _ = plan(tmp_path, "smoke", (), (0,), COMMAND)
    grid.save()
    with pytest.raises(ConfigError, match=r"--preset must be smoke as in --out .*, got 'small'"):
        plan(tmp_path, "small", (), (), COMMAND)
    with pytest.raises(ConfigError, match="--data digits must be digits all through .*, got svhn"):
        plan(tmp_path, "smoke", ("digits=svhn",), (), COMMAND)
    path = tmp_path / "grid.json"
    kept = json.loads(path.read_text())
    kept["settings"]["digits"]["darts-sge"]["search"]["weights"]["lr"] = 0.5
    path.write_text(json.dumps(kept))
    with pytest.raises(
        ConfigError, match=r"other settings: digits.darts-sge.search.weights.lr is 0.025 now, 0.5 there"
    ):
        plan(tmp_path, "smoke", (), (), COMMAND)


@pytest.mark.parametrize("rest", ["", ', "preset": "smoke", "data": 3', ', "preset": "smoke", "data": {}'])
def test_a_damaged_plan_is_one_line(tmp_path: Path, rest: str) -> None:
    (tmp_path / "grid.json").write_text('{"format": "sgenas-table1", "version": 1' + rest + "}")
    with pytest.raises(RunFolderError, match=r"grid.json must be a grid of this version") as caught:
        load_grid(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seeds", [[], [1, 1], list(range(2501))])
def test_a_plan_has_seeds_each_once_and_not_too_many(tmp_path: Path, seeds: list[int]) -> None:
    plan(tmp_path, "smoke", (), (1,), COMMAND)[0].save()
    kept = json.loads((tmp_path / "grid.json").read_text())
    (tmp_path / "grid.json").write_text(json.dumps({**kept, "seeds": seeds}))
    with pytest.raises(RunFolderError, match=r"must be a grid of this version"):
        load_grid(tmp_path)


def test_a_plan_that_could_not_be_read_again_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must have at most 20,000 runs, got 20,008$"):
        plan(tmp_path, "smoke", (), tuple(range(2501)), COMMAND)


def test_other_folders_are_not_touched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--preset must be given"):
        plan(tmp_path, None, (), (), COMMAND)
    with pytest.raises(ConfigError, match="--preset must be one of paper, small, smoke, got 'huge'"):
        plan(tmp_path, "huge", (), (), COMMAND)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="must be new, empty or hold a grid, got other files"):
        plan(tmp_path, "smoke", (), (), COMMAND)
    with pytest.raises(RunFolderError, match="must be a folder"):
        plan(tmp_path / "mine.txt", "smoke", (), (), COMMAND)
    with pytest.raises(RunFolderError, match="holds no grid"):
        load_grid(tmp_path)


def test_a_place_is_found_by_its_name(grid: Grid) -> None:
    for place in grid.places:
        assert grid.place(place.name) == place
    with pytest.raises(ConfigError, match=r"--place must be one of the 16 of .* such as digits/.*, got 'x'"):
        grid.place("x")


def test_a_worker_makes_the_settings_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 1,000 workers would otherwise begin with the settings of all."""
    made, _ = plan(tmp_path, "smoke", (), tuple(range(50)), COMMAND)
    made.save()
    calls, make = [], grid_module.search_config
    monkeypatch.setattr(grid_module, "search_config", lambda *key: calls.append(key) or make(*key))
    loaded = load_grid(tmp_path)
    place = loaded.place("digits/fair-darts-sge/seed-49")
    # the 8 rows of one seed, to compare with the plan, and the place
    assert len(calls) == 9
    assert place == loaded.places[-2]
    assert len(loaded.places) == 400
