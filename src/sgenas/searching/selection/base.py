"""How the final architecture is chosen once the supernet is trained: `Selection`, and what its kinds share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgenas import tree
from sgenas.bilevel import Cost
from sgenas.errors import InvalidValueError
from sgenas.registry import Registry
from sgenas.searching.callbacks.evaluation import Batches, Evaluation, Measure, validation
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.discretization import Rule
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.searching.loop import Search

__all__ = ["SELECTIONS", "AlphaSelection", "Batches", "Measure", "Selection", "choose", "measured", "quality"]


@dataclass(frozen=True)
class Selection(ABC):
    """Base of the selections: frozen dataclasses whose fields are settings.

    A selection runs at the end of the last epoch, before its row is written. It is deterministic: what it draws
    comes from ``generator(search.seed, "selection")``, so that a search that is killed inside it repeats it and
    ends equal. It may move ``search.state``, but restores it, and leaves ``search.alphas`` as they are.
    """

    @abstractmethod
    def select(self, search: "Search", batches: Batches, measure: Measure) -> Any:
        """The final architecture; it meets the budget of the search.

        Measure candidates with `measured`, which records them and counts their passes. Add the passes of
        everything else to ``search.cost``.

        Args:
            search: The search with its trained supernet.
            batches: Gives the validation batches.
            measure: What is measured, see `sgenas.losses.classification_sums`.
        """

    def check(self, space: SearchSpace) -> None:  # noqa: B027
        """Raises InvalidValueError if the selection makes no sense in ``space``."""

    def cost(self, search: "Search", batches: int) -> Cost:
        """Passes of the selection, at most, with that many validation batches."""
        return Cost()


@dataclass(frozen=True)
class AlphaSelection(Selection):
    """The discretization of the final alphas, within the budget if there is one."""

    def select(self, search: "Search", batches: Batches, measure: Measure) -> Any:
        return search.derive(search.final_alphas)


SELECTIONS: Registry[type[Selection]] = Registry("selection", "sgenas.selections")
SELECTIONS.register("alphas", AlphaSelection)


def rule_of(space: SearchSpace) -> Rule:
    """What the discretization of a space maximizes; InvalidValueError if it does not say so."""
    try:
        return space.discretization.rule
    except (AttributeError, NotImplementedError):
        kind = type(space.discretization).__name__
        raise InvalidValueError(f"discretization must have a rule for this selection, got {kind}",
                                field="discretization") from None  # fmt: skip


def kept_columns(space: SearchSpace, name: str) -> list[int]:
    """Columns of a table that can be kept."""
    keeps_none = rule_of(space).keeps_none
    return [column for column, label in enumerate(space.columns[name]) if keeps_none or label != "none"]


def measured(
    search: "Search", batches: Batches, measure: Measure, mixing: TensorDict | None, **row: Any
) -> dict[str, float]:
    """Means over the validation batches of the supernet with mixing weights ``mixing``, None for those of the alphas.

    Counts one forward pass per batch, and appends ``row`` with the means to ``search.candidates``, which becomes
    selection.json. If the search is asked to stop, it leaves it here.
    """
    search.go_on()
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal count
        for count, batch in enumerate(batches(), start=1):  # noqa: B007
            yield batch

    model = search.supernet(None if mixing is None else tree.to(mixing, search.device))
    found = Evaluation(counted, measure).means(search, model)
    search.cost += Cost(forward=count)
    search.candidates.append(row | found)
    for callback in search.callbacks:
        callback.on_candidate(search)
    return found


def quality(found: dict[str, float]) -> tuple[float, float]:
    """What is compared between candidates, the larger the better: accuracy if it is measured, then -loss."""
    if "accuracy" not in found and "loss" not in found:
        raise InvalidValueError(f"measure must give accuracy or loss, got {', '.join(found) or 'nothing'}",
                                field="measure")  # fmt: skip
    loss = found.get("loss", 0.0)
    return found.get("accuracy", 0.0), -math.inf if math.isnan(loss) else -loss


def choose(search: "Search") -> None:
    """Runs the selection of a search, once; the derivation from the alphas needs no run."""
    if search.chosen is None and not isinstance(search.selection, AlphaSelection):
        search.candidates.clear()
        search.chosen = search.selection.select(search, *validation(search))
