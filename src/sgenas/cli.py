"""The command `sgenas`: main, which hands a command line to what does it and its errors to stderr.

What each command does stands in `command_line/`, its flags in `commands.py`.
"""

import math
import sys
from collections.abc import Callable, Sequence

import sgenas
from sgenas.command_line.answers import ACTIONS
from sgenas.command_line.codes import BAD_INPUT, DONE, FAILED, LOST, STOPPED
from sgenas.command_line.console import complain, plain_warnings
from sgenas.command_line.help import overview
from sgenas.command_line.parsing import parse
from sgenas.command_line.running import run
from sgenas.commands import ResumeCommand, SearchCommand
from sgenas.engine.parallel import ALONE, TIMEOUT, has_to_speak, joined, launched
from sgenas.errors import ConfigError, DivergenceError, ProcessError, SgenasError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default that of the process) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        sys.stdout.write(f"sgenas {sgenas.__version__}\n")
        return DONE
    if not arguments or arguments in (["-h"], ["--help"]):
        sys.stdout.write(overview())
        return DONE
    return _reported(lambda: _obey(arguments), has_to_speak)


def _reported(act: Callable[[], int], speaks: Callable[[], bool]) -> int:
    """The exit code of `act`; an error of this library becomes a line on stderr if the process speaks."""

    def said(text: str, code: int, always: bool = False) -> int:
        if always or speaks():
            complain(text)
        return code

    try:
        with plain_warnings():
            return act()
    except KeyboardInterrupt:
        return said("stopped at once; a run can be resumed from its last checkpoint", STOPPED)
    except DivergenceError as error:
        return said(str(error), FAILED)
    except ProcessError as error:
        # the one that usually speaks may be the one that is lost
        return said(str(error), LOST, always=True)
    except SgenasError as error:
        return said(str(error), BAD_INPUT)


def _obey(arguments: list[str]) -> int:
    command = parse(arguments)
    if launched() and not isinstance(command, SearchCommand | ResumeCommand):
        raise ConfigError(
            f"torchrun must start search or resume, got {arguments[0]}, which is one process's work"
        )
    for kind, act in ACTIONS.items():
        if isinstance(command, kind):
            return act(command)
    if isinstance(command, SearchCommand | ResumeCommand):
        return _run_on_all(command)
    return run(command, ALONE)


def _run_on_all(command: SearchCommand | ResumeCommand) -> int:
    """Runs the command beside the other processes that torchrun has started, if it has."""
    timeout = command.rank_timeout
    if not 0 < timeout < math.inf:
        raise ConfigError(f"--rank-timeout must be > 0 and finite, got {timeout}")
    if timeout != TIMEOUT and not launched():
        raise ConfigError(f"--rank-timeout only applies under torchrun, got {timeout} without it")
    with joined(timeout) as processes:
        code = _reported(lambda: run(command, processes), lambda: processes.first)
        if code != LOST:
            processes.part()
        return code
