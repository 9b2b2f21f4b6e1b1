"""Selection by short training: against trainings written out, and as a part of a search."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_selections import assert_killed_selection_repeats
from tiny_searches import cells, module_search, net, rows, steps, unstarted, unstarted_cells
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sgenas
from sgenas import SGE, Budget, tree
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.optim import SGD
from sgenas.random import generator
from sgenas.searching.callbacks.evaluation import validation
from sgenas.searching.loop import Search
from sgenas.searching.results import write_results
from sgenas.searching.selection import TrainingSelection, training
from sgenas.searching.selection.training import improves, neighbors
from sgenas.spaces import DartsSettings, EdgeNormalizedSoftmax, MacroSettings, ThresholdEdges, TopEdges
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.nasbench201_space.space import NasBench201Settings

SMALL = NasBench201Settings(channels=2, layers=1)
NO_SCHEDULE = SGD(lr=0.1, momentum=0.9, weight_decay=0.01)


def spread(run: Search) -> Search:
    """The search with alphas of different leads."""
    draw = torch.Generator().manual_seed(3)
    for table in run.alphas.values():
        table += 0.5 * torch.randn(table.shape, generator=draw)
    return run


class Explode(nn.Module):
    """Numbers whose gradients are too large for a step."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e30 * x


def select(run: Search, selection: TrainingSelection) -> Any:
    run.candidates.clear()
    return selection.select(run, *validation(run))


def edges(genotype: Genotype) -> set[tuple[str, int, int, str]]:
    return {(name, edge.source, edge.target, edge.operation) for name, cell in genotype.cells for edge in cell.edges}


# -- candidates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SMALL, MacroSettings(channels=2), DartsSettings(channels=2, layers=3)])
def test_neighbors_differ_in_one_place_and_come_by_lead(settings: Any) -> None:
    run = spread(unstarted_cells(space=settings))
    own = run.space.mixing_to_derive(run.alphas)
    derived, leads = run.derive(run.alphas), []
    for alphas, change in neighbors(run):
        leads.append(change["lead"])
        table = own[change["table"]]
        labels = [str(label) for label in run.space.columns[change["table"]]]
        kept = [column for column, label in enumerate(labels) if label != "none" or settings is SMALL]
        rows = [row[kept].sort(descending=True) for row in table.view(-1, len(labels))]
        assert change["lead"] in [float(values[0] - values[1]) for values, _ in rows]
        other = run.derive(alphas)
        if isinstance(derived, Genotype):
            lost, won = edges(derived) - edges(other), edges(other) - edges(derived)
            assert {each[3] for each in lost} <= {change["instead_of"]}
            assert {each[3] for each in won} <= {change["option"]}
            assert len(lost) <= 1
            assert len(won) <= 1
            assert {f"{each[1]}->{each[2]}" for each in lost | won} <= {change["edge"]}
        else:
            (name,) = [name for name in derived if derived[name] != other[name]]
            assert (str(derived[name]), str(other[name])) == (change["instead_of"], change["option"])
    assert leads == sorted(leads)
    assert len(leads) == sum(table[..., 0].numel() for table in own.values())


def test_closest_neighbor_of_known_alphas() -> None:
    run = unstarted_cells(space=SMALL)
    run.alphas["cell"].zero_()
    run.alphas["cell"][:, 3] = 2.0  # 3x3 everywhere
    run.alphas["cell"][3, 1] = 1.9  # but on 0->3 hardly more than the skip connection
    run.alphas["cell"][1, 0] = 1.5
    found = neighbors(run)
    assert [change["edge"] for _, change in found[:2]] == ["0->3", "0->2"]
    assert (found[0][1]["instead_of"], found[0][1]["option"]) == ("nor_conv_3x3", "skip_connect")
    assert found[1][1]["option"] == "none"
    selection = TrainingSelection(candidates=2, steps=1)
    select(run, selection)
    (first, second) = (run.space.architecture_from_dict(row["architecture"]) for row in run.candidates)
    assert first == run.derive(run.alphas)
    assert edges(first) - edges(second) == {("cell", 0, 3, "nor_conv_3x3")}
    assert edges(second) - edges(first) == {("cell", 0, 3, "skip_connect")}


def test_weights_of_edges_do_not_move_the_runner_up() -> None:
    """PC-DARTS: a row's mixing weights have the factor of its edge, which neighbors keep."""
    space = DartsSettings(channels=8, layers=3, partial_channels=4)
    run = spread(unstarted_cells(method="pc-darts", space=space, relaxation=EdgeNormalizedSoftmax()))
    derived = {each[:3] for each in edges(run.derive(run.alphas))}
    for alphas, _ in neighbors(run):
        changed = [name for name in alphas if not torch.equal(alphas[name], run.alphas[name])]
        assert len(changed) == 1
        assert {each[:3] for each in edges(run.derive(alphas))} == derived


def test_candidates_are_different_ones_within_the_budget() -> None:
    budget = Budget(max_params=110_000)
    run = spread(unstarted_cells(space=SMALL, budget=budget))
    assert run.costs is not None
    select(run, TrainingSelection(candidates=7, steps=1))
    found = [run.space.architecture_from_dict(row["architecture"]) for row in run.candidates]
    assert all(run.costs.is_within(each) for each in found)
    assert len({str(each) for each in found}) == len(found) > 1
    assert found[0] == run.derive(run.alphas)
    # the limit excludes what the alphas alone would give
    assert found[0] != run.space.derive(run.alphas)


# -- trainings -----------------------------------------------------------------------------------------------------


def choices_net() -> nn.Module:
    """Dropout draws random numbers, which all candidates share."""
    act = sgenas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()}, name="act")
    return net(nn.Dropout(0.3), act)


@pytest.mark.parametrize(
    "start",
    [
        partial(cells(space=SMALL, weight_optimizer=NO_SCHEDULE).run, progress=False),
        partial(cells(space=DartsSettings(channels=2, layers=3), weight_optimizer=NO_SCHEDULE).run, progress=False),
        partial(module_search, choices_net(), weight_optimizer=NO_SCHEDULE),
    ],
)
def test_trainings_are_those_written_out(start: Any) -> None:
    """SGD with momentum over the next batches, at the rates of the schedule, from the same weights for each."""
    run = spread(unstarted(start))
    stream, steps = run.streams[0], 5
    before = stream.state_dict()
    batches = [next(stream) for _ in range(steps)]
    stream.load_state_dict(before)
    stream.restore_generators(before)
    kept = run.state, run.space, tree.clone(run.alphas)
    chosen = select(run, TrainingSelection(candidates=3, steps=steps, margin=0.0))
    assert run.state is kept[0]
    assert run.space is kept[1]
    assert all(torch.equal(run.alphas[name], kept[2][name]) for name in run.alphas)
    assert len(run.candidates) == 3

    found = []
    for row in run.candidates:
        architecture = run.space.architecture_from_dict(row["architecture"])
        mixing = run.space.one_hot(architecture)
        weights = run.space.initial_weights(generator(run.seed, "selection"))
        speed = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for step, batch in enumerate(batches):
            free = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
            seed = sgenas.random.Seed(sgenas.random.seed_of(run.seed, f"selection/{step}"))
            loss = run.loss(run.space.seeded(seed).bind_mixing(free, mixing), batch)
            grads = dict(zip(free, torch.autograd.grad(loss, list(free.values()), allow_unused=True), strict=True))
            rate = 0.004 + 0.096 * (1 + math.cos(math.pi * step / steps)) / 2
            for name, weight in weights.items():
                grad = grads[name] if grads[name] is not None else torch.zeros_like(weight)
                speed[name] = 0.9 * speed[name] + grad + 0.01 * weight
                weights[name] = weight - rate * speed[name]
        model = run.space.without_dropout().seeded(run.seed).bind_mixing(weights, mixing)
        given, measure = validation(run)
        sums = [measure(model, batch) for batch in given()]
        means = {
            name: float(sum(each[name] for each in sums) / sum(each["count"] for each in sums)) for name in sums[0]
        }
        assert row["loss"] == pytest.approx(means["loss"], rel=1e-4)
        assert row.get("accuracy", 0.0) == pytest.approx(means.get("accuracy", 0.0))
        found.append(((row.get("accuracy", 0.0), -row["loss"]), architecture))
    assert len({value for value, _ in found}) == 3
    (best, found_best), (derived, _) = max(found, key=lambda pair: pair[0]), found[0]
    shares = best[0] - derived[0], (best[1] - derived[1]) / -derived[1]
    enough = max(shares[0] if "accuracy" in run.candidates[0] else shares[1], 0.0)
    assert chosen == found_best
    stream.load_state_dict(before)
    stream.restore_generators(before)
    assert select(run, TrainingSelection(candidates=3, steps=steps, margin=enough + 1e-6)) == found[0][1]


def test_finds_the_option_that_alphas_rank_second() -> None:
    """In ``net()`` only ``own`` can fit; the alphas are set to the wrong one."""
    run = unstarted(module_search)
    run.alphas["whose"].copy_(torch.tensor([0.1, 0.0]))
    assert run.derive(run.alphas)["whose"] == "others"
    assert select(run, TrainingSelection(candidates=2, steps=60))["whose"] == "own"


# -- as a part of a search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [SMALL, DartsSettings(channels=2, layers=3)])
def test_predicted_passes_are_those_taken(space: Any) -> None:
    config = cells(space=space, selection=TrainingSelection(candidates=3, steps=4), derived_every=0)
    run = unstarted(partial(config.run, progress=False))
    assert run.predicted_cost() == config.run(progress=False).cost


def test_search_that_is_killed_in_the_selection_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cells(space=SMALL, selection=TrainingSelection(candidates=3, steps=4), estimator=SGE(num_directions=2))
    text = assert_killed_selection_repeats(config, training, 1, tmp_path, monkeypatch)
    assert text.count('"architecture"') == 3


@pytest.mark.parametrize("discretization", [ThresholdEdges(), TopEdges(threshold=0.5)])
def test_discretization_with_a_threshold_is_refused(discretization: Any) -> None:
    with pytest.raises(InvalidValueError) as caught:
        cells(selection=TrainingSelection(), discretization=discretization).run(progress=False)
    assert caught.value.field == "discretization"


@pytest.mark.parametrize(
    ("found", "before", "better"),
    [
        ({"accuracy": 0.54, "loss": 2.0}, {"accuracy": 0.5, "loss": 1.0}, True),
        ({"accuracy": 0.52, "loss": 1.0}, {"accuracy": 0.5, "loss": 9.0}, False),
        ({"loss": 0.96}, {"loss": 1.0}, True),
        ({"loss": 0.98}, {"loss": 1.0}, False),
        ({"loss": -1.04}, {"loss": -1.0}, True),
        ({"loss": 0.0}, {"loss": 0.0}, False),
        # as quotients: 0.53 - 0.5 is more than 0.03 in floating point
        ({"accuracy": 0.53}, {"accuracy": 0.5}, False),
    ],
)
def test_margin_is_of_accuracy_or_a_share_of_the_loss(found: Any, before: Any, better: bool) -> None:
    assert improves(found, before, 0.03) is better


def test_candidates_that_all_diverge_end_the_search() -> None:
    with pytest.raises(DivergenceError, match="every candidate"):
        select(
            unstarted(partial(module_search, weight_optimizer=SGD(lr=1e30))),
            TrainingSelection(candidates=2, steps=4),
        )


@pytest.mark.parametrize("derived", ["fine", "broken"])
def test_candidate_that_diverges_is_out_whatever_its_accuracy(derived: str, tmp_path: Path) -> None:
    """Logits that are NaN have their largest entry in class 0, which nearly all rows are of."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (torch.arange(64) % 16 == 0).long())
    option = sgenas.Choice({"fine": nn.Tanh(), "broken": Explode()}, name="option")
    model = nn.Sequential(nn.Linear(4, 4), option, nn.Linear(4, 2))
    given: dict[str, Any] = {
        "train_data": data,
        "val_data": data,
        "loss": sgenas.losses.cross_entropy,
        "weight_optimizer": SGD(lr=0.1),
    }
    run = unstarted(partial(module_search, model, **given, run_dir=tmp_path))
    run.alphas["option"].copy_(torch.tensor([0.1, 0.0]) if derived == "fine" else torch.tensor([0.0, 0.1]))
    found = select(run, TrainingSelection(candidates=2, steps=3))
    assert found["option"] == "fine"
    accuracies = {row["architecture"]["option"]: row["accuracy"] for row in run.candidates}
    assert accuracies["broken"] == 60 / 64
    assert [row["kept"] for row in run.candidates] == [derived == "fine", derived == "broken"]
    run.chosen = found
    write_results(run)
    text = (tmp_path / "selection.json").read_text()
    assert "NaN" not in text
    assert {row["loss"] is None for row in json.loads(text)["candidates"]} == {True, False}


def test_partially_connected_cells_are_trained_with_all_channels() -> None:
    """A quarter in the operations and the rest around them would be another network."""
    space = NasBench201Settings(channels=8, layers=1, partial_channels=4)
    run = spread(unstarted_cells(method="pc-darts", space=space))
    whole = spread(unstarted_cells(space=replace(space, partial_channels=1), relaxation=EdgeNormalizedSoftmax()))
    for search in (run, whole):
        select(search, TrainingSelection(candidates=3, steps=2))
    assert run.candidates == whole.candidates
    assert run.space.partial_channels == 4


class Drawn(Dataset[Any]):
    """Rows with noise from the global generator, as random transforms have it."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.full((1,), index / 32) + 0.1 * torch.randn(1)
        return x, x.abs()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", [False, True])
def test_candidates_see_the_same_batches(loader: bool, workers: int) -> None:
    data: Any = Drawn()
    if loader or workers:
        # without a generator of its own it draws from the global one
        data = DataLoader(data, 8, shuffle=True, num_workers=workers)
    run = unstarted(partial(module_search, train_data=data, val_data=rows(48, seed=1), batch_size=8))
    list(steps(run, 4))
    assert run.streams[0].at_end
    before, seen = run.streams[0].taken, []
    plain = run.loss

    def noted(model: Any, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(batch[0])
        return plain(model, batch)

    run._objectives = replace(run._objectives, loss=noted)
    run.loss = noted
    select(run, TrainingSelection(candidates=2, steps=6))
    assert before == run.streams[0].length
    assert len(seen) == 12
    assert all(torch.equal(first, second) for first, second in zip(seen[:6], seen[6:], strict=True))
    assert not torch.equal(seen[0], seen[4])


def test_row_with_a_tie_has_a_neighbor() -> None:
    run = unstarted_cells(space=SMALL)
    run.alphas["cell"].zero_()
    derived = run.derive(run.alphas)
    others = [run.derive(alphas) for alphas, _ in neighbors(run)]
    assert all(other != derived for other in others)
    assert len({str(other) for other in others}) == 6


@pytest.mark.parametrize(("field", "value"), [("candidates", 0), ("steps", 0), ("margin", -0.1), ("margin", 1.0)])
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidValueError) as caught:
        TrainingSelection(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == f"TrainingSelection.{field}"
