"""What a search returns and writes: architecture, weights, history, files; bad arguments."""

import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from same_runs import rows as rows_of
from tiny_searches import cells, module_search, net, rows, squared_error, unstarted
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas import SGE, Budget, Genotype, SearchConfig, Unrolled
from sgenas.data import from_dataset, load
from sgenas.errors import DataError, DivergenceError, InvalidValueError
from sgenas.optim import SGD, Adam
from sgenas.run.meter import MEASURED
from sgenas.searching import api
from sgenas.searching.results import entropy
from sgenas.searching.schedules import Cosine
from sgenas.spaces import BetaDecay, ZeroOne, darts

LEARNING = {"epochs": 12, "weight_optimizer": SGD(lr=0.1, momentum=0.9), "arch_optimizer": Adam(lr=0.05)}


@pytest.mark.parametrize(
    ("method", "estimator", "settings"),
    [
        ("darts", "first-order", {}),
        ("darts", SGE(num_directions=4, smoothing=0.1), {}),
        ("darts", Unrolled(), {"inner_steps": 2}),
        ("fair-darts", "first-order", {"regularizer": ZeroOne(weight=0.1)}),
        ("beta-darts", "first-order", {"regularizer": BetaDecay(weight=0.1)}),
        ("gdas", "first-order", {"epochs": 20}),
        ("drnas", SGE(num_directions=4, smoothing=0.1), {"epochs": 30}),
    ],
)
def test_search_finds_the_option_that_fits(method: str, estimator: Any, settings: dict[str, Any]) -> None:
    result = module_search(**LEARNING | {"method": method, "estimator": estimator, "warmup_epochs": 0} | settings)
    assert result.choices == {"whose": "own"}
    weights = result.probabilities["whose"]
    assert weights["own"] > 0.5 > weights["others"] or method == "fair-darts"
    assert weights["own"] > weights["others"]
    assert (sum(weights.values()) == pytest.approx(1)) == (method != "fair-darts")


def test_cell_search_learns_digits() -> None:
    config = cells(
        epochs=5,
        data={"train_images": 400, "batch_size": 20},
        space={"channels": 4},
        weight_optimizer={"lr": 0.1},
        derived_every=0,
    )
    history = config.run(progress=False).history
    assert history[-1]["val_accuracy"] > 0.4, "chance is 0.1"
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert "derived_accuracy" not in history[0]


def test_module_search_writes_the_files_of_a_run(tmp_path: Path) -> None:
    result = module_search(net(sgenas.WidthChoice([2, 8], name="width", dim=-1)), run_dir=tmp_path)
    checkpoints = {"checkpoint.safetensors", "checkpoint-previous.safetensors"}
    files = {"config.json", "metrics.jsonl", "alphas.npz", "choices.json"} | checkpoints
    assert {path.name for path in tmp_path.iterdir()} - {"run.lock"} == files
    assert result.path == tmp_path
    assert json.loads((tmp_path / "choices.json").read_text()) == result.choices
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == "search"
    arrays = np.load(tmp_path / "alphas.npz")
    assert arrays["epoch"].tolist() == [0, 1, 2]
    assert arrays["whose_options"].tolist() == ["others", "own"]
    assert arrays["width_options"].tolist() == ["2", "8"]
    assert arrays["whose"].shape == arrays["whose_mixing"].shape == (3, 2)
    np.testing.assert_array_equal(arrays["width"][-1], result.alphas["width"])
    np.testing.assert_allclose(arrays["width_mixing"].sum(axis=1), 1, rtol=1e-6)
    row = rows_of(tmp_path)[-1]
    assert row == json.loads(json.dumps(result.history))[-1]
    assert row["architecture"] == result.choices
    assert 0.9 < row["entropy_whose"] <= 1
    assert set(MEASURED) < set(row)


def test_cell_search_writes_the_files_of_a_run(tmp_path: Path) -> None:
    config = cells()
    result = config.run(tmp_path / "run", progress=False)
    path = tmp_path / "run"
    assert Genotype.load(path / "genotype.json") == result.genotype
    assert not (path / "choices.json").exists()
    head = json.loads((path / "config.json").read_text())
    assert SearchConfig.from_dict(head["config"]) == config
    assert head["environment"]["images"] == {"training": 24, "validation": 24}
    assert head["environment"]["alphas"] == 12
    assert head["environment"]["input"] == [1, 8, 8]
    assert {"fingerprint", "classes", "threads", "weights"} < set(head["environment"])
    arrays = np.load(path / "alphas.npz")
    assert arrays["normal"].shape == arrays["reduce_mixing"].shape == (3, 2, 3)
    assert arrays["edges"].shape == (2, 2)
    assert arrays["normal_options"].tolist() == list(config.space.operations)
    row = result.history[-1]
    assert {"val_loss", "val_accuracy", "derived_accuracy", "accuracy_gap", "skips_normal"} < set(row)
    assert Genotype.from_dict(row["architecture"]) == result.genotype
    # the same configuration, from the file
    again = SearchConfig.from_dict(head["config"]).run(progress=False)
    assert [row["val_loss"] for row in again.history] == [row["val_loss"] for row in result.history]


def test_images_from_python_equal_those_by_name() -> None:
    whole = load("digits")
    part = torch.utils.data.TensorDataset(whole.train.images, whole.train.labels)
    images = from_dataset(part, part, classes=whole.classes, name="mine", horizontal_flip=False)
    losses = [
        [row["val_loss"] for row in cells().run(images=given, progress=False).history] for given in (None, images)
    ]
    assert losses[0] == losses[1]


def test_entropy_is_one_for_undecided_and_zero_for_decided_rows() -> None:
    mixing = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.9, 0.9, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(entropy(mixing), torch.tensor([1.0, 0.0, 0.5, 1.0]))


def test_batches_may_have_any_structure() -> None:
    def by_name(model: Callable[..., Tensor], batch: Any) -> Tensor:
        return F.l1_loss(model(input=batch["x"]), batch["rest"][0])

    train = [{"x": x[None], "rest": (y[None], "note")} for x, y in rows(8)]
    assert module_search(train_data=train, val_data=train, loss=by_name, epochs=1).cost.forward == 16


# -- networks -----------------------------------------------------------------------------------------------


def test_derived_module_has_trained_or_fresh_weights() -> None:
    model = net()
    given = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = module_search(model, **LEARNING)
    trained, fresh = result.derive(), result.derive("fresh")
    assert isinstance(trained[2], nn.Identity)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, given[name])
        assert torch.equal(trained.state_dict()[name], result.weights[name])
    assert squared_error(trained, rows()[:]) < squared_error(fresh, rows()[:])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name]), "the model is not part of the search"
    with pytest.raises(InvalidValueError) as caught:
        result.derive("new")
    assert caught.value.field == "weights"


def test_derived_module_has_the_statistics_of_one_pass() -> None:
    model = net(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=0.3)).train()
    train = [rows(16, seed)[:] for seed in range(3)]
    result = module_search(model, train_data=train, epochs=1)
    plain = result.derive()
    hidden = [(x @ plain[0].weight.T + plain[0].bias).relu() for x, _ in train]
    torch.testing.assert_close(plain[3].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(plain[3].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert plain[3].momentum == 0.3
    assert all(module.training for module in plain.modules())
    assert result.derive("fresh")[3].num_batches_tracked == model[3].num_batches_tracked == 0


def test_derived_cell_is_a_network_of_any_size() -> None:
    result = cells(epochs=1).run(progress=False)
    network = result.derive(channels=4, layers=5)
    assert isinstance(network, nn.Module)
    logits = network.eval()(torch.zeros(2, 1, 8, 8))
    assert (logits[0] if isinstance(logits, tuple) else logits).shape == (2, 10)


# -- bad arguments ------------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = net(), sgenas.Choice({"a": nn.ReLU(), "b": nn.Tanh()}, name="unused")

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.used(x)
        return found


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"model": net(Counting())}, "model"),
    ({"model": Unused()}, "loss"),
    ({"loss": lambda model, batch: model(batch[0])}, "loss"),
    ({"loss": lambda model, batch: 1.0}, "loss"),
    ({"loss": lambda model, batch: torch.zeros(())}, "loss"),
    ({"method": "pc-darts"}, "method"),
    ({"method": "dart"}, "method"),
    ({"estimator": "seg"}, "estimator"),
    ({"epochs": 0}, "epochs"),
    ({"inner_steps": 0}, "inner_steps"),
    ({"inner_steps": 5}, "inner_steps"),
    ({"alpha_every": 0}, "alpha_every"),
    ({"alpha_every": 9}, "alpha_every"),
    ({"alpha_every": 5, "warmup_epochs": 1}, "alpha_every"),
    ({"alpha_every": 3, "inner_steps": 3}, "alpha_every"),
    ({"warmup_epochs": 2}, "warmup_epochs"),
    ({"warmup_epochs": -1}, "warmup_epochs"),
    ({"batch_size": 0}, "batch_size"),
    ({"log_every": 0}, "log_every"),
    ({"checkpoint_every": 0}, "checkpoint_every"),
    ({"precision": "half"}, "precision"),
    ({"precision": "bf16", "estimator": SGE(num_directions=2)}, "precision"),
    ({"shards": 0}, "shards"),
    ({"threads": 0}, "threads"),
    ({"seed": -1}, "seed"),
    ({"device": "abacus"}, "device"),
    ({"loggers": ["paper"]}, "loggers"),
    ({"train_data": (torch.ones(3, 1), torch.ones(3))}, "train_data"),
    ({"val_data": iter([1])}, "val_data"),
    ({"budget": Budget(max_params=1)}, "Budget.max_params"),
]


@pytest.mark.parametrize(("settings", "field"), REFUSED, ids=[f"{row[1]}-{index}" for index, row in enumerate(REFUSED)])
def test_bad_argument_is_refused_in_one_line(settings: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError) as caught:
        module_search(run_dir=tmp_path / "run", **settings)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert left <= {"run.lock", "config.json"}


@pytest.mark.parametrize("name", ["train_data", "val_data"])
@pytest.mark.parametrize("empty", [[], torch.utils.data.TensorDataset(torch.ones(0))], ids=["list", "rows"])
def test_empty_data_is_refused(name: str, empty: Any) -> None:
    with pytest.raises(DataError, match=name):
        module_search(**{name: empty})


def test_method_for_other_spaces_is_refused_for_cells() -> None:
    with pytest.raises(InvalidValueError) as caught:
        api.search(darts(channels=4, layers=3, num_classes=2), [0], [0], method="nothing", progress=False)
    assert caught.value.field == "method"


@pytest.mark.parametrize("warmup", [0, 1])
def test_divergence_names_the_step_and_a_remedy(warmup: int) -> None:
    with pytest.raises(DivergenceError, match=r"step \d+ \(epoch 1\): the search diverged; try a lower learning rate"):
        module_search(weight_optimizer=SGD(lr=1e30), warmup_epochs=warmup)


CONFIGS: list[tuple[Callable[[], Any], str]] = [
    (lambda: cells(method="nas"), "method"),
    (lambda: cells(epochs=0), "epochs"),
    (lambda: cells(seed=-1), "seed"),
    (lambda: cells(precision="half"), "precision"),
    (lambda: cells(warmup_epochs=2), "warmup_epochs"),
    (lambda: cells(alpha_every=0), "alpha_every"),
    (lambda: cells(lr_min=1.0), "lr_min"),
    (lambda: cells(trajectory_lr=0.0), "trajectory_lr"),
    (lambda: cells(on_nonfinite="ignore"), "on_nonfinite"),
    (lambda: cells(log_every=0), "log_every"),
    (lambda: cells(checkpoint_every=0), "checkpoint_every"),
    (lambda: cells(eigenvalue_every=-1), "eigenvalue_every"),
    (lambda: cells(early_stop=True), "early_stop"),
    (lambda: cells(early_stop=True, eigenvalue_every=1, epochs=8), "early_stop"),
    (lambda: cells(early_stop=True, eigenvalue_every=1, epochs=9, early_stop_from=6), "early_stop_from"),
    (lambda: cells(table="t.csv"), "table"),
    (lambda: cells(derived_every=-1), "derived_every"),
    (lambda: cells(threads=0), "threads"),
    (lambda: cells(data={"data_parallel": 3}), "batch_size"),
    (lambda: cells(data={"data_parallel": 8}), "data_parallel"),
    (lambda: cells(data={"batch_size": 1}), "batch_size"),
    (lambda: cells(weight_optimizer={"lr": 0.0}), "SGD.lr"),
    (lambda: cells(space={"channels": 1}), "DartsSettings.channels"),
    (lambda: cells(data={"batch_size": 64}).run(progress=False), "batch_size"),
    (lambda: cells(inner_steps=4).run(progress=False), "inner_steps"),
    (lambda: cells(alpha_every=7).run(progress=False), "alpha_every"),
    (lambda: cells(data={"cutout": 9}).run(progress=False), "cutout"),
    (lambda: cells(device="abacus").run(progress=False), "device"),
    (lambda: SearchConfig.of_method("darts", preset="mine"), "preset"),
]


@pytest.mark.parametrize(("make", "field"), CONFIGS, ids=[f"{row[1]}-{index}" for index, row in enumerate(CONFIGS)])
def test_bad_setting_is_refused_in_one_line(make: Callable[[], Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        make()
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_default_schedule_ends_at_the_same_share_of_any_learning_rate() -> None:
    """1 / 25 in DARTS (0.025 to 0.001), 0 in PC-DARTS; a schedule that would rise is refused."""
    images = TensorDataset(torch.zeros(8, 3, 8, 8), torch.arange(8) % 2)
    for method, share in (("darts", 0.04), ("pc-darts", 0.0)):
        space = darts(channels=8, layers=3, num_classes=2)
        start = partial(api.search, space, images, images, method=method, batch_size=4, progress=False, epochs=20)
        for optimizer in (None, Adam(3e-4), SGD(0.1)):
            run = unstarted(partial(start, weight_optimizer=optimizer))
            lr = run._weight_optimizer.lr
            assert run._schedule.final == pytest.approx(share * lr)
            run.epoch = 0
            assert run.learning_rate() == lr
        assert run._schedule(0.1, 20, 20) == pytest.approx(0.1 * share)
    with pytest.raises(InvalidValueError) as caught:
        start(weight_optimizer=Adam(3e-4), schedule=Cosine(0.001))
    assert caught.value.field == "schedule"


def test_schedule_is_refused_for_an_optimizer_without_lr() -> None:
    class Fixed:
        init, step = SGD(0.1).init, SGD(0.1).step

    with pytest.raises(InvalidValueError) as caught:
        module_search(weight_optimizer=Fixed(), schedule=Cosine(0.0))
    assert caught.value.field == "schedule"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "adam") for name in ("weight_optimizer", "trajectory_optimizer", "budget")),
        *((name, "softmax") for name in ("relaxation", "discretization", "regularizer")),
        ("weight_optimizer", SGD),
        ("estimator", SGE),
    ],
)
def test_names_and_classes_in_place_of_objects_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=rf"^{name} must be an ") as caught:
        module_search(**{name: value})
    assert caught.value.field == name


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    given: dict[str, Any] = {"seed": np.int64(1), "epochs": np.int64(1), "weight_optimizer": SGD(np.float64(0.1))}
    found = module_search(run_dir=tmp_path / "run", **given)
    assert module_search(run_dir=tmp_path / "run", resume=True, **given).choices == found.choices
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["seed"] == 1


# -- copies -----------------------------------------------------------------------------------------------------


class Unpicklable(torch.utils.data.TensorDataset):
    """Training data must not go along."""

    def __reduce__(self) -> Any:
        raise AssertionError("training data in a pickle")


def searched() -> Any:
    data = Unpicklable(*rows()[:])
    return module_search(net(nn.BatchNorm1d(8)), train_data=data, epochs=1)


@pytest.mark.parametrize("kind", ["module", "cells"])
@pytest.mark.parametrize("copied", [lambda result: pickle.loads(pickle.dumps(result)), copy.deepcopy])
def test_result_can_be_pickled_and_copied(kind: str, copied: Callable[[Any], Any]) -> None:
    result = searched() if kind == "module" else cells(epochs=1).run(progress=False)
    again = copied(result)
    assert again.architecture == result.architecture
    assert again.probabilities == result.probabilities
    assert again.history == result.history
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in result.weights.items())
    assert isinstance(again.derive("fresh"), nn.Module)


def test_only_a_pickled_result_lacks_the_data_for_trained_weights() -> None:
    result = searched()
    whole, copied = result.derive(), copy.deepcopy(result).derive()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(copied.state_dict()[name], tensor)
    with pytest.raises(InvalidValueError, match="pickled") as caught:
        pickle.loads(pickle.dumps(result)).derive()
    assert caught.value.field == "weights"
    plain = module_search(epochs=1)
    assert pickle.loads(pickle.dumps(plain)).derive().state_dict().keys() == plain.derive().state_dict().keys()
