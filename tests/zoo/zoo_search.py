"""Searches one module of the zoo for one epoch; as a script it kills itself in the middle."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from zoo_modules import ENTRIES, Entry

import sgenas
from sgenas import SGE, SearchResult
from sgenas.bilevel import Estimator
from sgenas.optim import SGD
from sgenas.spaces.modules import ModuleSpace

BATCHES = 4
ESTIMATORS: dict[str, Estimator | str] = {
    "first-order": "first-order",
    "sge": SGE(num_directions=2, smoothing=0.01, computation="sequential"),
}


def search(entry: Entry, estimator: str, path: Path, stop: Callable[[], bool] = lambda: False) -> SearchResult:
    """One epoch, with a checkpoint at each step."""
    *train, first, second = entry.batches(BATCHES + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sgenas.search(
            ModuleSpace(entry.build(), dropout=True),
            train,
            [first, second],
            entry.loss,
            estimator=ESTIMATORS[estimator],
            weight_optimizer=SGD(lr=0.05, momentum=0.5),
            epochs=1,
            checkpoint_every=1,
            log_every=1,
            run_dir=path,
            progress=False,
            stop=stop,
        )


def killed_after(steps: int) -> Callable[[], bool]:
    """Kills this process when a search asks for the ``steps``-th time whether to stop."""
    asked = iter(range(1, steps + 1))

    def stop() -> bool:
        if next(asked) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    return stop


if __name__ == "__main__":
    name, chosen, directory = sys.argv[1:]
    search(ENTRIES[name], chosen, Path(directory), killed_after(2))
