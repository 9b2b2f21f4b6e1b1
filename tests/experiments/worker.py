"""`python -m sgenas` with the tiny preset of these tests, for the processes that they start."""

import sys

from conftest import shrink_smoke
from sgenas.cli import main as command


def main() -> None:
    shrink_smoke()
    sys.exit(command(sys.argv[1:]))
