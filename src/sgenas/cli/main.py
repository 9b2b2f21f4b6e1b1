"""The command `sgenas`: finds the command, runs it, and turns errors into one line and an exit code."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import sgenas
from sgenas.cli.console import BAD_INPUT, DONE, FAILED, LOST, STOPPED, complain, plain_warnings
from sgenas.errors import DivergenceError, InvalidValueError, ProcessError, SgenasError, did_you_mean, require
from sgenas.threads import spin_limit

if TYPE_CHECKING:
    from sgenas.cli.parsing import Command

# libgomp reads it when PyTorch is imported, which nothing above does
os.environ.update(spin_limit())


SLOW = ("torch", "numpy")
"""Modules whose import takes a second or is not to be interrupted."""
PATIENCE = 10.0
"""Seconds that other processes wait before they report an error, in case the first one reports the same."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process, and returns its exit code."""
    line = list(sys.argv[1:] if argv is None else argv)
    if line == ["--version"]:
        sys.stdout.write(f"sgenas {sgenas.__version__}\n")
        return DONE
    from sgenas.cli.commands import COMMANDS
    from sgenas.cli.parsing import overview

    if not line or line[0] in ("-h", "--help"):
        sys.stdout.write(overview(tuple(COMMANDS.values())))
        return DONE
    name, *rest = line
    if name not in COMMANDS:
        complain(f"unknown command {name!r}{did_you_mean(name, tuple(COMMANDS)) or '; see sgenas --help'}")
        return BAD_INPUT
    return _reported(lambda: _run(COMMANDS[name], rest), _speaks)


def _run(command: "Command", line: Sequence[str]) -> int:
    arguments, parser = command.parse(line)

    def act() -> int:
        try:
            return command.run(arguments)
        except InvalidValueError as error:
            from sgenas.cli.flags import with_flags

            raise InvalidValueError(with_flags(error, parser, vars(arguments))) from None

    launched = _launched()
    if command.distributed:
        from sgenas.cli.commands.run import RANK_TIMEOUT

        timeout = arguments.rank_timeout
        require(0 < timeout < float("inf"), "--rank-timeout", "> 0 and finite", timeout)
        require(launched or timeout == RANK_TIMEOUT, "--rank-timeout", "left out without torchrun", timeout)
    if not launched:
        return act()
    if not command.distributed:
        raise InvalidValueError(
            f"torchrun must start search, train or resume, got {command.name}, which is the work of one process"
        )
    from sgenas.run.distributed import joined

    with joined(arguments.rank_timeout) as processes:
        arguments.processes = processes
        code = _reported(act, lambda: processes.first)
        if code != LOST:
            processes.part()
        return code


@contextlib.contextmanager
def _interrupts_wait_for_imports() -> Iterator[None]:
    """Ctrl-C during the import of PyTorch counts after it: NumPy's, inside it, would be left with a part of itself."""
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: object) -> None:
        if any(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False) for name in SLOW):
            again = threading.Timer(0.05, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        else:
            raise KeyboardInterrupt

    # (a shell has it ignored by what runs in the background)
    waits = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    try:
        if waits:
            signal.signal(signal.SIGINT, handle)
        yield
    finally:
        if waits:
            signal.signal(signal.SIGINT, before)


def _reported(act: Callable[[], int], speaks: Callable[[], bool]) -> int:
    """The exit code of ``act``; an error of sgenas becomes a line on stderr if this process speaks."""

    def said(text: str, code: int, always: bool = False) -> int:
        if always or speaks():
            complain(text)
        return code

    try:
        with plain_warnings(), _interrupts_wait_for_imports():
            return act()
    except KeyboardInterrupt:
        return said("stopped at once; a run that has a checkpoint can be resumed from it", STOPPED)
    except BrokenPipeError:
        # the reader of a pipe has gone; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except DivergenceError as error:
        return said(str(error), FAILED)
    except ProcessError as error:
        # the process that usually speaks may be the one that is lost
        return said(str(error), LOST, always=True)
    except SgenasError as error:
        return said(str(error), BAD_INPUT)


def _speaks() -> bool:
    """Whether this process reports an error that it met before the processes have joined; yes, but not at once.

    Usually all fail in the same way, and torchrun ends the others when the first one of a machine has: one that is
    still running after PATIENCE has failed alone.
    """
    if _launched() and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE)
    return True


def _launched() -> bool:
    """Whether torchrun has started this process; `sgenas.run.distributed.launched` without importing torch."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
