"""What a grid looks like while it is worked on: a line for each place in work, or plain lines in a log."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Lines
from rich.text import Text

from sgenas.experiments.formats import write_tables
from sgenas.experiments.grid import Grid, Place
from sgenas.experiments.outcome import Outcome, Progress, progress
from sgenas.experiments.table import collect

REFRESH = 1.0
"""Seconds between two looks at the run folders."""


class GridDisplay:
    """A `Watcher` that shows the work on `console` and writes the tables whenever a place ends."""

    def __init__(self, console: Console, grid: Grid, todo: int, done: int) -> None:
        self._console, self._grid = console, grid
        self._todo, self._before, self._ended = todo, done, 0
        self._working: dict[Place, float] = {}
        self._looked = 0.0
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )

    def started(self, place: Place) -> None:
        self._working[place] = time.monotonic()
        found = progress(place)
        # on Ray a run may be seen when it has already begun
        under_way = found.epoch > 0 or found.stage == "training"
        self._say(f"{place.name}: {f'goes on, {found}' if under_way else 'begins'}")

    def ended(self, place: Place, outcome: Outcome | None) -> None:
        minutes = (time.monotonic() - self._working.pop(place, time.monotonic())) / 60
        self._ended += outcome is not None
        write_tables(collect(self._grid))
        self._say(f"{place.name}: {_ending(outcome, progress(place))} ({minutes:.1f} min; {self._count()})")

    def tick(self) -> None:
        if self._live is not None and time.monotonic() - self._looked > REFRESH:
            self._looked = time.monotonic()
            self._live.update(self._render(), refresh=True)

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def _count(self) -> str:
        return f"{self._before + self._ended} of {self._before + self._todo} runs over"

    def _render(self) -> Group:
        lines = Lines.grid(padding=(0, 2))
        for place, since in self._working.items():
            found = progress(place)
            lines.add_row(
                Text(place.name),
                ProgressBar(total=found.epochs, completed=found.epoch, width=20),
                Text(str(found)),
                Text(f"{(time.monotonic() - since) / 60:.1f} min"),
            )
        return Group(lines, Text(self._count()))

    def __enter__(self) -> "GridDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _ending(outcome: Outcome | None, found: Progress) -> str:
    if outcome is None:
        return f"stopped, {found}"
    if outcome.figures is None:
        return f"FAILED in the {outcome.stage}: {outcome.reason}"
    return f"done, test accuracy {100 * outcome.figures['test_accuracy']:.2f} %"
