"""Selection by short training: architectures close to the derived one are trained from scratch and compared."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from sgenas import tree
from sgenas.bilevel import Cost
from sgenas.errors import require
from sgenas.fields import option
from sgenas.random import Seed, generator, seed_of
from sgenas.searching.callbacks.evaluation import Measure
from sgenas.searching.drawing import key_of
from sgenas.searching.objectives import Seeded
from sgenas.searching.selection.base import SELECTIONS, Batches, Selection, kept_columns, measured, quality, rule_of
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.wrapped import Given

if TYPE_CHECKING:
    from sgenas.searching.loop import Search


@dataclass(frozen=True)
class TrainingSelection(Selection):
    """The best of the derived architecture and its closest neighbors, each trained from scratch for a short time.

    A neighbor has the runner-up on one edge, or in one choice, and is the closer the smaller the lead there. All train
    from the same weights on the same batches, within the supernet with the mixing weights of one architecture, by the
    optimizer of the weights and its schedule, run through once in ``steps`` steps. The best has the highest validation
    accuracy, of equal ones the lowest loss. It replaces the derived architecture if it gains more than ``margin``: the
    alphas come from a whole search, and a short training favors what trains fast.

    Comparing by short training from scratch follows DARTS (Liu et al., arXiv:1806.09055, section 3.1), which compares
    the cells of four searches; that the candidates are neighbors in one search is this library's.

    Args:
        candidates: Number of architectures that are trained, the derived one among them; fewer if the space or the
            budget has fewer.
        steps: Steps that each of them is trained for.
        margin: Gain in validation accuracy that is not enough, 0.03 for three points; of a measure without accuracy
            the share of the loss.
    """

    candidates: int = 5
    steps: int = option(400, flag="candidate-steps")
    margin: float = option(0.03, flag="candidate-margin")

    def __post_init__(self) -> None:
        require(self.candidates >= 1, "TrainingSelection.candidates", ">= 1", self.candidates)
        require(self.steps >= 1, "TrainingSelection.steps", ">= 1", self.steps)
        require(0 <= self.margin < 1, "TrainingSelection.margin", "from 0 to less than 1", self.margin)

    def check(self, space: SearchSpace) -> None:
        limit = "one without a threshold (top-edges, argmax) for a selection by training"
        require(rule_of(space).threshold is None, "discretization", limit, space.discretization)

    def cost(self, search: "Search", batches: int) -> Cost:
        steps = self.candidates * self.steps
        return Cost(steps + self.candidates * batches, steps, steps)

    def select(self, search: "Search", batches: Batches, measure: Measure) -> Any:
        trained, state, space, start = [], search.state, search.space, search.streams[0].state_dict()
        try:
            for architecture, change in self._candidates(search):
                mixing = tree.to(space.one_hot(architecture), search.device)
                search.space = space.with_parts(relaxation=Given(mixing))
                search.streams[0].load_state_dict(start)
                search.streams[0].restore_generators(start)
                self._train(search)
                search.space, plain = space, space.architecture_to_dict(architecture)
                row = measured(search, batches, measure, mixing, architecture=plain, steps=self.steps, **change)
                trained.append((row, architecture))
        finally:
            search.state, search.space = state, space
        derived, best = trained[0], max(trained, key=lambda pair: quality(pair[0]))
        if math.isnan(best[0].get("loss", 0.0)):
            raise search.diverged("loss is nan after the training of every candidate of the selection", search.step)
        return best[1] if improves(best[0], derived[0], self.margin) else derived[1]

    def _candidates(self, search: "Search") -> Iterator[tuple[Any, dict[str, Any]]]:
        """Different architectures, the derived one first, and where each differs from it."""
        known: set[str] = set()
        for alphas, change in [(search.final_alphas, {}), *neighbors(search)]:
            architecture = search.derive(alphas)
            key = key_of(search.space, architecture)
            if key not in known and len(known) < self.candidates:
                known.add(key)
                yield architecture, change

    def _train(self, search: "Search") -> None:
        """Trains the weights that all candidates start from in the space of the search; they end in its state."""
        objectives, optimizer = search.objectives(), search._weight_optimizer
        weights = search.space.initial_weights(generator(search.seed, "selection"))
        search.state = optimizer.init(tree.to(weights, search.device))
        lr = getattr(optimizer, "lr", None)
        for step in range(self.steps):
            if lr is not None:
                optimizer = dataclasses.replace(optimizer, lr=search._schedule(lr, step, self.steps))  # type: ignore[type-var]
            batch = Seeded(next(search.streams[0]), Seed(seed_of(search.seed, f"selection/{step}")))
            search.state = objectives.problem(optimizer, [], None).run(search.state, search.alphas, [batch]).end
        search.cost += Cost(self.steps, self.steps, self.steps)


def improves(found: dict[str, float], before: dict[str, float], margin: float) -> bool:
    """Whether ``found`` is better by more than a margin, in accuracy, or without accuracy as a share of the loss."""
    if "accuracy" in found:
        return found["accuracy"] - before["accuracy"] > margin
    if math.isnan(before["loss"]):
        return not math.isnan(found["loss"])
    return before["loss"] - found["loss"] > margin * abs(before["loss"])


def neighbors(search: "Search") -> list[tuple[tree.TensorDict, dict[str, Any]]]:
    """Alphas with the two largest weights of one row exchanged, and what that changes, by the lead, smallest first."""
    space, alphas = search.space, search.final_alphas
    found = []
    for name, table in space.mixing_to_derive(alphas).items():
        columns = kept_columns(space, name)
        if len(columns) < 2:
            continue
        for row in range(prod(table.shape[:-1])):
            weights = table.view(-1, table.shape[-1])[row, columns]
            order = weights.argsort(descending=True, stable=True)[:2].tolist()
            best, second = (columns[place] for place in order)
            exchanged = {key: value.detach().clone() for key, value in alphas.items()}
            own = exchanged[name].view(-1, table.shape[-1])[row]
            own[[best, second]] = own[[second, best]]
            change: dict[str, Any] = {"table": name, "lead": float(weights[order[0]] - weights[order[1]])}
            if hasattr(space, "edges"):
                change["edge"] = "{}->{}".format(*space.edges[row])
            labels = space.columns[name]
            found.append((exchanged, change | {"instead_of": str(labels[best]), "option": str(labels[second])}))
    return sorted(found, key=lambda pair: pair[1]["lead"])


SELECTIONS.register("training", TrainingSelection)
