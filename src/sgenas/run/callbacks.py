"""Callbacks: what is measured, shown and decided alongside a run."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sgenas.digests import name_of
from sgenas.errors import DivergenceError, InvalidValueError


class Callback:
    """Base of callbacks; every hook does nothing by default. ``run`` is the `Loop` (a `Search`, a `Training`).

    Callbacks must not change the run's numbers: draw from a generator of your own. On several processes each
    process calls every hook.
    """

    def on_start(self, run: Any) -> None:
        """Before the first step of this process."""

    def on_step_start(self, run: Any) -> None:
        """Before each step."""

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        """After each step, with the values that it logs (0-d tensors; reading one waits for the device)."""

    def on_divergence(self, run: Any, error: DivergenceError) -> bool:
        """When a step raised `DivergenceError`; True if the callback has dealt with it and the run goes on."""
        return False

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        """At the end of each epoch, before its row is written; add entries to ``row``.

        Call ``run.request_stop()`` to end the run after this epoch.
        """

    def on_early_end(self, run: Any, row: dict[str, Any]) -> None:
        """When a callback has ended the run in this epoch: enter again what ``row`` says of the run's result."""

    def on_candidate(self, run: Any) -> None:
        """After each candidate that the selection of a search has measured, the last one of ``run.candidates``."""

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        """For each row that is written (``row["kind"]`` is ``"step"`` or ``"epoch"``)."""

    def on_checkpoint(self, run: Any) -> None:
        """After each checkpoint."""

    def on_end(self, run: Any) -> None:
        """When this process leaves the loop, also after an exception."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as plain data and tensors. A resumed run recognizes a callback by its class, and
        several of one class by their order."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""


def states_of(callbacks: Sequence[Callback]) -> dict[str, list[dict[str, Any]]]:
    """Name of each class -> states of its callbacks, in order."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for callback in callbacks:
        found[_class_of(callback)].append(callback.state_dict())
    return dict(found)


def load_states(callbacks: Sequence[Callback], states: dict[str, list[dict[str, Any]]]) -> None:
    """Restores ``states_of``. Callbacks of a class that had none start fresh.

    Raises:
        InvalidValueError: If a class had another number of callbacks, so that it is unclear which state is whose.
    """
    for name in dict.fromkeys(map(_class_of, callbacks)):
        own, kept = [each for each in callbacks if _class_of(each) == name], states.get(name, [])
        if len(own) == len(kept):
            for callback, state in zip(own, kept, strict=True):
                callback.load_state_dict(state)
        elif any(kept):
            raise InvalidValueError(
                f"callbacks must hold {len(kept)} {type(own[0]).__name__}, as when it was saved, got {len(own)}",
                field="callbacks",
            )


def _class_of(callback: Callback) -> str:
    return name_of(type(callback))


class ProgressBar(Callback):
    """A progress bar with the time left on a terminal, one line per epoch elsewhere.

    Args:
        file: Where to show it; standard error if None.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._console = Console(file=file, stderr=file is None)
        self._bar: Progress | None = None

    def on_start(self, run: Any) -> None:
        if not self._console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._bar.start()
        self._task = self._bar.add_task(f"epoch {run.epoch + 1}/{run.epochs}", total=run.work_total)

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        if self._bar is not None:
            self._show(run, f"epoch {run.epoch + 1}/{run.epochs}, step {run.step}")

    def on_candidate(self, run: Any) -> None:
        if self._bar is not None:
            self._show(run, f"selection, candidate {len(run.candidates)}")

    def _show(self, run: Any, text: str) -> None:
        assert self._bar is not None
        self._bar.update(self._task, completed=run.work_done, total=run.work_total, description=text)

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if row["kind"] == "epoch":
            self._console.print(epoch_line(row, run.epochs), soft_wrap=True, highlight=False)

    def on_end(self, run: Any) -> None:
        if self._bar is not None:
            self._bar.stop()


SHOWN = {
    "inner_loss": "training loss {:.4f}",
    "train_loss": "training loss {:.4f}",
    "outer_loss": "validation loss {:.4f}",
    "val_accuracy": "supernet {:.2%}",
    "derived_accuracy": "derived {:.2%}",
    "test_accuracy": "test {:.2%}",
    "tabulated_cifar10": "tabulated {:.2f} %",
}
"""Entries of an epoch's row that one line shows, in this order."""


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One line about an epoch: ``epoch 3/50  training loss 1.2345  supernet 61.20%  derived 40.10%  12 s``."""
    parts = [text.format(row[name]) for name, text in SHOWN.items() if isinstance(row.get(name), float)]
    return "  ".join([f"epoch {row['epoch'] + 1}/{epochs}", *parts, f"{row['seconds']:.0f} s"])
