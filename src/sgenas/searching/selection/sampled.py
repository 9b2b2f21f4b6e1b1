"""Random search and regularized evolution on a trained supernet, whose weights all architectures share."""

import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sgenas.bilevel import Cost
from sgenas.errors import require
from sgenas.fields import option
from sgenas.random import generator
from sgenas.searching.callbacks.evaluation import Measure
from sgenas.searching.drawing import TRIES, different_architectures, key_of, mutated, random_alphas
from sgenas.searching.selection.base import SELECTIONS, Batches, Selection, measured, quality
from sgenas.spaces.base import SearchSpace

if TYPE_CHECKING:
    from sgenas.searching.loop import Search


@dataclass(frozen=True)
class SampledSelection(Selection):
    """Base of the selections that measure sampled architectures with the supernet's weights and take the best.

    The best has the highest accuracy on the validation batches, of equal ones the lowest loss.

    Args:
        candidates: Number of different architectures that are measured; fewer if the space or the budget has fewer.
        batches: Validation batches that each of them is measured on; None for all.
    """

    candidates: int = 100
    batches: int | None = option(None, flag="candidate-batches")

    def __post_init__(self) -> None:
        owner = type(self).__name__
        require(self.candidates >= 1, f"{owner}.candidates", ">= 1", self.candidates)
        require(self.batches is None or self.batches >= 1, f"{owner}.batches", ">= 1 or None", self.batches)

    def check(self, space: SearchSpace) -> None:
        threshold = getattr(space.discretization, "threshold", None)
        limit = "one without a threshold (top-edges, argmax) for sampled architectures"
        require(threshold is None, "discretization", limit, space.discretization)

    def cost(self, search: "Search", batches: int) -> Cost:
        return Cost(forward=self.candidates * min(batches, self.batches or batches))

    def select(self, search: "Search", batches: Batches, measure: Measure) -> Any:
        pool = Pool(search, (lambda: itertools.islice(batches(), self.batches)), measure)
        self.fill(pool, generator(search.seed, "selection"))
        return pool.best

    def fill(self, pool: "Pool", draw: torch.Generator) -> None:
        """Measures the candidates."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandomSelection(SampledSelection):
    """The best of random architectures (Li and Talwalkar, arXiv:1902.07638)."""

    def fill(self, pool: "Pool", draw: torch.Generator) -> None:
        found = different_architectures(pool.search.space, draw, pool.search.costs)
        for architecture in itertools.islice(found, self.candidates):
            pool.measure(architecture)


@dataclass(frozen=True)
class EvolutionSelection(SampledSelection):
    """The best of regularized evolution (Real et al., arXiv:1802.01548, Algorithm 1).

    A population of random architectures; then in each cycle the best of ``sample_size`` random members is mutated,
    and the child replaces the oldest member. A mutation draws the scores of one edge or choice again, until the
    derived architecture changes. A child that was measured before joins with what it had.

    Args:
        population: Number of members, at most ``candidates``.
        sample_size: Members drawn with replacement in each cycle.
    """

    population: int = 10
    sample_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        good = 1 <= self.population <= self.candidates
        limit = f"from 1 to the {self.candidates} candidates"
        require(good, "EvolutionSelection.population", limit, self.population)
        require(self.sample_size >= 1, "EvolutionSelection.sample_size", ">= 1", self.sample_size)

    def fill(self, pool: "Pool", draw: torch.Generator) -> None:
        search = pool.search
        first = [random_alphas(search.space, draw, search.costs) for _ in range(self.population)]
        members = deque((pool.measure(found := search.derive(alphas)), (alphas, found)) for alphas in first)
        known = 0
        while len(pool) < self.candidates and known < TRIES:
            places = torch.randint(self.population, (self.sample_size,), generator=draw).tolist()
            _, parent = max((members[place] for place in places), key=lambda member: member[0])
            child, before = mutated(search.derive, search.space, parent, draw), len(pool)
            if child is None:
                # the space or the budget has no other architecture
                break
            members.append((pool.measure(child[1]), child))
            members.popleft()
            known = 0 if len(pool) > before else known + 1


class Pool:
    """Candidates of a selection, measured once each; ``len`` is their number, ``best`` the best one so far."""

    def __init__(self, search: "Search", batches: Batches, measure: Measure) -> None:
        self.search, self._batches, self._measure = search, batches, measure
        self._known: dict[str, tuple[float, float]] = {}
        self.best: Any = None

    def __len__(self) -> int:
        return len(self._known)

    def measure(self, architecture: Any) -> tuple[float, float]:
        """The `quality` of an architecture."""
        space = self.search.space
        key = key_of(space, architecture)
        if key not in self._known:
            plain, mixing = space.architecture_to_dict(architecture), space.one_hot(architecture)
            found = quality(measured(self.search, self._batches, self._measure, mixing, architecture=plain))
            if self.best is None or found > max(self._known.values()):
                self.best = architecture
            self._known[key] = found
        return self._known[key]


SELECTIONS.register("random", RandomSelection)
SELECTIONS.register("evolution", EvolutionSelection)
