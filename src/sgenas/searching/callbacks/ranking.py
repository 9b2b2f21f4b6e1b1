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
from sgenas.spaces import AccuracyTable, load_table
from sgenas.spaces.nasbench201_space.table import CLASSES

TRIES = 1000
"""Draws without a new architecture after which the space is taken to have no other one."""


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
    """
    require(count >= 2, "count", ">= 2", count)
    require(batches is None or batches >= 1, "batches", ">= 1 or None", batches)
    TabulatedAccuracy(table).check(run.space)
    space, draw = run.space, generator(seed, "ranking")
    dataset = next(name for name in table.datasets if CLASSES[name] == space.num_classes)
    found: list[Any] = []
    known = 0
    while len(found) < count and known < TRIES:
        architecture = space.derive(space.random_alphas(draw))
        known = known + 1 if architecture in found else 0
        found += [architecture] * (not known)
    given, measure = validation(run)
    evaluation = Evaluation(lambda: itertools.islice(given(), batches), measure)
    mixing = (tree.to(space.one_hot(architecture), run.device) for architecture in found)
    means = [evaluation.means(run, run.supernet(weights)) for weights in mixing]
    require("accuracy" in means[0], "measure", "one that gives accuracy", sorted(means[0]))
    supernet = [each["accuracy"] for each in means]
    tabulated = [table.query(architecture)[dataset] for architecture in found]
    return Ranking(dataset, *rank_correlations(supernet, tabulated), tuple(found), tuple(supernet), tuple(tabulated))


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
        self._table = table if isinstance(table, AccuracyTable) else load_table(table)
        self._every = every
        self._settings: dict[str, Any] = {"count": count, "batches": batches, "seed": seed}

    def on_start(self, run: Any) -> None:
        TabulatedAccuracy(self._table).check(run.space)

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        if (run.epoch + 1) % self._every == 0:
            found = rank_supernet(run, self._table, **self._settings)
            row |= {"kendall_tau": found.kendall_tau, "spearman": found.spearman}
