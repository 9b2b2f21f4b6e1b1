"""Random search and evolution on a trained supernet, against their definitions written out."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_searches import module_search, net, rows, squared_error, unstarted
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sgenas
from sgenas import Budget
from sgenas.errors import InvalidValueError
from sgenas.random import generator
from sgenas.searching.callbacks.evaluation import Evaluation, validation
from sgenas.searching.drawing import mutated, random_alphas
from sgenas.searching.selection import SELECTIONS, EvolutionSelection, RandomSelection
from sgenas.searching.selection.base import measured, quality
from sgenas.spaces import AccuracyTable, Genotype, nasbench201
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

    def measure(self, architecture: Genotype) -> tuple[float, float]:
        cell = to_string(architecture)
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


# -- evolution -------------------------------------------------------------------------------------------------


def test_evolution_is_algorithm_1_of_its_source() -> None:
    """Written out with lists: tournament of S with replacement, mutate its best, drop the oldest."""
    search = Fake(nasbench201(channels=1, layers=1))
    space, pool = search.space, FakePool(search, convolutions)
    EvolutionSelection(candidates=60, population=7, sample_size=3).fill(pool, generator(5, "test"))  # type: ignore[arg-type]

    draw, population, history = generator(5, "test"), [], []
    for alphas in [random_alphas(space, draw) for _ in range(7)]:
        history.append(to_string(space.derive(alphas)))
        population.append((convolutions(history[-1]), alphas))
    while len(set(history)) < 60:
        sample = [population[int(place)] for place in torch.randint(7, (3,), generator=draw)]
        parent = sample[0]
        for member in sample[1:]:
            parent = member if member[0] > parent[0] else parent
        child = mutated(space.derive, space, (parent[1], space.derive(parent[1])), draw)
        assert child is not None
        history.append(to_string(child[1]))
        population = [*population[1:], (convolutions(history[-1]), child[0])]
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


def few_within() -> tuple[Fake, set[str]]:
    """A search whose budget 7 of 64 cells meet, and these."""
    space = nasbench201(channels=1, layers=1, operations=("none", "nor_conv_3x3"))
    probe = space.cost_model(Budget(max_params=10**9), (3, 32, 32))
    rows = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0, 1), repeat=6)]
    everything = [space.derive({"cell": torch.stack([1 - row, row], dim=1)}) for row in rows]
    limit = sorted(probe.of(cell)["params"] for cell in everything)[6]
    costs = space.cost_model(Budget(max_params=int(limit)), (3, 32, 32))
    return Fake(space, costs), {to_string(cell) for cell in everything if costs.is_within(cell)}


@pytest.mark.parametrize("selection", [RandomSelection(candidates=20), EvolutionSelection(candidates=20)])
def test_all_architectures_of_a_small_budget_are_measured(selection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("drawing", "selection.sampled"):
        monkeypatch.setattr(f"sgenas.searching.{module}.TRIES", 40)
    search, meeting = few_within()
    pool = FakePool(search, convolutions)
    selection.fill(pool, generator(0, "test"))
    assert set(pool.seen) == meeting
    assert len(meeting) == 7


@pytest.mark.parametrize("selection", [RandomSelection(), EvolutionSelection()])
def test_budget_that_one_architecture_meets_takes_a_bounded_number_of_draws(
    selection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("drawing", "selection.sampled"):
        monkeypatch.setattr(f"sgenas.searching.{module}.TRIES", 50)
    space = nasbench201(channels=1, layers=1, operations=("none", "nor_conv_1x1", "nor_conv_3x3"))
    least = space.cost_model(Budget(max_params=10**9), (3, 32, 32)).tables["params"].fixed[(1,)]
    costs = space.cost_model(Budget(max_params=int(least)), (3, 32, 32))
    derived, derive = 0, space.derive

    def counted(alphas: TensorDict) -> Any:
        nonlocal derived
        derived += 1
        return derive(alphas)

    monkeypatch.setattr(space, "derive", counted)
    pool = FakePool(Fake(space, costs), convolutions)
    selection.fill(pool, generator(0, "test"))
    assert list(pool.seen) == ["|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"]
    assert derived < 2000


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


class Seen(TensorDataset):
    """Notes the rows that are read."""

    def __init__(self) -> None:
        super().__init__(torch.randn(20, 1), torch.zeros(20, dtype=torch.long))
        self.rows: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.rows.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
@pytest.mark.parametrize("as_evaluation", [False, True], ids=["val_data", "Evaluation"])
def test_candidates_are_measured_on_the_same_batches(own: bool, as_evaluation: bool) -> None:
    """Also those of a loader that shuffles and drops rows at each pass."""
    taken, plain = [], Seen()
    draw = torch.Generator().manual_seed(7) if own else None
    for _ in range(2):
        seen = Seen()
        loader = DataLoader(seen, 8, shuffle=True, drop_last=True, generator=draw)
        callbacks = [Evaluation(loader, every=99, derived_every=0)] if as_evaluation else []
        val = plain if as_evaluation else loader
        run = unstarted(lambda val=val, callbacks=callbacks: module_search(
            choices_net(), train_data=plain, val_data=val, loss=sgenas.losses.cross_entropy, callbacks=callbacks,
        ))  # fmt: skip
        seen.rows.clear()
        batches, measure = validation(run)
        before = torch.random.get_rng_state()
        for _ in range(3):
            measured(run, batches, measure, None)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert seen.rows[:16] == seen.rows[16:32] == seen.rows[32:]
        taken.append(seen.rows)
    assert taken[0] == taken[1]
