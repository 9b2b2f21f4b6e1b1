"""Exit codes of the command `sgenas`."""

DONE = 0
FAILED = 1
BAD_INPUT = 2
LOST = 3
STOPPED = 130

EXIT_CODES = {
    DONE: "done",
    FAILED: "the run diverged, runs of a table failed, or doctor found that no search can run",
    BAD_INPUT: "bad input; one line on stderr says which",
    LOST: "another process of a search under torchrun was lost",
    STOPPED: "stopped by Ctrl-C or SIGTERM after a checkpoint was written",
}
"""Code -> what it says."""
