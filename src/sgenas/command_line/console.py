"""Where the commands print, and how Ctrl-C and SIGTERM reach them."""

import contextlib
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from sgenas.engine.parallel import ALONE, Processes
from sgenas.errors import SgenasWarning
from sgenas.terminal import printable, printable_line


def print_json(values: Any) -> None:
    """Prints `values` as one line of JSON on stdout."""
    sys.stdout.write(json.dumps(values) + "\n")


def say(text: str) -> None:
    """Prints text that may hold names from files on stdout."""
    sys.stdout.write(printable(text))


def complain(text: str) -> None:
    """Prints one line of this program on stderr."""
    sys.stderr.write(f"sgenas: {printable_line(text)}\n")


class _Console(Console):
    """Prints strings as they are: no markup, and no orders to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def make_console() -> Console:
    """A console on stdout."""
    # paths and class names are text: square brackets in them are no markup
    return _Console(markup=False, highlight=False)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of this library are one line on stderr, like its errors; others are shown as ever."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SgenasWarning):
            complain(f"warning: {message}")
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SgenasWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def stop_signals(processes: Processes = ALONE) -> Iterator[list[int]]:
    """A list that holds the first Ctrl-C or SIGTERM; a second one ends the process at once, as usual.

    torchrun hands both on to all processes, and sends SIGTERM of its own when one has failed.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        if processes.size == 1 or (processes.first and number == signal.SIGINT):
            sys.stderr.write(
                "\nstopping after this step, once a checkpoint is written; again to stop at once\n"
            )
        for name, handler in before.items():
            signal.signal(name, handler)

    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
