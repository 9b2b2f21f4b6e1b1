"""Early signs of a collapsing search, and stopping before it (Zela et al., arXiv:1909.09656)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from sgenas import tree
from sgenas.bilevel.hvp import hessian_operator, largest_eigenvalue
from sgenas.device import moved_batch
from sgenas.errors import require
from sgenas.random import generator
from sgenas.run.callbacks import Callback

WINDOW, RATIO = 5, 1.3
FEWEST = 2 * WINDOW - 1
"""Measurements before there are two means to compare."""


class HessianEigenvalue(Callback):
    """Measures the largest eigenvalue of the outer loss' Hessian in the alphas, on one batch.

    Writes ``eigenvalue``. One measurement costs 40 to 90 passes. A sharp minimum of the validation loss in
    the alphas predicts that the derived cell generalizes badly.

    Args:
        batches: Its first batch is used; an iterable or a function that returns one.
        every: Epochs between two measurements.
    """

    def __init__(self, batches: Iterable[Any] | Callable[[], Iterable[Any]], *, every: int = 1) -> None:
        require(every >= 1, "every", ">= 1", every)
        self._batches, self._every = batches, every

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        if (run.epoch + 1) % self._every:
            return
        batches = self._batches() if callable(self._batches) else self._batches
        batch = moved_batch(next(iter(batches)), run.device)
        matvec = hessian_operator(run.outer_objective(batch), run.alphas)
        draw = generator(run.seed, f"eigenvalue {run.epoch}")
        start = torch.randn(tree.size(run.alphas), generator=draw)
        row["eigenvalue"] = largest_eigenvalue(matvec, start.to(tree.flatten(run.alphas)))


class EarlyStopping(Callback):
    """Stops when the Hessian's eigenvalue rises too fast, and takes the cell from before (RobustDARTS).

    With m(i) the mean of the 5 eigenvalues up to the i-th, stops at i if m(i) / m(i - 4) > 1.3 and selects
    the epoch of measurement i - 4, unless it is before ``first_epoch``. A ratio to a mean that is not positive
    never stops. Needs `HessianEigenvalue` earlier in the list of callbacks.

    Args:
        first_epoch: First epoch, counted from 1, whose cell may be selected.
    """

    def __init__(self, first_epoch: int = 10) -> None:
        require(first_epoch >= 1, "early_stop_from", ">= 1", first_epoch)
        self._first = first_epoch - 1
        self._measured: list[tuple[int, float]] = []

    def on_start(self, run: Any) -> None:
        if run.step == 0:
            # nothing of an earlier search
            self._measured = []

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        if "eigenvalue" not in row:
            return
        self._measured.append((run.epoch, row["eigenvalue"]))
        epoch = epoch_to_return_to(self._measured, self._first)
        if epoch is not None:
            run.select_epoch(epoch)
            run.request_stop()
            row["stopped_early_with_epoch"] = epoch

    def state_dict(self) -> dict[str, Any]:
        return {"measured": self._measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._measured = [(epoch, value) for epoch, value in state["measured"]]


def require_can_stop(epochs: int, every: int, first_epoch: int) -> None:
    """Raises InvalidValueError if a search of ``epochs`` that measures each ``every`` of them can never stop early."""
    require(epochs >= FEWEST * every, "early_stop", f"False with fewer than {FEWEST * every} epochs", True)
    last = (epochs // every - WINDOW + 1) * every
    require(first_epoch <= last, "early_stop_from", f"at most {last} of {epochs} epochs", first_epoch)


def epoch_to_return_to(measured: Sequence[tuple[int, float]], first: int) -> int | None:
    """The epoch that `EarlyStopping` selects after these (epoch, eigenvalue); None to go on."""
    if len(measured) < FEWEST:
        return None
    back = len(measured) - WINDOW
    now, then = (
        sum(value for _, value in measured[last - WINDOW + 1 : last + 1]) / WINDOW for last in (len(measured) - 1, back)
    )
    epoch = measured[back][0]
    return epoch if then > 0 and now > RATIO * then and epoch >= first else None
