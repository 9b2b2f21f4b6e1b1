"""--strategy and --selection on the command line, and `sgenas rank`'s errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from sgenas.cli.commands import COMMANDS
from sgenas.cli.commands.run import search_config
from sgenas.cli.main import main
from sgenas.searching.config import SearchConfig
from sgenas.searching.selection import (
    AlphaSelection,
    EvolutionSelection,
    PerturbationSelection,
    RandomSelection,
    TrainingSelection,
)

TABLE = Path(__file__).parents[3] / "shared" / "data" / "nasbench201-200epochs.csv"


def parsed(*line: str) -> Any:
    arguments, _ = COMMANDS["search"].parse(line)
    return search_config(arguments)


def test_flag_of_a_selection_goes_to_that_of_the_strategy() -> None:
    config = parsed("--strategy", "evolution", "--candidates", "30", "--population", "5", "--sample-size", "2")
    assert config.selection == EvolutionSelection(candidates=30, population=5, sample_size=2)
    config = parsed("--strategy", "random", "--candidate-batches", "4")
    assert config.selection == RandomSelection(batches=4)
    assert parsed("--selection", "random", "--candidates", "7").selection == RandomSelection(candidates=7)
    assert parsed("--strategy", "random").selection is None


def test_preset_of_the_benchmark_serves_every_strategy() -> None:
    preset = ("--preset", "nasbench201")
    config = parsed(*preset)
    assert (config.method, config.selection) == ("beta-darts", TrainingSelection(candidates=7))
    assert parsed(*preset, "--candidate-steps", "50").selection == TrainingSelection(candidates=7, steps=50)
    assert parsed(*preset, "--selection", "alphas").selection == AlphaSelection()
    assert parsed(*preset, "--selection", "perturbation").selection == PerturbationSelection()
    config = parsed(*preset, "--strategy", "evolution", "--candidates", "30")
    assert (config.method, config.selection) == ("darts", EvolutionSelection(candidates=30))
    assert config.space.layers == 3
    config = SearchConfig.of_method("darts", {"strategy": "random"}, preset="nasbench201")
    assert (config.selection, config.epochs) == (None, 4)


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        (("--strategy", "random", "--population", "5"), "--population"),
        (("--candidates", "5"), "--candidates"),
        (("--strategy", "random", "--estimator", "sge"), "--estimator"),
        (("--strategy", "evolution", "--method", "gdas"), "--method"),
        (("--strategy", "evolution", "--selection", "random"), "--selection"),
        (("--strategy", "evolution", "--candidates", "5"), "--population"),
        (("--strategy", "random", "--alpha-lr", "0.1"), "--alpha-lr"),
        (("--strategy", "random", "--trajectory-lr", "0.1"), "--trajectory-lr"),
        (("--strategy", "random", "--candidates", "0"), "--candidates"),
        (("--strategy", "grid"), "--strategy"),
        (("--selection", "random", "--early-stop", "--eigenvalue-every", "1"), "--early-stop"),
    ],
)
def test_senseless_combination_is_one_line_with_its_flag(
    line: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--data", "digits", *line]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sgenas: {flag} ")
    assert said.count("\n") == 1


def test_run_directory_is_named_after_the_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ("search", "--data", "digits", "--train-images", "48", "--batch-size", "16", "--space", "nasbench201")
    sizes = ("--channels", "2", "--layers", "1", "--epochs", "1", "--candidates", "2", "--device", "cpu")
    assert main([*line, *sizes, "--threads", "1", "--strategy", "random"]) == 0
    assert (tmp_path / "runs" / "random-digits-0" / "selection.json").exists()
    said = capsys.readouterr().out
    assert "random search on digits" in said
    assert "Selected by 2 measurements with the supernet's weights" in said
    assert main(["rank", "runs/random-digits-0"]) == 2
    assert capsys.readouterr().err.startswith("sgenas: --table ")
    assert main(["rank", "runs/random-digits-0", "--table", "nothing.csv"]) == 2
    assert "nothing.csv cannot be read" in capsys.readouterr().err


@pytest.mark.skipif(not TABLE.exists(), reason="needs the table of NAS-Bench-201")
def test_end_of_a_search_says_what_was_selected_and_what_it_is_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("search", "--data", "digits", "--train-images", "48", "--batch-size", "16", "--space", "nasbench201")
    sizes = ("--channels", "2", "--layers", "1", "--epochs", "1", "--candidates", "2", "--candidate-steps", "3")
    more = ("--device", "cpu", "--threads", "1", "--selection", "training", "--table", str(TABLE))
    assert main([*line, *sizes, *more, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Selected by 2 measurements after 3 steps of training from scratch" in said
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['tabulated_cifar10']:.2f} % on cifar10 (rank {last['rank_cifar10']:,})" in said
