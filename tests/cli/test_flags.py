"""From strings to settings, and from the fields of library errors to flags."""

import argparse
from typing import Any

import pytest

from sgenas.bilevel import SGE
from sgenas.cli import flags
from sgenas.cli.commands import COMMANDS
from sgenas.cli.commands.run import search_config
from sgenas.cli.commands.train import train_config
from sgenas.errors import InvalidValueError
from sgenas.searching.config import SearchConfig
from sgenas.spaces import TopEdges, ZeroOne
from sgenas.training.config import TrainConfig


def searched(*line: str) -> SearchConfig:
    return search_config(COMMANDS["search"].parse(line)[0])


def trained(*line: str) -> TrainConfig:
    return train_config(COMMANDS["train"].parse(["--genotype", "darts-v2", *line])[0])


@pytest.mark.parametrize(
    ("text", "kinds", "expected"),
    [
        ("3", ["int"], 3),
        ("3", ["float", "none"], 3.0),
        ("None", ["float", "none"], None),
        ("None", ["str"], "None"),
        ("auto", ["float", "str"], "auto"),
        ("0.1", ["float", "str"], 0.1),
        ("0.5,0.999", ["floats"], [0.5, 0.999]),
        ("a,b", ["str", "strs"], ["a", "b"]),
        ("a", ["str", "strs"], "a"),
        ("inf", ["float"], float("inf")),
    ],
)
def test_read_takes_the_first_kind_that_fits(text: str, kinds: list[str], expected: Any) -> None:
    assert flags.read(text, kinds) == expected


@pytest.mark.parametrize(("text", "kinds"), [("x", ["int"]), ("1.5", ["int"]), ("nan", ["float"]), ("1,x", ["floats"])])
def test_read_refuses_other_text(text: str, kinds: list[str]) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be .*, got"):
        flags.read(text, kinds)


def test_no_flags_give_the_methods_own_settings() -> None:
    for method in ("darts", "pc-darts"):
        assert searched("--method", method) == SearchConfig.of_method(method)
    assert searched("--preset", "paper", "--method=fair-darts") == SearchConfig.of_method("fair-darts", preset="paper")
    assert searched("--preset", "nasbench201") == SearchConfig.of_method("beta-darts", preset="nasbench201")


def test_only_given_flags_change_settings() -> None:
    changed = searched("--method=pc-darts", "--lr", "0.05", "--alpha-betas", "0.5,0.9", "--grad-clip", "None")
    assert (changed.weight_optimizer.lr, changed.arch_optimizer.lr) == (0.05, 6e-4)
    assert changed.arch_optimizer.betas == (0.5, 0.9)
    assert changed.weight_optimizer.grad_clip is None
    assert changed.data.batch_size == 256


def test_components_are_chosen_by_name_with_their_flags() -> None:
    config = searched("--estimator", "sge", "--directions", "4", "--smoothing", "auto", "--nesterov")
    assert config.estimator == SGE(num_directions=4, smoothing="auto")
    assert config.weight_optimizer.nesterov
    assert searched("--space", "nasbench201", "--layers", "2").space.layers == 2


def test_auto_directions_are_a_setting_of_sge() -> None:
    config = searched("--estimator", "sge", "--directions", "auto", "--max-added-variance", "0.1")
    assert config.estimator == SGE("auto", smoothing=0.1, max_added_variance=0.1)
    assert SearchConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InvalidValueError) as caught:
        searched("--estimator", "evolution-strategies", "--directions", "auto")
    assert str(caught.value.field).endswith("num_directions")


def test_control_variate_is_given_by_name() -> None:
    config = searched("--estimator", "sge", "--control-variate", "finite-difference")
    assert config.estimator.control_variate == "finite-difference"
    assert SearchConfig.from_dict(config.to_dict()) == config


def test_flag_of_a_part_that_the_method_names_keeps_the_rest_of_that_part() -> None:
    config = searched("--method", "fair-darts", "--regularizer-weight", "3", "--edges-per-node", "1")
    assert config.regularizer == ZeroOne(weight=3.0)
    assert config.discretization == TopEdges(edges_per_node=1, threshold=0.85)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("--directions", "10"), "--directions only applies with --estimator sge or evolution-strategies"),
        (("--max-hvps", "3", "--estimator", "sge"), "got --estimator sge"),
        (("--space", "nasbench201", "--pooling", "smooth"), "--pooling only applies with --space darts"),
        (("--regularizer-weight", "1"), "the method darts has none"),
        (("--method", "pc-darts", "--regularizer-form", "squared"), "the method pc-darts has none"),
        (("--alpha-momentum", "0.9"), "--alpha-momentum only applies with --alpha-optimizer sgd"),
    ],
)
def test_flag_of_a_component_that_is_not_chosen_raises(line: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidValueError) as error:
        searched(*line)
    assert words in str(error.value)


def test_recipes_and_flags_of_a_training() -> None:
    assert trained() == trained("--recipe", "source")
    fast = trained("--recipe=fast", "--lr", "0.2", "--no-nesterov", "--ema", "None", "--test-images", "9")
    assert (fast.lr, fast.nesterov, fast.ema, fast.epochs, fast.data.test_images) == (0.2, False, None, 30, 9)
    assert trained("--drop-path", "0.3").final_drop_path == 0.3


SET = " (by the recipe, preset, method or default)"


@pytest.mark.parametrize(
    ("message", "field", "line", "expected"),
    [
        ("SGE.num_directions must be >= 1, got 0", "SGE.num_directions", (), f"--directions must be >= 1, got 0{SET}"),
        ("batch_size must be >= 2, got 1", "batch_size", ("--batch-size=1",), "--batch-size must be >= 2, got 1"),
        ("Adam.lr must be > 0, got -1.0", "Adam.lr", ("--alpha-lr=-1",), "--alpha-lr must be > 0, got -1.0"),
        ("SGD.lr must be > 0, got -2.0", "SGD.lr", ("--lr=-2", "--alpha-lr=-1"), "--lr must be > 0, got -2.0"),
        ("Budget.layers must be >= 3, got 1", "Budget.layers", (), f"--budget-layers must be >= 3, got 1{SET}"),
        (
            "batch_size must be a multiple of data_parallel (3), got 'batch_size'",
            "batch_size",
            ("--batch-size=4",),
            "--batch-size must be a multiple of --data-parallel (3), got 'batch_size'",
        ),
        ("/a/batch_size/x is missing", None, (), "/a/batch_size/x is missing"),
        ("nothing must be so, got 1", "Other.nothing", (), "nothing must be so, got 1"),
    ],
)
def test_library_errors_name_flags(message: str, field: str | None, line: tuple[str, ...], expected: str) -> None:
    arguments, parser = COMMANDS["search"].parse(line)
    assert flags.with_flags(InvalidValueError(message, field=field), parser, vars(arguments)) == expected
