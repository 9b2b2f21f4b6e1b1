"""Search strategies: what trains, what chooses, what is refused, and that a kill changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_runs import assert_same_runs, without_measures
from stopping import stop_after
from tiny_searches import cells, module_search, net, rows, steps, unstarted_cells
from torch import nn

import sgenas
from sgenas import SGE, Budget, Callback
from sgenas.bilevel import Cost, Unrolled
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD, Adam
from sgenas.report import draw_curves, read_run
from sgenas.searching.callbacks import EarlyStopping, Evaluation
from sgenas.searching.plan import plan_search
from sgenas.searching.selection import EvolutionSelection, RandomSelection
from sgenas.spaces import BetaDecay, DartsSettings, GumbelSoftmax, NasBench201Settings, ZeroOne
from sgenas.spaces.macro_space.space import MacroSettings
from sgenas.spaces.relaxations import SinglePath

SELECTIONS = {
    "random": RandomSelection(candidates=4, batches=2),
    "evolution": EvolutionSelection(candidates=5, population=3, sample_size=2),
}
SPACES = {
    "darts": DartsSettings(channels=2, layers=3, nodes=2, operations=("none", "skip_connect", "dil_conv_3x3")),
    "nasbench201": NasBench201Settings(channels=2, layers=1),
    "nasbench-macro": MacroSettings(channels=4),
}


def strategy(name: str, **changes: Any) -> Any:
    return cells(strategy=name, selection=SELECTIONS[name], **changes)


def choices_net() -> nn.Module:
    torch.manual_seed(0)
    return net(sgenas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()}, name="act"))


# -- what trains -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_each_step_trains_one_architecture_of_the_space(space: str) -> None:
    """Weights that no gradient reaches stay where they are without momentum and decay."""
    run = unstarted_cells(strategy="random", space=SPACES[space], weight_optimizer=SGD(lr=0.1))
    assert isinstance(run.space.relaxation, SinglePath)
    before = {name: tensor.clone() for name, tensor in run.state.weights.items()}
    generator = torch.Generator()
    generator.set_state(run._noise.get_state())
    path = run.space.draw_noise(run.alphas, generator)
    assert path is not None
    drawn = run.space.random_alphas
    generator.set_state(run._noise.get_state())
    expected = run.space.one_hot(run.space.derive(drawn(generator)))
    for name, table in path.items():
        assert torch.equal(table, expected[name])
        assert set(table.unique().tolist()) <= {0.0, 1.0}
    (values,) = list(steps(run, 1))
    assert not {"outer_loss", "direct_norm"} & set(values)
    moved = {name for name, tensor in run.state.weights.items() if not torch.equal(tensor, before[name])}
    # by definition: the gradient of the loss of the supernet with the one-hot mixing weights
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in before.items()}
    again = unstarted_cells(strategy="random", space=SPACES[space], weight_optimizer=SGD(lr=0.1))
    images, labels = next(again._train)
    loss = torch.nn.functional.cross_entropy(run.space.bind_mixing(leaves, expected)(images), labels)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    reached = {name for name, grad in zip(leaves, grads, strict=True) if grad is not None and bool(grad.any())}
    assert moved == reached
    assert len(moved) < len(before)


def test_paths_differ_from_step_to_step_and_alphas_stay() -> None:
    run = unstarted_cells(strategy="evolution", space=SPACES["nasbench201"], epochs=2)
    before = {name: table.clone() for name, table in run.alphas.items()}
    seen = set()
    for _ in range(5):
        path = run.space.draw_noise(run.alphas, run._noise)
        assert path is not None
        seen.add(tuple(path["cell"].argmax(dim=1).tolist()))
    assert len(seen) == 5
    list(steps(run, 4))
    assert all(torch.equal(run.alphas[name], table) for name, table in before.items())


@pytest.mark.parametrize(
    ("space", "name"), [("darts", "random"), ("nasbench201", "evolution"), ("nasbench-macro", "random")]
)
def test_search_ends_with_the_best_candidate_in_its_directory(space: str, name: str, tmp_path: Path) -> None:
    config = strategy(name, space=SPACES[space], epochs=1)
    result = config.run(tmp_path / "run", progress=False)
    written = json.loads((tmp_path / "run" / "selection.json").read_text())
    best = max(written["candidates"], key=lambda row: (row["accuracy"], -row["loss"]))
    assert result.space.architecture_to_dict(result.genotype) == written["chosen"] == best["architecture"]
    assert sgenas.Genotype.load(tmp_path / "run" / "genotype.json") == result.genotype
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["architecture"] == written["chosen"]
    assert len(written["candidates"]) == SELECTIONS[name].candidates
    assert last["forward"] == result.cost.forward
    if space == "nasbench201":
        page = sgenas.report.write_report(tmp_path / "run").read_text()
        assert "Selected by 5 measurements" in page
        assert "Evolution search on digits" in page
        titles = [axes.get_title(loc="left") for axes in draw_curves(read_run(tmp_path / "run")).axes]
        assert "Candidates, best so far" in titles
        assert not [title for title in titles if title.startswith("cell")], "nothing has trained the alphas"


def test_module_is_searched_by_every_strategy() -> None:
    for name in ("random", "evolution"):
        found = module_search(choices_net(), strategy=name, epochs=4, selection=None)
        assert found.choices["whose"] == "own", "the option that the data need"
        assert found.cost.inner_steps == 16


def test_selection_after_gradients_changes_the_architecture_alone() -> None:
    plain = cells(estimator=SGE(num_directions=2)).run(progress=False)
    other = cells(estimator=SGE(num_directions=2), selection=SELECTIONS["random"]).run(progress=False)
    for name, tensor in plain.weights.items():
        assert torch.equal(tensor, other.weights[name])
    for name, tensor in plain.alphas.items():
        assert torch.equal(tensor, other.alphas[name])


def test_every_candidate_meets_the_budget(tmp_path: Path) -> None:
    space = SPACES["nasbench201"]
    for name in SELECTIONS:
        config = strategy(name, space=space, budget=Budget(max_params=300_000), epochs=1)
        result = config.run(tmp_path / name, progress=False)
        costs = result.space.cost_model(config.budget, (1, 8, 8))
        written = json.loads((tmp_path / name / "selection.json").read_text())
        for row in written["candidates"]:
            assert costs.is_within(result.space.architecture_from_dict(row["architecture"]))
        assert result.history[-1]["derived_params"] <= 300_000


def test_budget_that_no_network_meets_is_refused_before_the_search() -> None:
    with pytest.raises(InvalidValueError) as caught:
        strategy("random", space=SPACES["nasbench201"], budget=Budget(max_params=10)).run(progress=False)
    assert caught.value.field == "Budget.max_params"


def test_measurement_of_the_caller_decides() -> None:
    def negated(model: Callable[..., Any], batch: Any) -> dict[str, torch.Tensor]:
        loss = (model(batch[0]) - batch[1]).square().sum()
        return {"loss": -loss, "count": torch.tensor(float(len(batch[0])))}

    settings = {"strategy": "random", "epochs": 4}
    worst = module_search(choices_net(), callbacks=[Evaluation([rows(48, 1)[:]], negated)], **settings)
    assert worst.choices["whose"] == "others"


# -- kills -----------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class KillAt(Callback):
    def __init__(self, candidate: int) -> None:
        self._candidate = candidate

    def on_candidate(self, run: Any) -> None:
        if len(run.candidates) == self._candidate:
            raise Killed


@pytest.mark.parametrize("name", ["evolution", pytest.param("random", marks=pytest.mark.slow)])
def test_kill_inside_the_selection_changes_nothing(name: str, tmp_path: Path) -> None:
    config = strategy(name, space=SPACES["nasbench201"])
    config.run(tmp_path / "whole", progress=False, callbacks=[KillAt(0)])
    assert not config.run(tmp_path / "run", stop=stop_after(2), progress=False, callbacks=[KillAt(0)]).finished
    for candidate in (1, 3):
        with pytest.raises(Killed):
            config.run(tmp_path / "run", progress=False, callbacks=[KillAt(candidate)])
        assert not (tmp_path / "run" / "selection.json").exists()
    result = config.run(tmp_path / "run", progress=False, callbacks=[KillAt(0)])
    assert_same_runs(tmp_path / "whole", tmp_path / "run")
    assert (tmp_path / "whole" / "selection.json").read_text() == (tmp_path / "run" / "selection.json").read_text()
    again = config.run(tmp_path / "run", progress=False, callbacks=[KillAt(1)])
    assert again.finished, "a finished search selects nothing again"
    assert (again.genotype, again.cost) == (result.genotype, result.cost)


@pytest.mark.parametrize("name", SELECTIONS)
def test_killed_search_in_a_module_resumes_exactly(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"strategy": name, "selection": SELECTIONS[name], "log_every": 1}
    whole = module_search(choices_net(), run_dir=tmp_path / "whole", **settings)
    for steps_taken in (1, 3):
        module_search(choices_net(), run_dir=tmp_path / "run", stop=stop_after(steps_taken), **settings)
    with pytest.raises(Killed):
        module_search(choices_net(), run_dir=tmp_path / "run", callbacks=[KillAt(2)], **settings)
    result = module_search(choices_net(), run_dir=tmp_path / "run", **settings)
    assert (result.choices, result.cost) == (whole.choices, whole.cost)
    ours, theirs = ((tmp_path / each / "selection.json").read_text() for each in ("whole", "run"))
    assert ours == theirs


def test_callback_that_ends_the_search_does_not_skip_the_selection(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
            run.request_stop()

    result = strategy("random", epochs=5).run(tmp_path / "run", progress=False, callbacks=[Enough()])
    # the row is that of a search with one epoch, whose row is written after its selection
    last = strategy("random", epochs=1).run(tmp_path / "one", progress=False)
    assert result.history[-1].pop("ended_early")
    assert list(map(without_measures, result.history)) == list(map(without_measures, last.history))
    assert result.history[0]["architecture"] == result.genotype.to_dict()
    assert (tmp_path / "run" / "selection.json").read_text() == (tmp_path / "one" / "selection.json").read_text()


# -- cost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evolution", pytest.param("random", marks=pytest.mark.slow)])
def test_plan_predicts_the_passes_of_the_selection(name: str) -> None:
    config = strategy(name, space=SPACES["nasbench201"])
    result = config.run(progress=False)
    planned = plan_search(config)
    requested, gradient = planned.rows
    assert (requested.forward, requested.backward) == (result.cost.forward, result.cost.backward)
    assert (requested.estimator, requested.alpha_steps) == (name, 0)
    assert (gradient.estimator, gradient.alpha_steps) == ("first-order", gradient.steps)
    plain = cells(space=SPACES["nasbench201"]).run(progress=False)
    assert (gradient.forward, gradient.backward) == (plain.cost.forward, plain.cost.backward)


def test_work_of_a_finished_search_is_what_was_predicted() -> None:
    run = unstarted_cells(strategy="random", selection=SELECTIONS["random"])
    assert run.predicted_cost() == Cost(6 + 4 * 2, 6, 6)


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("strategy", {"strategy": "grid"}),
        ("selection", {"selection": EvolutionSelection()}),
        ("method", {"method": "pc-darts"}),
        ("method", {"method": "beta-darts"}),
        ("estimator", {"estimator": SGE(num_directions=2)}),
        ("relaxation", {"relaxation": GumbelSoftmax()}),
        ("regularizer", {"regularizer": BetaDecay()}),
        ("arch_optimizer.lr", {"arch_optimizer": Adam(lr=0.1)}),
        ("trajectory_lr", {"trajectory_lr": 0.1}),
        ("alpha_noise", {"alpha_noise": 0.1}),
        ("warmup_epochs", {"warmup_epochs": 1}),
        ("inner_steps", {"inner_steps": 2}),
        ("alpha_every", {"alpha_every": 2}),
        ("eigenvalue_every", {"eigenvalue_every": 1}),
        ("budget.penalty", {"budget": Budget(penalty="params")}),
    ],
)
def test_setting_of_the_alphas_is_refused_without_alphas(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        cells(**{"strategy": "random"} | changes)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("estimator", {"estimator": Unrolled()}),
        ("regularizer", {"regularizer": ZeroOne()}),
        ("trajectory_optimizer", {"trajectory_optimizer": SGD(0.1)}),
        ("early_stop", {"callbacks": [EarlyStopping()]}),
        ("discretization", {"discretization": sgenas.spaces.TopEdges(threshold=0.5)}),
    ],
)
def test_argument_of_the_alphas_is_refused_without_alphas(field: str, changes: dict[str, Any]) -> None:
    space = sgenas.spaces.darts(channels=2, layers=3, nodes=1, num_classes=2)
    with pytest.raises(InvalidValueError) as caught:
        sgenas.search(space, [], [], strategy="random", **changes)
    assert caught.value.field == field


def test_relaxation_of_the_space_is_refused_without_alphas() -> None:
    space = sgenas.spaces.darts(channels=2, layers=3, nodes=1, num_classes=2, relaxation=GumbelSoftmax())
    with pytest.raises(InvalidValueError) as caught:
        sgenas.search(space, [], [], strategy="random")
    assert caught.value.field == "relaxation"


def test_early_stopping_is_refused_with_a_selection() -> None:
    with pytest.raises(InvalidValueError) as caught:
        cells(selection=RandomSelection(), early_stop=True, eigenvalue_every=1)
    assert caught.value.field == "early_stop"


def test_config_file_keeps_strategy_and_selection() -> None:
    config = strategy("evolution")
    assert sgenas.SearchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
