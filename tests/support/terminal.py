"""Running Python with a pipe or a pseudo-terminal around it."""

import os
import pty
import re
import subprocess
import sys
import termios

CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
"""Control characters but for tab and line feed."""


def environment() -> dict[str, str]:
    # what a person may have set to force one or the other must not decide
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return kept | {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}


def piped(*command: str) -> bytes:
    """All that Python prints for the arguments `command` into one pipe, stderr too."""
    return subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        check=True,
    ).stdout


def on_a_terminal(columns: int, *command: str) -> bytes:
    """All that Python prints for the arguments `command` on a pseudo-terminal of that width."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES")},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # the end of a pseudo-terminal is an error
        assert process.wait() == 0, shown
    os.close(ours)
    return shown
