"""`sgenas train`, `evaluate` and `export`: the network of a cell."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sgenas.cli import flags
from sgenas.cli.commands.run import given, rank_timeout, read_config, run_arguments, start
from sgenas.cli.console import DONE, say, say_json
from sgenas.cli.parsing import Parser, command
from sgenas.errors import InvalidValueError, require

if TYPE_CHECKING:
    from sgenas.training.config import TrainConfig

COMMON_FLAGS = (
    *("--data", "--epochs", "--batch-size", "--lr", "--weight-decay", "--label-smoothing", "--ema"),
    *("--channels", "--layers", "--drop-path", "--auxiliary-weight", "--cutout"),
    *("--train-images", "--test-images", "--precision", "--seed", "--device", "--threads"),
)
"""Flags of `sgenas train --help`; `--help-all` has the rest."""
EXPORT_FORMATS = ("state-dict", "torch-export", "onnx")


def train_config(arguments: argparse.Namespace) -> "TrainConfig":
    """The configuration that the flags describe."""
    found, recipe = given(arguments), arguments.recipe
    if arguments.genotype is None and arguments.config is None:
        raise InvalidValueError("train needs --genotype: a published name, a genotype file or a run directory")
    limit = "left out with --config, which has all settings"
    require(recipe is None or arguments.config is None, "recipe", limit, recipe)
    from sgenas.run.config import merged
    from sgenas.spaces.darts_space.published import find_genotype
    from sgenas.training.config import TrainConfig

    genotype = None if arguments.genotype is None else find_genotype(arguments.genotype)
    if arguments.config is None:
        assert genotype is not None
        return TrainConfig.of_recipe(recipe or "source", genotype, found)
    kept: dict[str, Any] = TrainConfig.from_dict(read_config(arguments.config, "training")).to_dict()
    if genotype is not None:
        kept["genotype"] = genotype.to_dict()
    return TrainConfig.from_dict(merged(kept, found))


def _train_arguments(parser: Parser) -> None:
    schema = flags.load("train")
    parser.value("--genotype", "name of a published cell, genotype file, run directory, NAS-Bench-201 cell, or digits"
                 " of NAS-Bench-Macro", metavar="CELL")  # fmt: skip
    run_arguments(parser)
    parser.add_argument("--help-all", action="help", help="show every option, by groups")
    parser.value("--recipe", "start from these settings: source (the default; DARTS' 600 epochs), paper (the SGE"
                 " paper's) or fast (few epochs); other flags change them", choices=tuple(schema.recipes))  # fmt: skip
    parser.value("--config", "start from the settings and genotype of this config.json or run directory; other"
                 " flags change them", metavar="PATH")  # fmt: skip
    values = schema.effective("", "", None, parser.value_of("--recipe"))
    flags.add_flags(parser, schema, values, None if parser.shows_all else COMMON_FLAGS)
    rank_timeout(parser)


@command(
    "Train",
    _train_arguments,
    example="sgenas train --genotype runs/first --data cifar10 --recipe source --out runs/first-trained",
    distributed=True,
)
def train(arguments: argparse.Namespace) -> int:
    """Train the network of a genotype from scratch, test it, and write a run directory."""
    return start(train_config(arguments), "train", arguments)


def _evaluate_arguments(parser: Parser) -> None:
    parser.value("run", "run directory of a training")
    parser.value("--device", "auto (a GPU if there is one), cpu, cuda or cuda:1; another device than that of the"
                 " training may round an image over to another class", default="auto", metavar="NAME")  # fmt: skip
    parser.switch("--json", "print one JSON object")


@command("Train", _evaluate_arguments, example="sgenas evaluate runs/first-trained")
def evaluate(arguments: argparse.Namespace) -> int:
    """Test a trained network again, from its checkpoint, and compare with what was logged."""
    from sgenas.training.evaluate import evaluate_run

    found = evaluate_run(arguments.run, device=arguments.device)
    if arguments.json:
        say_json(asdict(found))
        return DONE
    if found.logged_test_accuracy is None:
        said = "nothing was logged at this step, the middle of an epoch"
    elif found.equal:
        said = "equal to the logged figure"
    else:
        said = f"not equal to the logged figure, {found.logged_test_accuracy:.2%}"
    say(
        f"test accuracy {found.test_accuracy:.2%}  test loss {found.test_loss:.4f}  on {found.test_images}"
        f" images, after {found.epochs} epochs and {found.step} steps: {said}"
    )
    return DONE


def _export_arguments(parser: Parser) -> None:
    parser.value("run", "run directory of a training")
    parser.value("--format", "state-dict (weights by name, safetensors), torch-export (a program) or onnx (pip"
                 " install 'sgenas[onnx]')", choices=EXPORT_FORMATS, required=True)  # fmt: skip
    parser.value("--out", "file to write", required=True, metavar="FILE")
    parser.switch("--overwrite", "replace the file if there is one")


@command("Train", _export_arguments, example="sgenas export runs/first-trained --format onnx --out cell.onnx")
def export(arguments: argparse.Namespace) -> int:
    """Write a trained network to a file for other programs."""
    from sgenas.training.export import export_run

    written = export_run(arguments.run, arguments.format, arguments.out, overwrite=arguments.overwrite)
    say(str(written))
    return DONE
