"""Commands, their arguments, and a parser whose help is short and whose errors are one line."""

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import sgenas
from sgenas.cli.console import EXIT_CODES
from sgenas.cli.flags import read
from sgenas.errors import InvalidValueError, did_you_mean

LEAST_COLUMNS, MOST_COLUMNS = 40, 110


@dataclass(frozen=True)
class Command:
    """A command of `sgenas`.

    Attributes:
        group: Heading in `sgenas --help`.
        arguments: Puts the arguments on a parser.
        run: Carries out the command; returns the exit code.
        distributed: Whether torchrun may start it.
    """

    name: str
    group: str
    summary: str
    example: str
    arguments: Callable[["Parser"], None]
    run: Callable[[argparse.Namespace], int]
    distributed: bool = False

    def parser(self, line: Sequence[str] = ()) -> "Parser":
        """The parser of this command."""
        made = Parser(
            prog=f"sgenas {self.name}",
            description=self.summary,
            epilog=f"Example: {self.example}",
            allow_abbrev=False,
            formatter_class=_formatter,
        )
        made.line = list(line)
        self.arguments(made)
        positionals = [str(action.metavar) for action in made._actions if not action.option_strings]
        made.usage = " ".join(["%(prog)s", *positionals, "[OPTIONS]"])
        return made

    def parse(self, line: Sequence[str]) -> tuple[argparse.Namespace, "Parser"]:
        """The arguments of a command line without the command; InvalidValueError for what is wrong in it."""
        parser = self.parser(line)
        found, rest = parser.parse_known_args(line)
        if rest:
            name = rest[0].partition("=")[0]
            if not name.startswith("-"):
                raise InvalidValueError(f"unknown argument {name!r}; see sgenas {self.name} --help")
            # without dashes, which would make all flags similar
            known = tuple(flag.lstrip("-") for action in parser._actions for flag in action.option_strings)
            close = did_you_mean(name.lstrip("-"), known).replace("'", "'--", 1)
            raise InvalidValueError(f"unknown flag {name}{close or f'; see sgenas {self.name} --help'}")
        return found, parser


def command(
    group: str, arguments: Callable[["Parser"], None], *, example: str, distributed: bool = False
) -> Callable[[Callable[[argparse.Namespace], int]], Command]:
    """Makes a command of a function: its name, and its docstring as the summary. See `Command`."""

    def made(run: Callable[[argparse.Namespace], int]) -> Command:
        return Command(run.__name__, group, inspect.getdoc(run) or "", example, arguments, run, distributed)

    return made


def _formatter(prog: str) -> argparse.HelpFormatter:
    width = max(LEAST_COLUMNS, min(MOST_COLUMNS, shutil.get_terminal_size().columns))
    return argparse.HelpFormatter(prog, max_help_position=28, width=width)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InvalidValueError instead of printing and ending the process.

    Attributes:
        line: The command line, so that the help shows the defaults that it implies.
    """

    line: Sequence[str] = ()

    @property
    def shows_all(self) -> bool:
        """Whether the help is to show every option."""
        return "--help-all" in self.line

    def value_of(self, flag: str) -> str | None:
        """What follows ``flag`` on the command line before it is parsed; None if it is not there."""
        for index, argument in enumerate(self.line):
            name, separator, value = argument.partition("=")
            if name == flag:
                return value if separator else next(iter(self.line[index + 1 :]), None)
        return None

    def error(self, message: str) -> NoReturn:
        missing = re.match(r"the following arguments are required: (.*)", message)
        if missing is not None:
            about = {"/".join(action.option_strings) or action.metavar: action.help for action in self._actions}
            words = [f"{name} ({(about[name] or '').split(' (')[0]})" for name in missing[1].split(", ")]
            raise InvalidValueError(f"{self.prog.split()[-1]} needs {' and '.join(words)}; got none")
        message = re.sub(r"^argument (?:-\w/)?(\S+): ", r"\1 ", message)
        message = re.sub(r"expected (one|at least one) argument$", "needs a value", message)
        raise InvalidValueError(message)

    def value(
        self,
        name: str,
        help: str,
        *kinds: str,
        choices: Sequence[str] = (),
        default: Any = None,
        required: bool = False,
        metavar: str | None = None,
    ) -> None:
        """Adds a flag or, without dashes, a positional argument; the help names choices and default."""
        notes = [", ".join(choices)] if choices else []
        if default is not None:
            notes.append(f"default: {default}")
        text = f"{help} ({'; '.join(notes)})" if notes else help
        options: dict[str, Any] = {"help": text.replace("%", "%%"), "default": default}
        options["type"] = lambda text: read(text, kinds or ("str",), choices)
        if name.startswith("-"):
            options |= {"required": required, "metavar": metavar or ("NAME" if choices else "VALUE")}
        else:
            options["metavar"] = metavar or name.upper()
        self.add_argument(name, **options).known = tuple(choices)  # type: ignore[attr-defined]

    def switch(self, name: str, help: str) -> None:
        """Adds a flag without a value."""
        self.add_argument(name, action="store_true", help=help)


def overview(commands: Sequence[Command]) -> str:
    """`sgenas --help`."""
    width = max(LEAST_COLUMNS, min(MOST_COLUMNS, shutil.get_terminal_size().columns))
    lines = ["usage: sgenas COMMAND [OPTIONS]", "", *textwrap.wrap(inspect.getdoc(sgenas) or "", width)]
    indent = max(len(command.name) for command in commands) + 4

    def row(name: str, text: str, indent: int) -> list[str]:
        begin = f"  {name}".ljust(indent)
        return textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=" " * indent)

    for group in dict.fromkeys(command.group for command in commands):
        lines += ["", f"{group}:"]
        for command in commands:
            if command.group == group:
                lines += row(command.name, command.summary, indent)
    lines += ["", "Exit codes:"]
    for code, text in EXIT_CODES.items():
        lines += row(str(code), text, 6)
    more = "`sgenas COMMAND --help` lists the options of a command; `sgenas --version` prints the version."
    return "\n".join([*lines, "", *textwrap.wrap(more, width)]) + "\n"
