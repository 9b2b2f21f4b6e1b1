"""Predicted hours against counts by hand, and against what a tiny run takes."""

from dataclasses import replace
from pathlib import Path

import pytest
from pretended_gpu import gpu_machine

from sgenas.errors import InvalidValueError
from sgenas.experiments import forecast as module
from sgenas.experiments import table1
from sgenas.experiments.forecast import ASSUMPTION, SEARCHED, TRAINED, Speed, assumed, forecast, run_hours, timed
from sgenas.experiments.grid import Grid, GridSettings, extend
from sgenas.experiments.presets import TableRow, search_config, train_config
from sgenas.searching.config import SearchConfig
from sgenas.training.config import TrainConfig

PAPER_METHODS = ("darts", "pc-darts", "fair-darts", "beta-darts")


def test_assumed_hours_of_the_sources_are_a_third_of_theirs() -> None:
    # 0.4 GPU days of search and 1.5 of training on the GPU that the assumption is about
    search = SearchConfig.of_method("darts")
    assert run_hours(search, assumed(search)) == pytest.approx(0.4 * 24 / 3, rel=0.03)
    training = TrainConfig.of_recipe("source", train_config("paper", "cifar10").genotype)
    assert run_hours(training, assumed(training)) == pytest.approx(1.5 * 24 / 3, rel=0.03)
    # 0.1 GPU days, which has one digit
    search = SearchConfig.of_method("pc-darts")
    assert 0.05 < 3 * run_hours(search, assumed(search)) / 24 < 0.15


def test_hours_count_every_pass() -> None:
    search = search_config("medium", TableRow("pc-darts", "sge"), "cifar10")
    speed = assumed(search)
    assert (speed.batches, speed.memory) == (6250 // 64, None)
    # 8 channels, 6 cells and a quarter of the channels, of 16 and 8
    assert speed.seconds == pytest.approx(64 / SEARCHED * (8 * 6 / (16 * 8) / 4))
    # 3 of 10 epochs train the weights alone; 12 passes per step with Q = 10; validation forward only
    passes = 97 * (3 * 1 + 7 * 12) + 10 * 97 / 3
    assert run_hours(search, speed) == pytest.approx(passes * speed.seconds / 3600)
    training = train_config("medium", "cifar10")
    speed = assumed(training)
    assert speed.batches == 50_000 // 128
    assert speed.seconds == pytest.approx(128 / TRAINED * (16 * 8 / (36 * 20)))
    passes = 30 * (390 + 79 / 3)
    assert run_hours(training, speed) == pytest.approx(passes * speed.seconds / 3600)


def test_separate_trajectory_costs_a_pass_more_per_step() -> None:
    row = TableRow("darts", "sge")
    search = search_config("medium", row, "cifar10")
    hours = [run_hours(replace(search, trajectory_lr=rate), Speed(90, 1.0, 9)) for rate in (None, 0.01)]
    assert hours[1] - hours[0] == pytest.approx(10 * 90 / 3600)


def test_medium_takes_one_night_on_an_a100(tmp_path: Path) -> None:
    found = table1.forecast(tmp_path / "new", GridSettings("medium", methods=PAPER_METHODS), machine="a100")
    assert len(found.rows) == 16
    assert sum(row.jobs for row in found.rows) == 48
    assert 10 < found.hours < 14
    assert found.hours == pytest.approx(sum(3 * (row.search_hours + row.training_hours) for row in found.rows))
    text = str(found)
    assert f"48 jobs: {found.hours:.1f} hours" in text
    assert ASSUMPTION in text
    assert not (tmp_path / "new").exists()


def test_presets_for_gpus_are_predicted_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "timed", lambda config: Speed(10, 0.1, 2))
    for preset, basis in (("paper", ASSUMPTION), ("medium", ASSUMPTION), ("small", "this one")):
        _, jobs = extend(tmp_path, GridSettings(preset, methods=("darts",)), ("", ""))
        assert basis in forecast(jobs, preset).basis
    with pytest.raises(InvalidValueError) as caught:
        forecast(jobs, "small", "b100")
    assert caught.value.field == "machine"


def test_only_missing_jobs_are_predicted(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "timed", lambda config: Speed(10, 0.1, 2))
    monkeypatch.setattr(table1, "is_done", lambda job: job.seed == 0 or job.entry.row.estimator == "sge")
    found = table1.forecast(grid.path, machine="here")
    assert [(row.entry.row.estimator, row.jobs) for row in found.rows] == [("first-order", 1)] * 4
    assert found.basis.startswith("this one, ")


def test_timed_steps_are_those_of_the_run(grid: Grid) -> None:
    entry = grid.jobs[0].entry
    for config, batches, evaluation in ((entry.search, 3, 3), (entry.training, 2, 1)):
        found = timed(config)
        assert (found.batches, found.evaluation, found.memory) == (batches, evaluation, None)
        assert 0 < found.seconds < 10


def test_memory_of_a_gpu_is_the_larger_one_of_search_and_training(grid: Grid) -> None:
    """On the pretended GPU, whose peak is that of its tensors."""
    jobs = [job for job in grid.jobs if job.entry == grid.jobs[0].entry]
    with gpu_machine() as machine:
        search, training = (timed(config).memory for config in (jobs[0].entry.search, jobs[0].entry.training))
        assert training == machine.gpus[0].peak
        found = forecast(jobs, "smoke", "here")
    assert search is not None
    assert training is not None
    # (tensors that an earlier run left behind)
    assert found.rows[0].memory == pytest.approx(max(search, training), rel=1e-3)
    assert f"{found.rows[0].memory / 2**30:.1f}\n" in str(found)
