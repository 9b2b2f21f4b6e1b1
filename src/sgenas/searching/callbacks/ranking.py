"""How well the weights of a supernet order architectures: rank correlation with tabulated accuracies."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgenas import tree
from sgenas.errors import require
from sgenas.random import generator
from sgenas.run.callbacks import Callback
from sgenas.searching.callbacks.evaluation import Evaluation, TabulatedAccuracy, validation
from sgenas.searching.drawing import different_architectures
from sgenas.spaces import AccuracyTable, load_table
from sgenas.spaces.nasbench201_space.table import CLASSES


@dataclass(frozen=True)
class Ranking:
    """Rank correlations between the accuracy of architectures with a supernet's weights and their tabulated one.

    Attributes:
        dataset: Column of the table: the one with as many classes as the data of the search.
        kendall_tau: Kendall's tau-b; None if all accuracies of one kind are equal.
        spearman: Spearman's rho; None as above.
        architectures: What was ranked.
        supernet: Accuracy of each with the supernet's weights, a fraction.
        tabulated: Tabulated accuracy of each, in percent.
    """

    dataset: str
    kendall_tau: float | None
    spearman: float | None
    architectures: tuple[Any, ...]
    supernet: tuple[float, ...]
    tabulated: tuple[float, ...]


def rank_correlations(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float | None]:
    """Kendall's tau-b and Spearman's rho of two sequences; both are None if all numbers of one are equal."""
    from scipy import stats  # a second

    if min(len(set(first)), len(set(second))) < 2:
        return None, None
    return float(stats.kendalltau(first, second).statistic), float(stats.spearmanr(first, second).statistic)


def rank_supernet(
    run: Any, table: AccuracyTable, *, count: int = 100, batches: int | None = None, seed: int = 0
) -> Ranking:
    """Ranks random architectures by the supernet's weights and by a table.

    Args:
        run: The search, in the middle of its work or after it.
        table: Tabulated accuracies of its space.
        count: Number of different architectures; fewer if the space has fewer.
        batches: Validation batches that each of them is measured on; None for all.
        seed: Of the architectures.

    Raises:
        InvalidValueError: If the table is of another space, or of datasets with other numbers of classes.
        DataError: If the table lacks one of the architectures.
    """
    _check(count, batches)
    TabulatedAccuracy(table).check(run.space)
    dataset = next(name for name in table.datasets if CLASSES[name] == run.space.num_classes)
    found = tuple(itertools.islice(different_architectures(run.space, generator(seed, "ranking")), count))
    # first, since measuring takes minutes
    tabulated = tuple(table.query(architecture)[dataset] for architecture in found)
    given, measure = validation(run)
    evaluation = Evaluation(lambda: itertools.islice(given(), batches), measure)
    supernet: list[float] = []
    for architecture in found:
        means = evaluation.means(run, run.supernet(tree.to(run.space.one_hot(architecture), run.device)))
        require("accuracy" in means, "measure", "one that gives accuracy", sorted(means))
        supernet.append(means["accuracy"])
    return Ranking(dataset, *rank_correlations(supernet, tabulated), found, tuple(supernet), tabulated)


def _check(count: int, batches: int | None) -> None:
    require(count >= 2, "count", ">= 2", count)
    require(batches is None or batches >= 1, "batches", ">= 1 or None", batches)


class SupernetRanking(Callback):
    """Measures after an epoch how well the supernet's weights order random architectures.

    Writes ``kendall_tau`` and ``spearman`` between the accuracy of the same random architectures with the supernet's
    weights on the validation batches and their tabulated one; see `rank_supernet`.

    Args:
        table: The table, or the file that has it.
        every: Epochs between two measurements.
        count: Number of architectures.
        batches: Validation batches that each of them is measured on; None for all.
        seed: Of the architectures.

    Example:
        >>> sgenas.search(space, train, val, callbacks=[SupernetRanking("nasbench201.csv", every=5)])
    """

    def __init__(
        self,
        table: AccuracyTable | str | Path,
        *,
        every: int = 1,
        count: int = 100,
        batches: int | None = None,
        seed: int = 0,
    ) -> None:
        require(every >= 1, "every", ">= 1", every)
        _check(count, batches)
        self._table = table if isinstance(table, AccuracyTable) else load_table(table)
        self._every = every
        self._settings: dict[str, Any] = {"count": count, "batches": batches, "seed": seed}

    def on_start(self, run: Any) -> None:
        TabulatedAccuracy(self._table).check(run.space)

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        if (run.epoch + 1) % self._every == 0:
            found = rank_supernet(run, self._table, **self._settings)
            row |= {"kendall_tau": found.kendall_tau, "spearman": found.spearman}
