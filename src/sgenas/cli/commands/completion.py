"""`sgenas completion`: scripts with which a shell completes commands, flags and values."""

import argparse
import sys

from sgenas.cli.console import DONE
from sgenas.cli.parsing import Parser, command

SHELLS = ("bash", "zsh", "fish")
PATHS = ("DIR", "FILE", "PATH", "RUN")
"""Metavars of arguments that are completed by file names."""


def _arguments(parser: Parser) -> None:
    parser.value("shell", "shell that reads the script", choices=SHELLS)


@command("Look up", _arguments, example="source <(sgenas completion bash)")
def completion(arguments: argparse.Namespace) -> int:
    """Print a script that lets a shell complete commands, flags and values."""
    import shtab

    from sgenas.cli.commands import COMMANDS

    root = argparse.ArgumentParser(prog="sgenas")
    root.add_argument("--version", action="store_true", help="print the version")
    children = root.add_subparsers(parser_class=Parser)
    for name, each in COMMANDS.items():
        child = children.add_parser(name, help=each.summary, description=each.summary)
        # shtab leaves out what the help leaves out
        child.line = ("--help-all",)
        each.arguments(child)
        for action in child._actions:
            action.choices = getattr(action, "known", None) or None
            if action.metavar in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(root, arguments.shell) + "\n")
    return DONE
