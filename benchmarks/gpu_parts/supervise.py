"""Runs parts in a process of their own, and goes on after a part that ends it.

A GPU that has met an illegal access answers no later call of that process, and a capture may hang. The process
writes what happens as events, one JSON object per line, see `Check`.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_parts.check import FAILED, Part, Verdict

LOST = 3
"""Exit code of a process whose device can't be used any more."""
START = 180.0
"""Seconds that a process gets for its start."""


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events that a process has written, without a last line that is incomplete."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


@dataclass
class Progress:
    """What the events of one process say.

    Attributes:
        seen: Number of events so far.
        running: The part that has begun and not ended, if any.
        ended: Parts that are done.
        deadline: When the running part counts as one that hangs, in seconds of ``time.monotonic()``.
    """

    seen: int = 0
    running: str | None = None
    ended: list[str] = field(default_factory=list)
    deadline: float = field(default_factory=lambda: time.monotonic() + START)

    def take(self, events: Sequence[dict[str, Any]], tell: Callable[[Verdict], None]) -> None:
        """Reads the events that are new."""
        for event in events[self.seen :]:
            if "begin" in event:
                self.running, self.deadline = event["begin"], time.monotonic() + event["limit"]
            elif "end" in event:
                self.running, self.deadline = None, time.monotonic() + START
                self.ended.append(event["end"])
            else:
                tell(Verdict(**event["verdict"]))
        self.seen = len(events)


def supervise(
    parts: Sequence[Part], command: Callable[[Path, list[str]], list[str]], tell: Callable[[Verdict], None]
) -> None:
    """Runs the parts; those that are left go to a new process whenever one ends early.

    Args:
        parts: The parts, in order.
        command: (file for events, names of parts) -> command line of a process that runs them.
        tell: Gets each verdict.
    """
    left = list(parts)
    while left:
        with tempfile.TemporaryDirectory() as folder:
            events, progress = Path(folder) / "events.jsonl", Progress()
            process = subprocess.Popen(command(events, [part.name for part in left]))
            hung = False
            try:
                while process.poll() is None:
                    time.sleep(0.1)
                    progress.take(read_events(events), tell)
                    if time.monotonic() > progress.deadline:
                        hung = True
                        process.kill()
                        process.wait()
            finally:
                process.kill()
            progress.take(read_events(events), tell)
        if process.returncode == 0:
            return
        done = set(progress.ended)
        if progress.running is not None or not done:
            # before the first part has begun, the process can't start: the first part gets the blame
            part = next(part for part in left if part.name == progress.running or progress.running is None)
            why = "it hangs" if hung else f"its process ended with {process.returncode}"
            tell(Verdict(part.name, part.title, FAILED, why))
            done.add(part.name)
        left = [part for part in left if part.name not in done]
