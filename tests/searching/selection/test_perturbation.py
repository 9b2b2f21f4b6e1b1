"""Perturbation-based selection: against exhaustive evaluations written out, and as a part of a search."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from killed_selections import assert_killed_selection_repeats
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import cells, module_search, steps, unstarted, unstarted_cells
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas import SGE, tree
from sgenas.bilevel import BilevelProblem, FirstOrder
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.losses import classification_sums
from sgenas.optim import SGD
from sgenas.random import generator
from sgenas.searching.callbacks.evaluation import validation
from sgenas.searching.loop import Search
from sgenas.searching.selection import PerturbationSelection, perturbation
from sgenas.searching.selection.base import measured, quality
from sgenas.searching.selection.perturbation import groups_of, node_groups_of
from sgenas.spaces import DartsSettings, MacroSettings, ThresholdEdges, TopEdges
from sgenas.spaces.costs import Budget
from sgenas.spaces.nasbench201_space.space import NasBench201Settings

OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
TWO_NODES = DartsSettings(channels=2, layers=3, nodes=2, operations=OPERATIONS)


def choices_net() -> nn.Module:
    torch.manual_seed(0)
    wide = {"tanh": nn.Tanh(), "none": nn.Identity(), "layer": nn.Sequential(nn.Linear(6, 6), nn.ReLU())}
    first, second = sgenas.Choice(wide, name="first"), sgenas.Choice(dict(reversed(wide.items())), name="second")
    return nn.Sequential(nn.Linear(4, 6), first, nn.Linear(6, 6), second, nn.Linear(6, 3))


def points(count: int, seed: int) -> TensorDataset:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long())


def choices_search(**settings: Any) -> Any:
    data: dict[str, Any] = {"train_data": points(64, 0), "val_data": points(48, 1)}
    return module_search(choices_net(), **data, loss=sgenas.losses.cross_entropy, **settings)


def trained(start: Callable[[], object]) -> Search:
    """A search that has taken all its steps, as it is when the selection runs, with spread alphas."""
    run = unstarted(start)
    list(steps(run, run.epochs * (run.steps_per_epoch or 0)))
    run.epoch -= 1
    draw = torch.Generator().manual_seed(3)
    for table in run.alphas.values():
        table += 0.5 * torch.randn(table.shape, generator=draw)
    return run


def trained_cells(**changes: Any) -> Search:
    """All images of an epoch, and of an evaluation, in one batch."""
    return trained(partial(cells(data={"batch_size": 24}, **changes).run, progress=False))


def softmaxed(run: Search, decided: dict[tuple[str, int], list[float]]) -> dict[str, Tensor]:
    """Mixing weights {table: (rows, O)}, with the decided rows."""
    found = {name: table.softmax(-1).reshape(-1, table.shape[-1]) for name, table in run.alphas.items()}
    for (name, row), values in decided.items():
        found[name][row] = torch.tensor(values)
    return found


def accuracy(run: Search, rows: dict[str, Tensor]) -> tuple[float, float]:
    """(accuracy, -loss) on all validation batches, in one sum after the other."""
    mixing = {name: table.reshape(run.alphas[name].shape) for name, table in rows.items()}
    network, right, loss, count = run.space.bind_mixing(run.state.weights, mixing), 0, 0.0, 0
    batches, _ = validation(run)
    for images, labels in batches():
        logits = network(images)
        right += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    return right / count, -loss / count


def one_hot(size: int, column: int) -> list[float]:
    return [float(index == column) for index in range(size)]


def exhaustive(
    run: Search,
    allowed: Callable[[dict[tuple[str, int], list[float]]], bool] = lambda decided: True,
    between: Callable[[dict[tuple[str, int], list[float]]], None] = lambda decided: None,
) -> tuple[dict[tuple[str, int], list[float]], list[tuple[float, float]]]:
    """Algorithm 1 written out: the decided rows, and what was measured in turn.

    Args:
        run: The search.
        allowed: Whether decisions can be completed to an architecture.
        between: What happens between two rounds.
    """
    draw, space = generator(run.seed, "selection"), run.space
    keeps_none = space.discretization.rule.keeps_none
    measured, decided = [], {}

    def shuffled(groups: list[list[Any]]) -> list[list[Any]]:
        return [[items[place] for place in torch.randperm(len(items), generator=draw).tolist()] for items in groups]

    operations, nodes = shuffled(groups_of(space)), shuffled(node_groups_of(space))
    for number in range(max(map(len, operations))):
        if number:
            between(decided)
        for group in operations:
            if number >= len(group):
                continue
            name, row = group[number]
            names, found = space.columns[name], {}
            for column, label in enumerate(names):
                if label == "none" and not keeps_none:
                    continue
                rows = softmaxed(run, decided)
                rows[name][row, column] = 0.0
                found[column] = accuracy(run, rows)
                measured.append(found[column])
            fits = [column for column in found if allowed(decided | {(name, row): one_hot(len(names), column)})]
            decided[name, row] = one_hot(len(names), min(fits, key=lambda column: found[column]))
    for number in range(max(map(len, nodes), default=0)):
        between(decided)
        for group in nodes:
            name, edges = group[number]
            found = {}
            for edge in edges:
                rows = softmaxed(run, decided)
                rows[name][edge] = 0.0
                found[edge] = accuracy(run, rows)
                measured.append(found[edge])
            kept = sorted(edges, key=lambda edge: found[edge])[: space.discretization.rule.edges_per_node]
            for edge in edges:
                if edge not in kept:
                    decided[name, edge] = [0.0] * len(space.columns[name])
    return decided, measured


def as_rows(run: Search, architecture: Any) -> dict[tuple[str, int], list[float]]:
    tables = {name: table.reshape(-1, table.shape[-1]) for name, table in run.space.one_hot(architecture).items()}
    return {(name, row): values.tolist() for name, table in tables.items() for row, values in enumerate(table)}


def select(run: Search, epochs: int = 0) -> Any:
    return PerturbationSelection(finetune_epochs=epochs).select(run, *validation(run))


RUNS: dict[str, Callable[[], Search]] = {
    "darts": lambda: trained_cells(space=TWO_NODES),
    "nasbench201": lambda: trained_cells(space=NasBench201Settings(channels=2, layers=1)),
    "nasbench-macro": lambda: trained_cells(space=MacroSettings(channels=4)),
    "module": lambda: trained(choices_search),
}


@pytest.mark.parametrize("name", RUNS)
def test_chosen_operations_and_edges_are_those_of_an_exhaustive_evaluation(name: str) -> None:
    run = RUNS[name]()
    decided, expected = exhaustive(run)
    found = as_rows(run, select(run))
    if name == "nasbench201":
        # an edge without an operation has none
        found = {place: row if any(row) else one_hot(5, 0) for place, row in found.items()}
    assert found == decided
    rows = [quality({"accuracy": row["accuracy"], "loss": row["loss"]}) for row in run.candidates]
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    kept = sum(row["kept"] for row in run.candidates)
    nodes = sum(len(group) for group in node_groups_of(run.space))
    assert kept == sum(len(group) for group in groups_of(run.space)) + 2 * nodes


def test_darts_nodes_keep_two_edges_each_and_no_none() -> None:
    run = RUNS["darts"]()
    genotype = select(run)
    for _, cell in genotype.cells:
        targets = [edge.target for edge in cell.edges]
        assert [targets.count(node) for node in (2, 3)] == [2, 2]
        assert all(edge.operation != "none" for edge in cell.edges)
    # 5 edges of 3 operations, and a node with 3 edges
    assert len(run.candidates) == 2 * (5 * 3 + 3)


@pytest.mark.slow
def test_order_is_random_and_that_of_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        run = trained_cells(space=TWO_NODES, seed=seed)
        select(run)
        orders.append([(row["table"], row["edge"]) for row in run.candidates])
    assert orders[0] == orders[1] != orders[2]
    # one edge of each cell in turn
    assert [table for table, _ in orders[0][:12:3]] == ["normal", "reduce", "normal", "reduce"]


def test_fine_tuning_is_the_alternation_with_fixed_decisions() -> None:
    """Two choices, one decision, an epoch of first-order steps at a tenth of the rate, the other decision."""
    start = partial(choices_search, weight_optimizer=SGD(0.2, momentum=0.9), arch_optimizer=SGD(1.0))
    run, other = trained(start), trained(start)
    architecture = select(run, epochs=1)

    def epoch(decided: dict[tuple[str, int], list[float]]) -> None:
        (((done, _), values),) = decided.items()
        fixed, optimizer = torch.tensor(values), SGD(0.02, momentum=0.9)

        def loss(weights: Any, alphas: Any, batch: Any) -> Tensor:
            mixing = {name: fixed if name == done else alpha.softmax(-1) for name, alpha in alphas.items()}
            return F.cross_entropy(other.space.bind_mixing(weights, mixing)(batch[0]), batch[1])

        problem, state = BilevelProblem(loss, loss, optimizer), optimizer.init(other.state.weights)
        for _ in range(4):
            result = FirstOrder()(problem, state, other.alphas, [next(other._train)], next(other._val))
            assert not result.grad[done].any()
            state = result.state
            for name, alpha in other.alphas.items():
                alpha -= result.grad[name]
        other.state = state

    decided, expected = exhaustive(other, between=epoch)
    assert as_rows(run, architecture) == decided
    losses = torch.tensor([row["loss"] for row in run.candidates])
    torch.testing.assert_close(losses, torch.tensor([-loss for _, loss in expected]), rtol=1e-4, atol=1e-5)
    assert float(losses[:3].max()) != float(losses[3:].max())


def test_search_is_as_before_after_the_fine_tuning() -> None:
    run = trained_cells(estimator=SGE(num_directions=2), alpha_noise=0.3)
    kept, space, step, rate = tree.clone(run.snapshot()["weights"]), run.space, run.step, run.learning_rate()
    before = run.snapshot()
    select(run, epochs=1)
    after = run.snapshot()
    assert (run.space, run.step, run.learning_rate()) == (space, step, rate)
    assert all(torch.equal(tensor, after["weights"][name]) for name, tensor in kept.items())
    for name, alpha in before["alphas"].items():
        assert torch.equal(alpha, after["alphas"][name])
    assert after["inner_step"] == before["inner_step"]
    moments = [part["arch_optimizer"]["slots"]["square"] for part in (before, after)]
    assert all(torch.equal(tensor, moments[1][name]) for name, tensor in moments[0].items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inner_steps": 2, "alpha_every": 2},
        pytest.param({"estimator": SGE(num_directions=2)}, marks=pytest.mark.slow),
    ],
    ids=["first order", "every second step", "sge"],
)
def test_predicted_passes_are_those_of_the_search(changes: dict[str, Any]) -> None:
    config = cells(selection=PerturbationSelection(finetune_epochs=1), **changes)
    result = config.run(progress=False)
    assert result.cost == unstarted(partial(config.run, progress=False)).predicted_cost()


@pytest.mark.parametrize(("epochs", "expected"), [(2, 1), (50, 5), (20, 2)])
def test_fine_tuning_takes_a_tenth_of_the_epochs(epochs: int, expected: int) -> None:
    run = unstarted_cells(epochs=epochs)
    assert PerturbationSelection().epochs(run) == expected
    assert PerturbationSelection(finetune_epochs=0).epochs(run) == 0


def within(run: Search, space: Any, decided: dict[tuple[str, int], list[float]]) -> bool:
    """Whether some architecture with these decisions meets the budget: tries all of them."""
    costs, places = run.costs, [(name, row) for group in groups_of(space) for name, row in group]
    assert costs is not None
    sizes = {place: len(space.columns[place[0]]) for place in places}
    columns = [
        [column for column in range(sizes[place]) if place not in decided or decided[place][column]] for place in places
    ]
    for picked in itertools.product(*columns):
        tables = {name: torch.zeros(shape) for name, shape in space.shapes.items()}
        for (name, row), column in zip(places, picked, strict=True):
            tables[name].view(-1, tables[name].shape[-1])[row, column] = 1.0
        if costs.is_within(space.derive({name: 50 * table for name, table in tables.items()})):
            return True
    return False


def test_choices_stay_within_the_budget_and_are_the_best_that_do() -> None:
    free = trained(choices_search)
    unlimited = as_rows(free, select(free))
    space = sgenas.ModuleSpace(choices_net())
    sizes = {
        name: sum(p.numel() for p in space.build({"first": name[0], "second": name[1]}).parameters())
        for name in itertools.product(("tanh", "layer"), ("tanh", "layer"))
    }
    limit = sizes["tanh", "layer"]  # one of the two layers
    run = trained(partial(choices_search, budget=Budget(max_params=limit)))
    # the layers are worth most
    for choice, first in (("first", 2), ("second", 0)):
        run.alphas[choice][first] += 4.0
    decided, _ = exhaustive(run, allowed=partial(within, run, run.space))
    architecture = select(run)
    assert as_rows(run, architecture) == decided
    assert run.costs is not None
    assert run.costs.is_within(architecture)
    assert len(unlimited) == 2


def test_cells_stay_within_the_budget_and_are_the_best_that_do() -> None:
    """81 pairs of cells."""
    space = DartsSettings(channels=2, layers=3, nodes=1, operations=("max_pool_3x3", "dil_conv_3x3", "sep_conv_3x3"))
    model = unstarted_cells(space=space, budget=Budget(max_params=10**9, channels=4, layers=3)).costs
    assert model is not None
    probe = unstarted_cells(space=space).space
    sizes = []
    for picked in itertools.product(range(3), repeat=4):
        columns = torch.tensor(picked).view(2, 2)
        alphas = {kind: 50.0 * F.one_hot(columns[row], 3).double() for row, kind in enumerate(("normal", "reduce"))}
        sizes.append(model.of(probe.derive(alphas))["params"])
    limit = int(sorted(sizes)[20])
    run = trained_cells(space=space, budget=Budget(max_params=limit, channels=4, layers=3))
    decided, _ = exhaustive(run, allowed=partial(within, run, run.space))
    architecture = select(run)
    assert as_rows(run, architecture) == decided
    assert run.costs is not None
    assert run.costs.is_within(architecture)
    free = trained_cells(space=space)
    assert as_rows(free, select(free)) != decided, "the limit matters here"


def test_none_counts_in_the_budget_of_a_benchmark_cell() -> None:
    """The budget allows no convolution."""
    space = NasBench201Settings(channels=2, layers=1, operations=("none", "nor_conv_3x3"))
    free = trained_cells(space=space)
    assert sum(row[1] for row in as_rows(free, select(free)).values()) > 0, "the limit matters here"
    costs = free.space.cost_model(Budget(max_params=10**9), (1, 8, 8))
    run = trained_cells(space=space, budget=Budget(max_params=int(costs.tables["params"].fixed[(1,)])))
    assert not any(any(row) for row in as_rows(run, select(run)).values())


@pytest.mark.parametrize(
    "method", ["drnas", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pc-darts", "gdas", "beta-darts"))]
)
def test_every_method_can_be_selected_from(method: str) -> None:
    operations = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
    space = DartsSettings(channels=8, layers=3, nodes=2, operations=operations)
    selection = PerturbationSelection(finetune_epochs=1)
    config = cells(method=method, space=space, selection=selection, epochs=1, data={"batch_size": 24})
    result = config.run(progress=False)
    assert all(len(cell.edges) == 4 for _, cell in result.genotype.cells)


def test_removed_operation_leaves_the_channels_around_the_operations_alone() -> None:
    """In partially connected cells these have the weight of the edge; without ``none`` nothing changes."""
    space = NasBench201Settings(channels=4, layers=1, operations=("none", "skip_connect", "nor_conv_3x3"))
    run = trained_cells(method="pc-darts", space=space, selection=PerturbationSelection(finetune_epochs=0))
    plain = run.space.mixing(run.alphas)["cell"]
    batches, measure = validation(run)
    whole = measured(run, batches, measure, None)
    seen: list[Tensor] = []
    supernet = run.supernet

    def noting(mixing: Any = None) -> Any:
        seen.append(mixing["cell"])
        return supernet(mixing)

    run.supernet = noting  # type: ignore[method-assign]
    projection = perturbation._Projection(run, batches, measure, 0)
    for column, name in enumerate(run.space.operations):
        row = projection._without(("cell", 2), column, name)
        torch.testing.assert_close(seen[-1].sum(-1), plain.sum(-1))
        expected = plain.clone()
        if column:
            expected[2, 0], expected[2, column] = plain[2, 0] + plain[2, column], 0.0
        torch.testing.assert_close(seen[-1], expected)
        assert (row["loss"] == pytest.approx(whole["loss"])) == (name == "none")


def test_partially_connected_cells_without_none_are_refused() -> None:
    space = DartsSettings(channels=8, layers=3, nodes=2, operations="paper")
    with pytest.raises(InvalidValueError) as caught:
        cells(method="pc-darts", space=space, selection=PerturbationSelection()).run(progress=False)
    assert caught.value.field == "operations"


def test_cell_of_fair_darts_stays_one_of_its_space() -> None:
    result = cells(method="fair-darts", discretization=TopEdges(), selection=PerturbationSelection(1)).run(
        progress=False
    )
    assert result.genotype.space == "fair-darts"


def test_search_that_is_killed_in_the_selection_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cells(
        selection=PerturbationSelection(finetune_epochs=1), estimator=SGE(num_directions=2), data={"batch_size": 24}
    )
    assert_killed_selection_repeats(config, perturbation, 7, tmp_path, monkeypatch)


def test_stopped_search_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"selection": "perturbation", "estimator": SGE(num_directions=2)}
    whole = choices_search(run_dir=tmp_path / "whole", **settings)
    choices_search(run_dir=tmp_path / "run", stop=stop_after(3), **settings)
    result = choices_search(run_dir=tmp_path / "run", **settings)
    assert (result.choices, result.cost) == (whole.choices, whole.cost)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_divergence_in_the_fine_tuning_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(choices_search)

    def diverge() -> None:
        raise DivergenceError("inner_loss is nan")

    monkeypatch.setattr(run, "take_step", diverge)
    with pytest.raises(DivergenceError, match="fine-tuning"):
        select(run, epochs=1)


@pytest.mark.parametrize("discretization", [ThresholdEdges(), TopEdges(threshold=0.5)])
def test_discretization_with_several_operations_or_a_threshold_is_refused(discretization: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        cells(selection=PerturbationSelection(), discretization=discretization).run(progress=False)
    assert caught.value.field == "discretization"


def test_negative_fine_tuning_is_refused() -> None:
    with pytest.raises(InvalidValueError) as caught:
        PerturbationSelection(finetune_epochs=-1)
    assert caught.value.field == "PerturbationSelection.finetune_epochs"


def test_measured_by_classification_without_an_evaluation() -> None:
    assert validation(trained(choices_search))[1] is classification_sums
