"""Where commands print, their exit codes, and how Ctrl-C and SIGTERM reach a run."""

import contextlib
import json
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from sgenas.errors import SgenasWarning

if TYPE_CHECKING:
    from sgenas.run.distributed import Processes

DONE, FAILED, BAD_INPUT, LOST, STOPPED = 0, 1, 2, 3, 130
EXIT_CODES = {
    DONE: "done",
    FAILED: "the run diverged, runs of a table failed, or doctor found that no search can run",
    BAD_INPUT: "bad input; one line on stderr names it",
    LOST: "another process of a search under torchrun was lost",
    STOPPED: "stopped by Ctrl-C or SIGTERM after a checkpoint was written",
}
"""Exit code -> what it means."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed, changes of writing direction, and lone surrogates."""
_BREAKS = re.compile(r"[\t\n]")


def printable(text: str) -> str:
    r"""``text`` with control characters escaped, so that a terminal does not obey them: ESC becomes \x1b."""
    return _CONTROL.sub(_escaped, text)


def printable_line(text: str) -> str:
    """`printable` with line feeds and tabs escaped too: one line."""
    return _BREAKS.sub(_escaped, printable(text))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def say(text: str) -> None:
    """Prints text, which may hold names from untrusted files, on stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def say_json(values: Any) -> None:
    """Prints one line of JSON on stdout."""
    sys.stdout.write(json.dumps(values) + "\n")


def complain(text: str) -> None:
    """Prints one line on stderr."""
    sys.stderr.write(f"sgenas: {printable_line(text)}\n")


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows warnings of sgenas as one line on stderr, like its errors."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, SgenasWarning):
            complain(f"warning: {message}")
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SgenasWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def stop_signals(processes: "Processes | None" = None) -> Iterator[list[int]]:
    """A list that receives the first Ctrl-C or SIGTERM; a second one ends the process at once, as usual.

    torchrun passes both to all processes, and sends a SIGTERM of its own when one of them has failed.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        alone = processes is None or processes.size == 1
        if alone or (processes is not None and processes.first and number == signal.SIGINT):
            sys.stderr.write("\nstopping after this step and a checkpoint; press again to stop at once\n")
        for name, handler in before.items():
            signal.signal(name, handler)

    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
