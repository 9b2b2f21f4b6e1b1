import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sgenas.engine import Training
from sgenas.engine.run_folder import read_settings
from sgenas.errors import RunFolderError
from sgenas.experiments.grid import Grid, Place
from sgenas.experiments.outcome import held, is_done, progress, read_outcome
from sgenas.experiments.run_place import run_place
from sgenas.nets import network_size
from sgenas.spaces import Genotype


def after(steps: int) -> Callable[[], bool]:
    """A stop that says yes at its `steps`-th question."""
    asked = iter(range(steps, -1, -1))
    return lambda: next(asked, 0) <= 1


def last_row(folder: Path) -> dict:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture
def place(grid: Grid) -> Place:
    return grid.place("digits/darts-first-order/seed-0")


def test_a_place_is_searched_trained_and_measured(place: Place) -> None:
    assert read_outcome(place) is None
    assert str(progress(place)) == "not begun"
    outcome = run_place(place)
    assert outcome is not None
    assert outcome == read_outcome(place)
    assert is_done(place)
    assert read_settings(place.search_folder) == place.search
    genotype = Genotype.load(place.search_folder / "genotype.json")
    assert read_settings(place.training_folder) == place.train_config(genotype)
    figures = outcome.figures
    assert figures is not None
    search, training = last_row(place.search_folder), last_row(place.training_folder)
    assert figures["test_accuracy"] == training["test_accuracy"]
    assert figures["best_test_accuracy"] == training["best_test_accuracy"]
    assert (figures["search"]["last"], figures["training"]["last"]) == (search, training)
    # two passes at each of 2 x 3 steps
    assert search["forward"] == 12
    assert figures["test_images"] == 30
    size = network_size(genotype, channels=2, layers=3, classes=10, resolution=8, input_channels=1)
    assert (figures["params"], figures["macs"]) == (size.params, size.macs)
    assert figures["search"]["environment"]["threads"] == torch.get_num_threads()
    assert str(progress(place)) == "training, 2 of 2 epochs"


def test_a_damaged_outcome_is_made_anew_from_the_runs(place: Place) -> None:
    first = run_place(place)
    assert first is not None
    rows = [last_row(folder) for folder in (place.search_folder, place.training_folder)]
    (place.folder / "outcome.json").write_text('{"state": "do')
    again = run_place(place)
    assert again is not None
    assert again.figures == first.figures
    assert read_outcome(place) == again
    # nothing was searched or trained again: the seconds are the same
    assert [last_row(folder) for folder in (place.search_folder, place.training_folder)] == rows


def test_what_is_done_is_not_run_again_unless_its_training_is_gone(place: Place) -> None:
    first = run_place(place)
    before = (place.training_folder / "checkpoint.pt").stat().st_mtime_ns
    assert run_place(place) == first
    assert (place.training_folder / "checkpoint.pt").stat().st_mtime_ns == before
    for file in place.training_folder.glob("*.*"):
        file.unlink()
    (place.training_folder / "tensorboard").rename(place.folder / "old")
    assert not is_done(place)
    again = run_place(place)
    assert again is not None
    assert again.figures is not None
    assert again.figures["test_accuracy"] == first.figures["test_accuracy"]


@pytest.mark.parametrize("steps", [2, 8], ids=["in the search", "in the training"])
def test_a_place_that_is_stopped_goes_on_bit_for_bit(place: Place, steps: int, tmp_path: Path) -> None:
    assert run_place(place, stop=after(steps)) is None
    assert read_outcome(place) is None
    assert progress(place).stage == ("search" if steps == 2 else "training")
    outcome = run_place(place)
    other = dataclasses.replace(place, grid=tmp_path / "other")
    straight = run_place(other)
    assert outcome is not None
    assert straight is not None
    assert outcome.figures["test_accuracy"] == straight.figures["test_accuracy"]
    states = [
        torch.load(each.training_folder / "checkpoint.pt", weights_only=True) for each in (place, other)
    ]
    for name, tensor in states[0]["network"].items():
        assert torch.equal(tensor, states[1]["network"][name]), name


def test_a_cell_without_operations_is_a_failure_with_its_reason(grid: Grid) -> None:
    place = grid.place("digits/fair-darts-first-order/seed-0")
    space = dataclasses.replace(place.search.space, derivation="threshold")
    place = dataclasses.replace(place, search=dataclasses.replace(place.search, space=space))
    outcome = run_place(place)
    assert outcome is not None
    assert (outcome.state, outcome.stage) == ("failed", "training")
    assert "is empty: no operation leads to any of the nodes" in outcome.reason
    assert read_outcome(place) == outcome
    assert not is_done(place)


def test_a_search_that_diverges_is_a_failure_and_is_tried_again(place: Place) -> None:
    weights = dataclasses.replace(place.search.weights, lr=1e30, grad_clip=None)
    wild = dataclasses.replace(place, search=dataclasses.replace(place.search, weights=weights))
    outcome = run_place(wild)
    assert outcome is not None
    assert (outcome.state, outcome.stage) == ("failed", "search")
    assert "the search diverged" in outcome.reason
    assert "\n" not in outcome.reason
    # it is the run's settings that are at fault, and they are those of another place now
    again = run_place(place)
    assert again is not None
    assert "holds a run of other settings" in again.reason


def test_any_other_error_is_a_failure_too(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Training) -> None:
        raise RuntimeError("a kernel failed:\nno reason is known")

    monkeypatch.setattr(Training, "_take_step", full)
    outcome = run_place(place)
    assert outcome is not None
    assert outcome.stage == "training"
    assert outcome.reason == "RuntimeError: a kernel failed: no reason is known"
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.undo()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(place: Place) -> None:
    assert run_place(place, stop=after(1)) is None
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (place.search_folder / name).unlink()
    assert run_place(place) is not None
    assert is_done(place)


def test_two_processes_do_not_share_a_place(place: Place) -> None:
    with (
        held(place),
        pytest.raises(RunFolderError, match=r"seed-0 must be used by .* process \d+ on "),
    ):
        run_place(place)


def test_a_long_reason_is_cut(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Training) -> None:
        raise ValueError("x" * 1000)

    monkeypatch.setattr(Training, "_take_step", fail)
    outcome = run_place(place)
    assert outcome is not None
    assert len(outcome.reason) == 300


def test_progress_is_read_from_a_log_cut_by_a_kill(place: Place) -> None:
    assert run_place(place, stop=after(5)) is None
    with (place.search_folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "st')
    assert str(progress(place)) == "search, 1 of 2 epochs"
