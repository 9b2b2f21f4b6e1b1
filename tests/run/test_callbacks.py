"""Which callback of a resumed run gets which state."""

from pathlib import Path
from typing import Any

import pytest
from stopping import stop_after
from tiny_searches import module_search

from sgenas.errors import CheckpointError
from sgenas.run.callbacks import Callback, ProgressBar, load_states, states_of


class Steps(Callback):
    """Counts steps."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Rows(Steps):
    """Counts rows instead, in a state with the same names."""

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        """Counts nothing."""

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        self.count += 1


def restored(saved: list[Callback], *callbacks: Steps) -> list[int]:
    load_states(callbacks, states_of(saved))
    return [callback.count for callback in callbacks]


def test_states_go_to_callbacks_of_the_same_class() -> None:
    assert restored([Steps(1), Rows(2)], Rows(), Steps()) == [2, 1]
    assert restored([Steps(1)], Rows(7), Steps()) == [7, 1]
    assert restored([Rows(2), Steps(1)], Steps()) == [1]
    assert restored([ProgressBar(), Steps(1)], Steps()) == [1]


def test_states_of_one_class_go_by_their_order() -> None:
    assert restored([Steps(1), Rows(2), Steps(3)], Steps(), Steps(), Rows()) == [1, 3, 2]


def test_other_number_of_callbacks_without_state_is_accepted() -> None:
    bars = [ProgressBar(), ProgressBar()]
    load_states(bars, states_of([ProgressBar()]))
    assert list(states_of(bars).values()) == [[{}, {}]]


def test_resumed_run_keeps_its_callbacks_apart(tmp_path: Path) -> None:
    def search(*callbacks: Callback, steps: int = 10**9) -> None:
        module_search(run_dir=tmp_path, epochs=2, log_every=1, callbacks=callbacks, stop=stop_after(steps))

    search(Steps(), steps=3)
    with pytest.raises(CheckpointError, match="callbacks must hold 1 Steps, as when it was saved, got 2"):
        search(Steps(), Steps())
    added, old = Rows(), Steps()
    search(added, old)
    assert old.count > 3
    # each step from the third on has a row, and so has each of the two epochs
    assert added.count == old.count - 3 + 2
