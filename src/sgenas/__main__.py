"""`python -m sgenas` is the command `sgenas`."""

import sys

from sgenas.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
