"""Random architectures: their distribution, budgets, and mutations."""

import itertools
import re
from collections import Counter

import pytest
import torch
from torch import nn

from sgenas import Budget, Choice, ModuleSpace
from sgenas.methods import METHODS
from sgenas.random import generator
from sgenas.searching.drawing import different_architectures, mutated, random_alphas
from sgenas.spaces import CellSpace, Genotype, darts, nasbench201
from sgenas.spaces.nasbench201_space.strings import to_string


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
    space, draw = nasbench201(channels=1, layers=1), generator(0, "test")
    alphas = random_alphas(space, draw)
    parent = alphas, space.derive(alphas)
    before, changed = space.one_hot(parent[1])["cell"], Counter[int]()
    for _ in range(200):
        child = mutated(space.derive, space, parent, draw)
        assert child is not None
        assert child[1] == space.derive(child[0])
        (edge,) = (before != space.one_hot(child[1])["cell"]).any(dim=1).nonzero().flatten().tolist()
        changed[edge] += 1
    assert len(changed) == 6


def test_mutation_draws_one_edge_weight() -> None:
    space, draw = METHODS.get("pc-darts").apply(darts(channels=8, layers=3, num_classes=2)), generator(0, "test")
    alphas = space.random_alphas(draw)
    sizes = Counter[int]()
    for _ in range(300):
        child = space.mutated_alphas(alphas, draw)
        sizes[sum(int((child[name] != alphas[name]).sum()) for name in alphas)] += 1
    # as many weights of edges as rows of operations
    assert set(sizes) == {1, 8}
    assert abs(sizes[1] - 150) < 5 * (300 / 4) ** 0.5


def test_mutation_draws_all_options_of_a_choice_whatever_its_name() -> None:
    options = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()}
    model = nn.Sequential(nn.Linear(2, 2), Choice(options, name="x"), Choice(options, name="x_edges"))
    space, draw = ModuleSpace(model), generator(0, "test")
    alphas = space.random_alphas(draw)
    for _ in range(20):
        child = space.mutated_alphas(alphas, draw)
        assert sorted(int((child[name] != alphas[name]).sum()) for name in alphas) == [0, 3]


def test_only_architecture_has_no_mutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgenas.searching.drawing.TRIES", 20)
    space = nasbench201(channels=1, layers=1, operations=("skip_connect",))
    alphas = random_alphas(space, generator(0, "test"))
    assert mutated(space.derive, space, (alphas, space.derive(alphas)), generator(0, "test")) is None


def two_operations() -> tuple[CellSpace, list[Genotype]]:
    """A space of 64 cells, and these."""
    space = nasbench201(channels=1, layers=1, operations=("none", "nor_conv_3x3"))
    rows = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0, 1), repeat=6)]
    return space, [space.derive({"cell": torch.stack([1 - row, row], dim=1)}) for row in rows]


def test_draws_within_a_budget_are_uniform_among_those_that_meet_it() -> None:
    space, everything = two_operations()
    draw, costs = generator(0, "test"), space.cost_model(Budget(max_params=400_000), (3, 32, 32))
    drawn = Counter(to_string(space.derive(random_alphas(space, draw, costs))) for _ in range(600))
    meeting = {to_string(cell) for cell in everything if costs.is_within(cell)}
    assert 1 < len(meeting) < 64
    assert set(drawn) == meeting
    expected = 600 / len(meeting)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())


def test_draw_meets_a_budget_that_one_architecture_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgenas.searching.drawing.TRIES", 3)
    space = nasbench201(channels=1, layers=1)
    least = space.cost_model(Budget(max_params=10**9), (3, 32, 32)).tables["params"].fixed[(1,)]
    costs = space.cost_model(Budget(max_params=int(least)), (3, 32, 32))
    found = costs.derive(random_alphas(space, generator(0, "test"), costs))
    assert "conv" not in to_string(found)


def test_different_architectures_are_the_draws_without_repetitions() -> None:
    space, everything = two_operations()
    draw, expected = generator(0, "test"), []
    while len(expected) < 64:
        found = space.derive(space.random_alphas(draw))
        expected += [] if found in expected else [found]
    found = list(different_architectures(space, generator(0, "test")))
    assert found == expected
    assert set(found) == set(everything)


def test_different_architectures_within_a_budget_are_all_that_meet_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that few draws meet."""
    monkeypatch.setattr("sgenas.searching.drawing.TRIES", 100)
    space, everything = two_operations()
    for limit in (10**5, 4 * 10**5, 10**9):
        costs = space.cost_model(Budget(max_params=limit), (3, 32, 32))
        found = list(different_architectures(space, generator(0, "test"), costs))
        assert len(found) == len(set(found))
        assert set(found) == {cell for cell in everything if costs.is_within(cell)}
