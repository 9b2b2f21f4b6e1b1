"""`python -m sgenas` with the tiny preset of these tests, for the processes that they start, and for those
that these start in turn."""

import sys
from pathlib import Path

from conftest import shrink_smoke
from sgenas.cli import main as command
from sgenas.experiments import workers
from sgenas.experiments.grid import Place

SCRIPT = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import worker; worker.main()"


def command_of(place: Place) -> list[str]:
    """As that of `sgenas.experiments.workers`."""
    return [sys.executable, "-c", SCRIPT, "table1", "--out", str(place.grid), "--place", place.name]


def main() -> None:
    shrink_smoke()
    workers.command_of = command_of
    sys.exit(command(sys.argv[1:]))
