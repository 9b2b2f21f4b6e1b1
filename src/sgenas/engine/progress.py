"""The progress bar of long work, with the time left."""

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class _Bar(Progress):
    """Writes nothing where it is not shown; rich before 15 ends it with an empty line."""

    def stop(self) -> None:
        if not self.disable:
            super().stop()


def time_left_bar(
    console: Console, *columns: ProgressColumn, shown: bool | None = None, expand: bool = True
) -> Progress:
    """A bar with `columns`, the time passed and the time left; shown: None for where there is a terminal."""
    return _Bar(
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        expand=expand,
        # a step of sge on a CPU takes seconds: a short window would make the time left jump
        speed_estimate_period=600,
        disable=not (console.is_terminal if shown is None else shown),
    )
