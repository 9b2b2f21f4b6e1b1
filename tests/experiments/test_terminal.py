"""Progress of a table is for terminals: a pipe gets plain lines."""

from collections.abc import Callable
from pathlib import Path

from terminal import CONTROL, on_a_terminal, piped

from sgenas.experiments.grid import Grid

WORKER = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import worker; worker.main()"


def test_a_table_draws_on_a_terminal_and_prints_lines_into_a_pipe(
    grid: Grid, done: Callable[..., None]
) -> None:
    for place in grid.places:
        done(place, 0.5)
    command = ("-c", WORKER, "table1", "--out", str(grid.out))
    lines = piped(*command)
    assert CONTROL.search(lines) is None
    assert str(grid.out / "table.html") in lines.decode()
    # the cursor is hidden while the display is redrawn
    assert b"\x1b[?25l" in on_a_terminal(80, *command)
