"""What the current supernet and the current derived architecture achieve."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sgenas import tree
from sgenas.device import moved_batch
from sgenas.errors import require
from sgenas.losses import classification_sums, cross_entropy, loss_sums
from sgenas.random import generator, seed_of, seeded
from sgenas.run.batches import Stream
from sgenas.run.callbacks import Callback
from sgenas.spaces import AccuracyTable, SearchSpace, load_table
from sgenas.spaces.nasbench201_space.table import CLASSES, COLUMNS

Measure = Callable[[Callable[..., Any], Any], dict[str, Tensor]]
"""measure(model, batch) -> sums over the batch, 0-d tensors by name, with ``count`` among them."""
Batches = Callable[[], Iterable[Any]]
"""Gives the validation batches, from the first on; the same ones at each call."""


class Evaluation(Callback):
    """Measures the supernet after each epoch, and the derived architecture with the supernet's weights.

    Writes ``val_<name>`` for each name of ``measure``, and if it measures ``accuracy`` also
    ``derived_accuracy`` and ``accuracy_gap`` (val_accuracy - derived_accuracy).

    Args:
        batches: Batches to measure on, iterated over each time; or a function that returns them.
        measure: What to measure, see `sgenas.losses.classification_sums`.
        every: Epochs between two measurements of the supernet.
        derived_every: Epochs between two measurements of the derived architecture; 0 for never.
    """

    def __init__(
        self,
        batches: Iterable[Any] | Callable[[], Iterable[Any]],
        measure: Measure = classification_sums,
        *,
        every: int = 1,
        derived_every: int = 1,
    ) -> None:
        require(every >= 1, "every", ">= 1", every)
        require(derived_every >= 0, "derived_every", ">= 0", derived_every)
        self._batches, self.measure = batches, measure
        self._every, self._derived_every = every, derived_every

    def batches(self) -> Iterable[Any]:
        """The batches, from the first on."""
        return self._batches() if callable(self._batches) else self._batches

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        number = run.epoch + 1
        if number % self._every == 0:
            row |= {f"val_{name}": value for name, value in self.means(run, run.supernet()).items()}
        if self._derived_every and number % self._derived_every == 0:
            self._measure_derived(run, row)

    def on_early_end(self, run: Any, row: dict[str, Any]) -> None:
        if "derived_accuracy" in row:
            self._measure_derived(run, row)

    def _measure_derived(self, run: Any, row: dict[str, Any]) -> None:
        one_hot = tree.to(run.space.one_hot(run.architecture), run.device)
        found = self.means(run, run.supernet(one_hot))
        if "accuracy" in found:
            row["derived_accuracy"] = found["accuracy"]
            if "val_accuracy" in row:
                row["accuracy_gap"] = row["val_accuracy"] - found["accuracy"]

    @torch.no_grad()
    def means(self, run: Any, model: Callable[..., Any]) -> dict[str, float]:
        """Means over all batches; the processes of a run share the batches."""
        found: dict[str, float] = run.processes.means(
            self.batches(), lambda batch: self.measure(model, moved_batch(batch, run.device)), "batches"
        )
        return found


def validation(run: Any) -> tuple[Batches, Measure]:
    """What candidates are measured on and by: as in the `Evaluation` of the run, else val_data and the loss.

    All are measured on the same batches: what a pass draws is drawn from a seed, and generators are set back.
    """
    evaluation = next((each for each in run.callbacks if isinstance(each, Evaluation)), None)
    if evaluation is not None:
        return (lambda: _one_pass(evaluation.batches(), run)), evaluation.measure
    measure = classification_sums if run.loss is cross_entropy else partial(loss_sums, run.loss)
    return (lambda: _one_pass(run.new_val(), run)), measure


def _one_pass(source: Iterable[Any], run: Any) -> Iterator[Any]:
    """The batches of one pass, the same ones each time; generators that a stream or loader shows stay as they are."""
    if isinstance(source, DataLoader):
        source = Stream(source, "batches", 1, generator(run.seed, "selection"), run.device)
    stream = source if isinstance(source, Stream) else None
    state = {} if stream is None else stream.state_dict()
    try:
        batches, end = iter(source), object()
        for number in itertools.count():
            with seeded(seed_of(run.seed, f"selection/{number}")):
                batch = next(batches, end)
            if batch is end:
                break
            yield batch
            if stream is not None and stream.at_end:
                break
    finally:
        if stream is not None:
            stream.load_state_dict(state)
            stream.restore_generators(state)


class TabulatedAccuracy(Callback):
    """Looks the derived architecture up in a table of accuracies, after each epoch.

    Writes ``tabulated_<dataset>`` (accuracy in percent), ``rank_<dataset>`` and ``regret_<dataset>``.

    Args:
        table: The table, or the file that has it: NAS-Bench-201's (CSV) or NAS-Bench-Macro's (JSON).

    Raises:
        DataError: If the file is faulty.
        InvalidValueError: At the start of the search, if the table is of another space, or of datasets with other
            numbers of classes than the data.
    """

    def __init__(self, table: AccuracyTable | str | Path) -> None:
        self._table = table if isinstance(table, AccuracyTable) else load_table(table)

    def check(self, space: SearchSpace) -> None:
        """Raises InvalidValueError unless the table has the architectures of ``space`` and a dataset like its data."""
        require(space.name == self._table.space, "table", f"one of the space {space.name}", self._table.space)
        known = {CLASSES[name] for name in self._table.datasets}
        limit = f"of {' or '.join(map(str, sorted(known)))} classes, as those of the table"
        classes = getattr(space, "num_classes", None)
        require(classes in known, "data", limit, classes)

    def on_start(self, run: Any) -> None:
        self.check(run.space)

    def on_early_end(self, run: Any, row: dict[str, Any]) -> None:
        self.on_epoch_end(run, row)

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        found = run.architecture
        for name, accuracy in self._table.query(found).items():
            column = COLUMNS[name].removesuffix("_test")
            row[f"tabulated_{column}"] = accuracy
            row[f"rank_{column}"] = self._table.rank(found, name)
            row[f"regret_{column}"] = self._table.regret(found, name)
