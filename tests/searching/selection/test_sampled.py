"""Random search and evolution on a trained supernet, against their definitions written out."""

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_searches import module_search, net, rows, squared_error
from torch import nn

import sgenas
from sgenas import Budget
from sgenas.errors import InvalidValueError
from sgenas.random import generator
from sgenas.searching.selection import SELECTIONS, EvolutionSelection, RandomSelection
from sgenas.searching.selection.base import quality
from sgenas.searching.selection.sampled import mutated, random_alphas
from sgenas.spaces import AccuracyTable, darts, nasbench201
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.nasbench201_space.strings import to_string
from sgenas.tree import TensorDict

TABLE = Path(__file__).parents[4] / "shared" / "data" / "nasbench201-200epochs.csv"


@dataclass
class Fake:
    """As much of a search as sampling needs."""

    space: SearchSpace
    costs: Any = None

    def derive(self, alphas: TensorDict) -> Any:
        return self.space.derive(alphas) if self.costs is None else self.costs.derive(alphas)


@dataclass
class FakePool:
    """Measures by a function of the cell, and keeps what it was given."""

    search: Fake
    value: Any
    seen: dict[str, float] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seen)

    def measure(self, alphas: TensorDict) -> tuple[float, float]:
        cell = to_string(self.search.derive(alphas))
        self.given.append(cell)
        self.seen[cell] = self.value(cell)
        return self.seen[cell], 0.0


def convolutions(cell: str) -> float:
    return cell.count("nor_conv_3x3")


def choices_net() -> nn.Module:
    """6 architectures."""
    torch.manual_seed(0)
    act = sgenas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()}, name="act")
    return net(act)


# -- drawing ---------------------------------------------------------------------------------------------------


def test_every_operation_of_an_edge_is_equally_likely() -> None:
    space, draw = nasbench201(channels=1, layers=1), generator(0, "test")
    counts: Counter[tuple[str, str]] = Counter()
    for _ in range(1000):
        for edge in re.findall(r"\w+~\d", to_string(space.derive(space.random_alphas(draw)))):
            name, source = edge.split("~")
            counts[source, name] += 1
    for (source, _), count in counts.items():
        edges = 3 - int(source)
        # 5 standard deviations
        assert abs(count - 200 * edges) < 5 * (1000 * edges * 0.2 * 0.8) ** 0.5
    assert len(counts) == 15


def test_edges_of_a_node_are_equally_likely_in_cells_of_darts() -> None:
    space, draw = darts(channels=2, layers=3, nodes=2), generator(0, "test")
    counts = Counter(
        (edge.source, edge.target)
        for _ in range(600)
        for edge in space.derive(space.random_alphas(draw))["normal"].edges
    )
    assert counts[0, 2] == counts[1, 2] == 600
    for source in range(3):
        assert abs(counts[source, 3] - 400) < 5 * (600 * 2 / 9) ** 0.5


def test_mutation_changes_one_edge() -> None:
    search, draw = Fake(nasbench201(channels=1, layers=1)), generator(0, "test")
    parent = random_alphas(search, draw)  # type: ignore[arg-type]
    before = search.space.one_hot(search.derive(parent))["cell"]
    changed = Counter()
    for _ in range(200):
        after = search.space.one_hot(search.derive(mutated(search, parent, draw)))["cell"]  # type: ignore[arg-type]
        (edge,) = (before != after).any(dim=1).nonzero().flatten().tolist()
        changed[edge] += 1
    assert len(changed) == 6


def test_draws_within_a_budget_are_uniform_among_those_that_meet_it() -> None:
    space, draw = nasbench201(channels=1, layers=1, operations=("none", "nor_conv_3x3")), generator(0, "test")
    costs = space.cost_model(Budget(max_params=400_000), (3, 32, 32))
    search = Fake(space, costs)
    drawn = Counter(to_string(search.derive(random_alphas(search, draw))) for _ in range(600))  # type: ignore[arg-type]
    rows = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0, 1), repeat=6)]
    everything = [space.derive({"cell": torch.stack([1 - row, row], dim=1)}) for row in rows]
    meeting = {to_string(cell) for cell in everything if costs.is_within(cell)}
    assert 1 < len(meeting) < 64
    assert set(drawn) == meeting
    expected = 600 / len(meeting)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())


def test_draw_meets_a_budget_that_one_architecture_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgenas.searching.selection.sampled.TRIES", 3)
    space = nasbench201(channels=1, layers=1)
    least = space.cost_model(Budget(max_params=10**9), (3, 32, 32)).tables["params"].fixed[(1,)]
    search = Fake(space, space.cost_model(Budget(max_params=int(least)), (3, 32, 32)))
    found = search.derive(random_alphas(search, generator(0, "test")))  # type: ignore[arg-type]
    assert "conv" not in to_string(found)


# -- evolution -------------------------------------------------------------------------------------------------


def test_evolution_is_algorithm_1_of_its_source() -> None:
    """Written out with lists: tournament of S with replacement, mutate its best, drop the oldest."""
    search = Fake(nasbench201(channels=1, layers=1))
    pool = FakePool(search, convolutions)
    EvolutionSelection(candidates=60, population=7, sample_size=3).fill(pool, generator(5, "test"))  # type: ignore[arg-type]

    draw, population, history = generator(5, "test"), [], []
    first = [random_alphas(search, draw) for _ in range(7)]  # type: ignore[arg-type]
    for alphas in first:
        population.append((convolutions(to_string(search.derive(alphas))), alphas))
        history.append(to_string(search.derive(alphas)))
    while len(set(history)) < 60:
        sample = [population[int(place)] for place in torch.randint(7, (3,), generator=draw)]
        parent = sample[0]
        for member in sample[1:]:
            parent = member if member[0] > parent[0] else parent
        child = mutated(search, parent[1], draw)  # type: ignore[arg-type]
        history.append(to_string(search.derive(child)))
        population = [*population[1:], (convolutions(history[-1]), child)]
    assert pool.given == history


@pytest.mark.skipif(not TABLE.exists(), reason="needs the table of NAS-Bench-201")
def test_evolution_beats_random_search_on_the_table() -> None:
    table = AccuracyTable.load(TABLE, ["cifar10"])

    def best(selection: Any, seed: int) -> float:
        pool = FakePool(Fake(nasbench201(channels=1, layers=1)), lambda cell: table.query(cell)["cifar10"])
        selection.fill(pool, generator(seed, "test"))
        assert len(pool) == 150
        return max(pool.seen.values())

    ours = [best(EvolutionSelection(candidates=150), seed) for seed in range(4)]
    theirs = [best(RandomSelection(candidates=150), seed) for seed in range(4)]
    assert sum(ours) > sum(theirs)
    assert min(ours) > 93.5


# -- the selection of a search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", [RandomSelection(candidates=9), EvolutionSelection(candidates=9, population=3)])
def test_best_of_all_architectures_is_chosen_by_the_mean_validation_loss(selection: Any, tmp_path: Path) -> None:
    """Against the loss of every derived module with the supernet's weights."""
    found = module_search(choices_net(), selection=selection, run_dir=tmp_path / "run")
    losses = {}
    batches = rows(48, seed=1)
    for act, whose in itertools.product(("relu", "tanh", "none"), ("others", "own")):
        network = found.space.build({"act": act, "whose": whose}, found.weights)
        if whose == "own":
            # batches do not matter to the mean
            losses[act] = squared_error(network, batches[:]).item()
    assert found.choices["whose"] == "own"
    assert losses[found.choices["act"]] == min(losses.values())
    written = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert written["chosen"] == found.choices
    assert len({json.dumps(row["architecture"]) for row in written["candidates"]}) == len(written["candidates"]) == 6
    measured = {row["architecture"]["act"]: row["loss"] for row in written["candidates"]
                if row["architecture"]["whose"] == "own"}  # fmt: skip
    assert measured == pytest.approx(losses, rel=1e-5)


def test_candidates_are_counted_in_passes_over_their_batches() -> None:
    plain = module_search(choices_net())
    for batches, each in ((None, 3), (2, 2), (9, 3)):
        found = module_search(choices_net(), selection=RandomSelection(candidates=4, batches=batches))
        assert found.cost.forward == plain.cost.forward + 4 * each
        assert (found.cost.backward, found.cost.inner_steps) == (plain.cost.backward, plain.cost.inner_steps)


def test_more_accurate_is_better_then_less_loss_then_no_nan() -> None:
    found = [{"loss": 2.0}, {"loss": 1.0}, {"loss": float("nan")}]
    assert max(found, key=quality) == {"loss": 1.0}
    assert quality({"accuracy": 0.5, "loss": 9.0}) > quality({"accuracy": 0.4, "loss": 0.1})
    assert quality({"accuracy": 0.5, "loss": 1.0}) > quality({"accuracy": 0.5, "loss": 2.0})
    with pytest.raises(InvalidValueError, match="measure"):
        quality({"recall": 1.0})


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("random", {"candidates": 0}, "RandomSelection.candidates"),
        ("random", {"batches": 0}, "RandomSelection.batches"),
        ("evolution", {"population": 0}, "EvolutionSelection.population"),
        ("evolution", {"population": 101}, "EvolutionSelection.population"),
        ("evolution", {"sample_size": 0}, "EvolutionSelection.sample_size"),
    ],
)
def test_setting_out_of_range_is_refused(name: str, settings: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        SELECTIONS.get(name)(**settings)
    assert caught.value.field == field
