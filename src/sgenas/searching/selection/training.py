"""Selection by short training: architectures close to the derived one are trained from scratch and compared."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgenas import tree
from sgenas.bilevel import Cost
from sgenas.errors import require
from sgenas.fields import option
from sgenas.optim import with_lr
from sgenas.random import Seed, generator, seed_of, seeded
from sgenas.searching.callbacks.evaluation import Measure
from sgenas.searching.drawing import key_of
from sgenas.searching.objectives import Seeded
from sgenas.searching.schedules import Cosine
from sgenas.searching.selection.base import SELECTIONS, Batches, Selection, kept_columns, measured, quality, rule_of
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.wrapped import Given

if TYPE_CHECKING:
    from sgenas.searching.loop import Search


FINAL_SHARE = 1 / 25
"""The last learning rate in units of the first: that of DARTS' search."""


@dataclass(frozen=True)
class TrainingSelection(Selection):
    """The best of the derived architecture and its closest neighbors, each trained from scratch for a short time.

    A neighbor has the runner-up on one edge, or in one choice, and is the closer the smaller the lead there; with a
    budget it is the best architecture within the limits if that were so. All train from the same weights on the same
    batches, within the supernet with the mixing weights of one architecture and all channels, by the optimizer of the
    weights, whose learning rate falls along a cosine. The best has the highest validation accuracy, of equal ones the
    lowest loss. It replaces the derived architecture if it gains more than ``margin``: the alphas come from a whole
    search, and a short training favors what trains fast. Candidates that diverge are out.

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
        rows = sum(math.prod(shape[:-1]) for shape in search.space.shapes.values())
        count = min(self.candidates, 1 + rows)
        return Cost(count * (self.steps + batches), count * self.steps, count * self.steps)

    def select(self, search: "Search", batches: Batches, measure: Measure) -> Any:
        trained, state, space = [], search.state, search.space
        stream, alone = search.streams[0], space.with_all_channels()
        start = stream.state_dict()
        if "start" in start:
            # this is the end of a pass, which need not be gone through again
            start["taken"] = 0
        try:
            for architecture, change in self._candidates(search):
                mixing = tree.to(space.one_hot(architecture), search.device)
                search.space = alone.with_parts(relaxation=Given(mixing))
                stream.load_state_dict(start)
                stream.restore_generators(start)
                self._train(search)
                plain = space.architecture_to_dict(architecture)
                row = measured(search, batches, measure, mixing, architecture=plain, steps=self.steps, **change)
                trained.append((row, architecture))
                search.space = space
        finally:
            search.state, search.space = state, space
        rows = [row for row, _ in trained]
        finite = [place for place, row in enumerate(rows) if math.isfinite(row.get("loss", 0.0))]
        if not finite:
            raise search.diverged("loss is nan after the training of every candidate of the selection", search.step)
        best = max(finite, key=lambda place: quality(rows[place]))
        # the derived one is the first
        kept = best if 0 not in finite or improves(rows[best], rows[0], self.margin) else 0
        for place, candidate in enumerate(search.candidates):
            candidate["kept"] = place == kept
        return trained[kept][1]

    def _candidates(self, search: "Search") -> Iterator[tuple[Any, dict[str, Any]]]:
        """Different architectures, the derived one first, and where each differs from it."""
        known: set[str] = set()
        for alphas, change in [(search.final_alphas, {}), *neighbors(search)]:
            if len(known) == self.candidates:
                break
            architecture = search.derive(alphas)
            key = key_of(search.space, architecture)
            if key not in known:
                known.add(key)
                # within a budget other places may change, too
                yield architecture, change if search.costs is None else {}

    def _train(self, search: "Search") -> None:
        """Trains the weights that all candidates start from in the space of the search; they end in its state."""
        objectives, optimizer = search.objectives(), search._weight_optimizer
        weights = search.space.initial_weights(generator(search.seed, "selection"))
        search.state = optimizer.init(tree.to(weights, search.device))
        lr = getattr(optimizer, "lr", None)
        for step in range(self.steps):
            search.go_on()
            if lr is not None:
                optimizer = with_lr(optimizer, Cosine(FINAL_SHARE * lr)(lr, step, self.steps))
            seed = seed_of(search.seed, f"selection/{step}")
            with seeded(seed):
                batch = Seeded(next(search.streams[0]), Seed(seed))
            search.state = objectives.problem(optimizer, [], None).run(search.state, search.alphas, [batch]).end
        search.cost += Cost(self.steps, self.steps, self.steps)


def improves(found: dict[str, float], before: dict[str, float], margin: float) -> bool:
    """Whether ``found`` is better by more than a margin, in accuracy, or without accuracy as a share of the loss."""
    if "accuracy" in found:
        gain = found["accuracy"] - before["accuracy"]
    else:
        gain, margin = before["loss"] - found["loss"], margin * abs(before["loss"])
    # accuracies are quotients, and three points should not be more than three points
    return gain > margin + 1e-9


def neighbors(search: "Search") -> list[tuple[tree.TensorDict, dict[str, Any]]]:
    """Alphas with the two largest weights of one row exchanged, and what that changes, by the lead, smallest first."""
    space, alphas = search.space, search.final_alphas
    found = []
    for name, table in space.mixing_to_derive(alphas).items():
        columns = kept_columns(space, name)
        if len(columns) < 2:
            continue
        for row in range(math.prod(table.shape[:-1])):
            weights = table.view(-1, table.shape[-1])[row, columns]
            order = weights.argsort(descending=True, stable=True)[:2].tolist()
            best, second = (columns[place] for place in order)
            exchanged = {key: value.detach().clone() for key, value in alphas.items()}
            own = exchanged[name].view(-1, table.shape[-1])[row]
            own[[best, second]] = own[[second, best]]
            if own[best] == own[second]:
                # of equal ones the first would win again
                own[second] += 1e-6 * (1 + own[second].abs())
            change: dict[str, Any] = {"table": name, "lead": float(weights[order[0]] - weights[order[1]])}
            if hasattr(space, "edges"):
                change["edge"] = "{}->{}".format(*space.edges[row])
            labels = space.columns[name]
            found.append((exchanged, change | {"instead_of": str(labels[best]), "option": str(labels[second])}))
    return sorted(found, key=lambda pair: pair[1]["lead"])


SELECTIONS.register("training", TrainingSelection)
