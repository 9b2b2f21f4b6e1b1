"""A run that goes on for long takes no more of the machine, which benchmarks/long_run.py measures."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from choices_search import run as run_choices
from stopping import stop_after

from sgenas.engine import resume_search, resume_training, run_search, run_training
from sgenas.engine.loop import Silent

Make = Callable[..., Any]
ESTIMATORS = {
    "first-order": {"estimator": "first-order", "directions": 10},
    "streamed": {"computation": "streamed", "control_variate": "memory"},
    "vectorised": {"computation": "vectorised", "control_variate": "memory"},
}
EPOCHS = 8
"""Some twenty steps."""


def live_tensors() -> int:
    gc.collect()
    # not isinstance, which asks objects of other libraries that answer with a warning
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


class Counter(Silent):
    """Counts the tensors that live at the end of each epoch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def row(self, row: dict[str, Any], genotype: Any) -> None:  # noqa: ARG002
        if row["kind"] == "epoch":
            self.counts.append(live_tensors())

    def growth(self) -> list[int]:
        """From epoch to epoch, after those in which everything is made that is kept for later."""
        return [later - earlier for earlier, later in zip(self.counts[3:], self.counts[4:], strict=False)]


# three directions along hard kinks: mostly noise, as the warning says
@pytest.mark.filterwarnings("ignore::sgenas.errors.RangeWarning")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_of_a_search_only_the_history_of_the_alphas_grows(small: Make, tmp_path: Path, name: str) -> None:
    counter = Counter()
    run_search(small(epochs=EPOCHS, estimator=ESTIMATORS[name]), tmp_path / "run", observer=counter)
    # one table of alphas for each of the two cells, which alphas.npz has for every epoch
    assert counter.growth() == [2] * (EPOCHS - 4)


def test_of_a_training_nothing_grows(training: Make, tmp_path: Path) -> None:
    counter = Counter()
    run_training(training(epochs=EPOCHS), tmp_path / "run", observer=counter)
    assert counter.growth() == [0] * (EPOCHS - 4)


def taken() -> tuple[int, int, list[Any]]:
    """Open files, Python's threads and child processes."""
    gc.collect()
    process = psutil.Process()
    return process.num_fds(), threading.active_count(), process.children(recursive=True)


def test_runs_leave_no_file_thread_or_process_behind(small: Make, training: Make, tmp_path: Path) -> None:
    class Broken(Silent):
        def advance(self) -> None:
            raise ZeroDivisionError

    def all_kinds(folder: Path) -> None:
        for run, resume, config in (
            (run_search, resume_search, small(epochs=1)),
            (run_training, resume_training, training(epochs=3)),
        ):
            path = folder / run.__name__
            run(config, path, stop=stop_after(2))
            with pytest.raises(ZeroDivisionError):
                resume(path, observer=Broken())
            resume(path)
        run_choices(folder / "choices", epochs=10)

    # libraries open what they keep for good
    all_kinds(tmp_path / "first")
    before = taken()
    for number in range(3):
        all_kinds(tmp_path / str(number))
    assert taken() == before
