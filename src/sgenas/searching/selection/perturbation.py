"""Perturbation-based selection: an operation is worth what the supernet loses without it."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import Cost
from sgenas.errors import DivergenceError, require
from sgenas.random import generator
from sgenas.searching.callbacks.evaluation import Measure
from sgenas.searching.results import training_cost
from sgenas.searching.selection.base import SELECTIONS, Batches, Selection, kept_columns, measured, quality, rule_of
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.wrapped import Decided, Given
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.searching.loop import Search

LR_SCALE = 0.1
"""Learning rate of the fine-tuning in units of the weights' first one."""
SHARE = 0.1
"""Epochs of fine-tuning between two decisions, in epochs of the search: the source has 5 and 50."""

Place = tuple[str, int]
"""A table, and a row of it; a choice has one row."""


@dataclass(frozen=True)
class PerturbationSelection(Selection):
    """Perturbation-based selection (DARTS-PT; Wang et al., arXiv:2108.04392, Algorithm 1).

    Edges are decided in random order, one of each kind of cell (or one choice of a module) per round. Of an edge, the
    operation is kept without which the supernet has the lowest validation accuracy; of equal ones that with the
    highest loss. "Without" sets its mixing weight to 0 and leaves all others as they are; a decided edge has weight 1
    for its operation and 0 for the others. Then, if a node keeps k of its edges, the nodes are decided in random
    order: each keeps the k edges without which the accuracy is lowest.

    Between two rounds the supernet is fine-tuned, its alphas too, by the steps of the search with the decided edges
    fixed, at a tenth of the first learning rate and from zero momentum. Weights and alphas of the search come back
    afterwards. With a budget only decisions count that leave an architecture within it.

    Args:
        finetune_epochs: Epochs of fine-tuning between two rounds, at least 0; None for a tenth of the search's, at
            least 1.
    """

    finetune_epochs: int | None = None

    def __post_init__(self) -> None:
        epochs = self.finetune_epochs
        good = epochs is None or epochs >= 0
        require(good, "PerturbationSelection.finetune_epochs", ">= 0 or None", epochs)

    def check(self, space: SearchSpace) -> None:
        rule = rule_of(space)
        good = rule.operations_per_edge == 1 and rule.threshold is None
        limit = "one that keeps one operation per edge, without a threshold, for perturbation"
        require(good, "discretization", limit, space.discretization)
        alone = getattr(space, "partial_channels", 1) == 1 or "none" in getattr(space, "operations", ())
        limit = "with none among them for perturbation of partially connected cells"
        require(alone, "operations", limit, getattr(space, "operations", ()))

    def epochs(self, search: "Search") -> int:
        """Epochs of fine-tuning between two rounds of this search."""
        return max(1, round(SHARE * search.epochs)) if self.finetune_epochs is None else self.finetune_epochs

    def cost(self, search: "Search", batches: int) -> Cost:
        space = search.space
        rounds, nodes = _in_rounds(groups_of(space)), _in_rounds(node_groups_of(space))
        removals = sum(len(kept_columns(space, name)) for each in rounds for name, _ in each)
        removals += sum(len(edges) for each in nodes for _, edges in each)
        epochs = self.epochs(search) * (len(rounds) + len(nodes) - 1)
        return Cost(forward=removals * batches) + training_cost(search, epochs, continued=True)

    def select(self, search: "Search", batches: Batches, measure: Measure) -> Any:
        with _restored(search):
            return _Projection(search, batches, measure, self.epochs(search)).run()


class _Projection:
    """The decisions so far, on a search whose state they may change."""

    def __init__(self, search: "Search", batches: Batches, measure: Measure, epochs: int) -> None:
        self._search, self._batches, self._measure, self._epochs = search, batches, measure, epochs
        self._draw = generator(search.seed, "selection")
        self._space, self._rule = search.space, rule_of(search.space)
        shapes = search.space.shapes
        self._decided = {name: torch.zeros(shape[:-1], dtype=torch.bool) for name, shape in shapes.items()}
        self._rows = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self._allowed = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}

    def run(self) -> Any:
        """The architecture of all decisions."""
        search = self._search
        search.state = search.weight_optimizer().init(search.state.weights)
        rounds = [self._shuffled(group) for group in groups_of(self._space)]
        nodes = [self._shuffled(group) for group in node_groups_of(self._space)]
        decisions: list[tuple[Callable[[Any], None], list[Any]]] = []
        decisions += [(self._decide_operation, each) for each in _in_rounds(rounds)]
        decisions += [(self._decide_node, each) for each in _in_rounds(nodes)]
        for number, (decide, places) in enumerate(decisions):
            if number:
                self._finetune()
            for place in places:
                decide(place)
                decided, rows = (tree.to(tables, search.device) for tables in (self._decided, self._rows))
                relaxation = Decided(self._space.relaxation, decided, rows)
                search.space = self._space.with_parts(relaxation=relaxation)
        return search.space.derive(search.alphas)

    def _shuffled(self, items: list[Any]) -> list[Any]:
        return [items[place] for place in torch.randperm(len(items), generator=self._draw).tolist()]

    def _decide_operation(self, place: Place) -> None:
        name, row = place
        rows = {
            column: self._without(place, column, str(self._space.columns[name][column]))
            for column in kept_columns(self._space, name)
        }
        for column in sorted(rows, key=lambda column: quality(rows[column])):
            allowed = tree.clone(self._allowed)
            _row(allowed[name], row)[:] = False
            _row(allowed[name], row)[column] = True
            if self._is_within(allowed):
                break
        self._allowed, rows[column]["kept"] = allowed, True
        _row(self._rows[name], row)[column] = 1.0
        self._decided[name].view(-1)[row] = True

    def _decide_node(self, node: tuple[str, list[int]]) -> None:
        name, edges = node
        rows = {edge: self._without((name, edge), slice(None), "edge") for edge in edges}
        ranked = sorted(edges, key=lambda edge: quality(rows[edge]))
        # the first ones first: of equally many edges those whose removal hurts most
        for kept in itertools.combinations(ranked, self._rule.edges_per_node or len(edges)):
            dropped, allowed = [edge for edge in edges if edge not in kept], tree.clone(self._allowed)
            allowed[name][dropped] = False
            if self._is_within(allowed):
                break
        self._allowed = allowed
        self._rows[name][dropped] = 0.0
        for edge in kept:
            rows[edge]["kept"] = True

    def _without(self, place: Place, column: int | slice, what: str) -> dict[str, Any]:
        """The row of ``search.candidates`` for the supernet with an operation, or all of an edge, removed."""
        name, number = place
        mixing = tree.clone(self._search.space.mixing(self._search.alphas))
        weights = _row(mixing[name], number)
        removed = weights[column].clone()
        weights[column] = 0.0
        if isinstance(column, int) and getattr(self._space, "partial_channels", 1) > 1:
            # channels around the operations have the sum of the row
            weights[list(self._space.columns[name]).index("none")] += removed
        where = {"table": name, "without": what}
        if hasattr(self._space, "edges"):
            where["edge"] = "{}->{}".format(*self._space.edges[number])
        measured(self._search, self._batches, self._measure, mixing, **where, kept=False)
        return self._search.candidates[-1]

    def _is_within(self, allowed: TensorDict) -> bool:
        """Whether an architecture of allowed operations alone meets the budget."""
        costs = self._search.costs
        if costs is None or not costs.budget.limits:
            return True
        # the best score is 0 if there is one
        scores = {name: -(~table).double() for name, table in allowed.items()}
        scored = copy.copy(costs)
        scored.space = self._space.with_parts(relaxation=Given(scores))
        found = self._space.one_hot(scored.best(tree.map(lambda alpha: alpha.detach().cpu(), self._search.alphas)))
        return all(bool((table | ~self._used(found[name], name)).all()) for name, table in allowed.items())

    def _used(self, one_hot: Tensor, name: str) -> Tensor:
        """Which operations of a table an architecture has; ``none`` counts if it is an operation like the others."""
        used, labels = one_hot.bool().cpu(), list(self._space.columns[name])
        if self._rule.keeps_none and "none" in labels:
            used[..., labels.index("none")] |= ~used.any(dim=-1)
        return used

    def _finetune(self) -> None:
        search = self._search
        for _ in range(self._epochs):
            while True:
                search.go_on()
                try:
                    search.take_step()
                except DivergenceError as error:
                    raise search.diverged(f"{error} in the fine-tuning of the selection", search.step + 1) from None
                search.step += 1
                if search.epoch_is_over():
                    break


@contextlib.contextmanager
def _restored(search: "Search") -> Iterator[None]:
    """Fine-tuning inside; weights, alphas, step, schedule and space of the search as before afterwards."""
    kept, names = search.snapshot(), ("space", "step", "_rounds", "_schedule")
    before = {name: getattr(search, name) for name in names}
    search._schedule = lambda lr, epoch, epochs: LR_SCALE * lr
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(search, name, value)
        search.restore(kept)


def _row(table: Tensor, row: int) -> Tensor:
    """A row of a table, as a view; a choice has one."""
    return table.view(-1, table.shape[-1])[row]


def groups_of(space: SearchSpace) -> list[list[Place]]:
    """Edges of which one is decided per round: those of each kind of cell, and all choices together."""
    cells, choices = [], []
    for name, shape in space.shapes.items():
        places = [(name, row) for row in range(prod(shape[:-1]))]
        if hasattr(space, "edges"):
            cells.append(places)
        else:
            choices += places
    return [*cells, choices] if choices else cells


def node_groups_of(space: SearchSpace) -> list[list[tuple[str, list[int]]]]:
    """Nodes that must lose edges, by kind of cell, each with its incoming edges; one per kind and round."""
    most, edges = rule_of(space).edges_per_node, getattr(space, "edges", ())
    if most is None:
        return []
    rows: dict[int, list[int]] = {}
    for row, (_, target) in enumerate(edges):
        rows.setdefault(target, []).append(row)
    return [[(name, incoming) for incoming in rows.values() if len(incoming) > most] for name in space.shapes]


def _in_rounds(groups: list[list[Any]]) -> list[list[Any]]:
    """The k-th items of all groups, for each k."""
    return [[item for item in items if item is not None] for items in itertools.zip_longest(*groups)]


SELECTIONS.register("perturbation", PerturbationSelection)
