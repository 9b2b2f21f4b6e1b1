"""How a command line becomes a command object, with the defaults of a method, a recipe or a saved run."""

import contextlib
import functools
import io
import operator
import os
import re
import sys
from dataclasses import fields
from typing import Annotated, Any

import tyro

from sgenas.command_line.help import Drawn, help_width, print_help
from sgenas.commands import COMMANDS, PlanCommand, SearchCommand, TrainCommand
from sgenas.engine import RECIPES, SearchConfig, TrainSettings
from sgenas.engine.run_folder import read_config, read_train_config
from sgenas.errors import ConfigError

STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)


def parse(arguments: list[str]) -> Any:
    """The command as an object; `arguments` begin with its name.

    A fault is a ConfigError of one line instead of tyro's drawn box. `--help` is printed and raises
    SystemExit.
    """
    defaults: dict[str, Any] = {}
    if arguments[0] in ("search", "plan"):
        settings = vars(_search_defaults(arguments))
        defaults = {"search": SearchCommand(**settings), "plan": PlanCommand(**settings)}
    elif arguments[0] == "train":
        defaults = {"train": _train_defaults(arguments)}
    if arguments[0] in COMMANDS and {"-h", "--help"} & set(arguments[1:]):
        print_help(arguments[0], _drawn_help(arguments[0], defaults))
        raise SystemExit(0)
    fault = io.StringIO()
    try:
        with contextlib.redirect_stderr(fault):
            return tyro.cli(_kinds(defaults), prog="sgenas", args=arguments, config=STYLE)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_undrawn(fault.getvalue())) from None


def completion(shell: str) -> str:
    """The script with which `shell` completes commands and flags."""
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        # "-" is stdout for tyro
        tyro.cli(_kinds({}), prog="sgenas", args=["--tyro-write-completion", shell, "-"], config=STYLE)
    lines = script.getvalue().rstrip("\n").split("\n")
    for at, line in enumerate(lines):
        if line.startswith("COMPLETION_SPEC = "):
            # a description over two lines would be taken for a second completion
            lines[at] = re.sub(r"\\n *", " ", line)
    return "\n".join(lines) + "\n"


def _kinds(defaults: dict[str, Any]) -> Any:
    """The union of all commands, as tyro reads it."""
    made = [
        Annotated[
            kind,
            tyro.conf.subcommand(name, default=defaults[name])
            if name in defaults
            else tyro.conf.subcommand(name),
        ]
        for name, kind in COMMANDS.items()
    ]
    return functools.reduce(operator.or_, made)


def _drawn_help(name: str, defaults: dict[str, Any]) -> str:
    """What tyro draws for `sgenas NAME --help`, as wide as `help_width` and styled where stdout is."""
    drawn = Drawn(sys.stdout)
    before = os.environ.get("COLUMNS")
    # tyro asks the environment for the width
    os.environ["COLUMNS"] = str(help_width())
    try:
        with contextlib.redirect_stdout(drawn), contextlib.suppress(SystemExit):
            tyro.cli(_kinds(defaults), prog="sgenas", args=[name, "--help"], config=STYLE)
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return drawn.getvalue()


def _search_defaults(arguments: list[str]) -> SearchConfig:
    """Defaults of `search` and `plan`: of the file that `--config` names, or those of the method."""
    file = _value_of(arguments, "--config")
    if file is not None:
        if _value_of(arguments, "--settings") is not None:
            raise ConfigError("--settings must not stand beside --config, which has all settings already")
        kept = read_config(file)
        method = _value_of(arguments, "--method")
        if method not in (None, kept.method):
            raise ConfigError(
                f"--method must be {kept.method} as in {file}, whose settings are that method's,"
                f" got {method!r}"
            )
        return kept
    # what a method sets for one space or optimiser is no setting where another is asked for
    without = []
    if _value_of(arguments, "--space") not in (None, "darts"):
        without.append("operations")
    if _value_of(arguments, "--alpha-optimizer") == "sgd":
        without.append("alpha_beta1")
    if _value_of(arguments, "--estimator") not in (None, "sge"):
        without.append("smoothing")
    return SearchConfig.of_method(
        _value_of(arguments, "--method") or "darts", _value_of(arguments, "--settings") or "source", without
    )


def _train_defaults(arguments: list[str]) -> TrainCommand:
    """Defaults of `train`: of the file that `--config` names, or those of the recipe."""
    file, recipe = _value_of(arguments, "--config"), _value_of(arguments, "--recipe")
    if file is None:
        return TrainCommand.of_recipe(recipe or next(iter(RECIPES)))
    if recipe is not None:
        raise ConfigError("--recipe must not stand beside --config, which has all settings already")
    kept = read_train_config(file)
    return TrainCommand(**{item.name: getattr(kept, item.name) for item in fields(TrainSettings)})


def _value_of(arguments: list[str], flag: str) -> str | None:
    """What follows a flag, read before the command line as a whole; None where it is not given."""
    for index, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == flag:
            if separator:
                return value
            if index + 1 == len(arguments):
                raise ConfigError(f"{flag} must be followed by a value, got nothing")
            return arguments[index + 1]
    return None


def _undrawn(box: str) -> str:
    """The first paragraph of an error that tyro drew in a box, as one line."""
    words: list[str] = []
    for line in box.splitlines()[1:]:
        content = line.strip("│╭╮╰╯ ")
        if content.strip("─- ") == "":
            # a rule may stand above the first paragraph too
            if words:
                break
            continue
        words.append(content)
    return " ".join(words) or "bad command line; see sgenas --help"
