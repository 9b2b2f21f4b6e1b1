"""`sgenas.train` on modules and data from Python."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from same_runs import assert_same_runs
from stopping import stop_after
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sgenas import losses
from sgenas.errors import InvalidValueError, RunDirError
from sgenas.optim import SGD, Adam, AdamW
from sgenas.spaces.darts_space.published import find_genotype
from sgenas.spaces.networks import build
from sgenas.training import TrainResult, WarmupCosine, export_run, train

quiet: Callable[..., TrainResult] = partial(train, progress=False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def examples(count: int = 90) -> TensorDataset:
    """The label is the largest of the first three inputs."""
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    return TensorDataset(inputs, inputs[:, :3].argmax(dim=1))


def loader(seed: int) -> Any:
    return DataLoader(examples(), 15, shuffle=True, generator=torch.Generator().manual_seed(seed))


def test_any_module_learns() -> None:
    result = quiet(network(), examples(300), examples(99), epochs=15, batch_size=20, optimizer=SGD(0.1, 0.9))
    assert result.finished
    assert (result.path, result.genotype) == (None, None)
    assert result.history[-1]["test_accuracy"] > 0.8
    inputs, labels = examples(99).tensors
    correct = (result.network.eval()(inputs).argmax(dim=1) == labels).float().mean().item()
    assert result.history[-1]["test_accuracy"] == pytest.approx(correct)


@pytest.mark.parametrize("source", [examples, lambda: loader(0), lambda: list(loader(0))])
@pytest.mark.parametrize("seed", [0, 1])
def test_dropout_and_data_order_resume_exactly(source: Callable[[], Any], seed: int, tmp_path: Path) -> None:
    given = {"epochs": 3, "batch_size": 15, "ema": 0.9, "seed": seed, "checkpoint_every": 2}
    quiet(network(), source(), examples(30), run_dir=tmp_path / "whole", **given)
    torch.manual_seed(5)
    assert not quiet(network(), source(), examples(30), run_dir=tmp_path / "b", stop=stop_after(8), **given).finished
    torch.manual_seed(6)
    assert quiet(network(), source(), examples(30), run_dir=tmp_path / "b", **given).finished
    assert_same_runs(tmp_path / "whole", tmp_path / "b")


def test_dropout_leaves_the_global_generator_alone() -> None:
    model, before = network(), torch.get_rng_state()
    quiet(model, examples(), examples(30), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(0.1, 0.9, True, 1e-2), partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)),
        (Adam(0.1, weight_decay=1e-2), partial(torch.optim.Adam, lr=0.1, weight_decay=1e-2)),
        (AdamW(0.1, weight_decay=1e-2), partial(torch.optim.AdamW, lr=0.1, weight_decay=1e-2)),
    ],
)
def test_optimizers_equal_torch(ours: Any, theirs: Any) -> None:
    found, expected = (
        quiet(network(), examples(), epochs=2, batch_size=30, optimizer=each).network for each in (ours, theirs)
    )
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_each_parameter_group_follows_the_schedule() -> None:
    model = network()
    made: list[torch.optim.Optimizer] = []

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": parameters[:2], "lr": 0.4}, {"params": parameters[2:], "lr": 0.2}]
        made.append(torch.optim.SGD(groups))
        return made[0]

    quiet(model, examples(), epochs=2, batch_size=90, optimizer=make, schedule=WarmupCosine(0.1))
    # the second of two epochs is in the middle of the cosine
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx([0.25, 0.15])


def test_custom_loss_has_a_test_loss_and_no_accuracy() -> None:
    inputs = torch.randn(40, 4)
    data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
    result = quiet(nn.Linear(4, 1), data, data, losses.mean_squared_error, epochs=20, batch_size=8, optimizer=SGD(0.05))
    assert result.history[-1]["test_loss"] < 0.1 * result.history[0]["test_loss"]
    assert "test_accuracy" not in result.history[-1]
    assert "train_accuracy" not in result.history[-1]


@pytest.mark.parametrize("size", [5, 8, 9])
def test_test_loss_of_any_loss_is_a_mean_over_rows(size: int) -> None:
    inputs, targets = torch.randn(9, 4), torch.randn(9, 1)
    targets[8] = 100  # alone in the last batch of 8
    model, data = nn.Linear(4, 1), TensorDataset(inputs, targets)
    given: dict[str, Any] = {"epochs": 1, "batch_size": size, "optimizer": SGD(1e-30)}
    last = quiet(model, data, data, losses.mean_squared_error, **given).history[-1]
    assert last["test_loss"] == pytest.approx(F.mse_loss(model(inputs), targets).item(), rel=1e-5)


def test_metrics_in_bfloat16_are_added_exactly() -> None:
    """A sum in bfloat16 stops at 256."""
    model = nn.Linear(4, 2).bfloat16()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    data = TensorDataset(torch.ones(3000, 4).bfloat16(), torch.zeros(3000, dtype=torch.int64))
    given: dict[str, Any] = {"epochs": 1, "batch_size": 10, "optimizer": SGD(1e-30)}
    last = quiet(model, data, data, **given).history[-1]
    assert last["test_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert last["test_accuracy"] == 1
    own = quiet(model, data, data, lambda model, batch: model(batch[0]).sum() + 1, **given).history[-1]
    assert own["test_loss"] == 1


def test_a_second_training_has_its_own_drop_path() -> None:
    cell = find_genotype("darts-v2")
    sizes: dict[str, Any] = {"channels": 4, "layers": 3, "num_classes": 2}
    used, fresh = (build(cell, generator=torch.Generator().manual_seed(0), **sizes) for _ in range(2))
    data = TensorDataset(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    quiet(used, data, epochs=2, batch_size=4, drop_path=0.9)
    used.load_state_dict(fresh.state_dict())
    found = [quiet(each, data, epochs=2, batch_size=4).history[-1]["train_loss"] for each in (used, fresh)]
    assert used.drop_path == 0
    assert found[0] == found[1]


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(examples(30))


def test_iterable_datasets_are_tested_in_batches() -> None:
    found = [quiet(network(), examples(), test, epochs=1).history[-1] for test in (examples(30), Rows())]
    assert found[0]["test_loss"] == found[1]["test_loss"]


def test_metrics_are_means_over_the_labels_that_count() -> None:
    torch.manual_seed(0)
    pixels, classes = torch.randn(6, 3, 4, 4), torch.randint(0, 5, (6, 4, 4))
    # batches with other shares of ignored pixels
    classes[:4, 1:], classes[5, 0] = -100, -100
    model = nn.Conv2d(3, 5, 1)
    data = TensorDataset(pixels, classes)
    last = quiet(model, data, data, epochs=1, batch_size=4, optimizer=SGD(1e-30)).history[-1]
    counted = classes != -100
    assert last["test_loss"] == pytest.approx(F.cross_entropy(model(pixels), classes).item(), rel=1e-5)
    assert last["test_accuracy"] == (model(pixels).argmax(dim=1) == classes)[counted].double().mean().item()
    one_batch = quiet(model, data, epochs=1, batch_size=6, optimizer=SGD(1e-30)).history[-1]
    assert one_batch["train_accuracy"] == pytest.approx(last["test_accuracy"])
    with pytest.raises(InvalidValueError, match="test_data must be at least one label that counts"):
        quiet(model, data, [(pixels[:1], torch.full((1, 4, 4), -100))], epochs=1)


def test_class_probabilities_are_labels() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(6, 3), torch.rand(6, 4).softmax(dim=1)
    model = nn.Linear(3, 4)
    data = TensorDataset(inputs, labels)
    last = quiet(model, data, data, epochs=1, batch_size=6, optimizer=SGD(1e-30)).history[-1]
    assert last["test_loss"] == pytest.approx(F.cross_entropy(model(inputs), labels).item(), rel=1e-6)
    hits = (model(inputs).argmax(dim=1) == labels.argmax(dim=1)).sum().item()
    assert last["test_accuracy"] == pytest.approx(last["train_accuracy"]) == hits / 6


def test_without_test_data_nothing_is_tested() -> None:
    assert not any("test" in name for name in quiet(network(), examples(), epochs=1).history[0])


def test_result_is_the_moving_average() -> None:
    model = network()
    result = quiet(model, examples(), epochs=2, ema=0.9, batch_size=15)
    assert result.network is not model
    assert not torch.equal(result.network[0].weight, model[0].weight)


def test_network_that_views_its_feature_maps_trains_on_images() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(self.convolution(images).view(len(images), -1))

    data = TensorDataset(torch.randn(20, 3, 8, 8), torch.arange(20) % 2)
    assert quiet(Views(), data, data, epochs=1, batch_size=10).finished


def test_run_of_other_arguments_is_refused(tmp_path: Path) -> None:
    quiet(network(), examples(), epochs=2, run_dir=tmp_path / "run")
    with pytest.raises(RunDirError, match="optimizer"):
        quiet(network(), examples(), epochs=2, run_dir=tmp_path / "run", optimizer=SGD(0.5))
    with pytest.raises(RunDirError, match="Python"):
        export_run(tmp_path / "run", "state-dict", tmp_path / "weights")


SCALES = {"loss": 1.0}


class Powers(nn.Linear):
    """A layer with a setting that ``extra_repr`` does not show."""

    def __init__(self, power: int) -> None:
        super().__init__(4, 3)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x**self.power)


def test_run_whose_loss_or_layers_read_other_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(model: Any, batch: Any) -> Tensor:
        return SCALES["loss"] * F.cross_entropy(model(batch[0]), batch[1])

    def resumed(power: int, steps: int = 10**9) -> TrainResult:
        given: dict[str, Any] = {"epochs": 2, "run_dir": tmp_path / "run", "batch_size": 15}
        torch.manual_seed(0)
        return quiet(Powers(power), examples(), None, scaled, stop=stop_after(steps), **given)

    assert not resumed(1, steps=2).finished
    with pytest.raises(RunDirError, match="model.layers differs"):
        resumed(2)
    with monkeypatch.context() as patch:
        patch.setitem(SCALES, "loss", 2.0)
        with pytest.raises(RunDirError, match="code differs"):
            resumed(1)
    assert resumed(1).finished


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"drop_path": 0.5}, "drop_path"),
        ({"ema": 0.0}, "ema"),
        ({"precision": "half"}, "precision"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"schedule": WarmupCosine(warmup=2)}, "warmup"),
        ({"schedule": WarmupCosine(lr_min=1.0)}, "lr_min"),
        ({"test_data": iter([])}, "test_data"),
        ({"test_data": []}, "test_data"),
        ({"test_data": examples().tensors}, "test_data"),
        ({"test_data": {"x": torch.zeros(3, 4)}}, "test_data"),
        ({"log_every": 0}, "log_every"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"seed": -1}, "seed"),
        ({"train_data": torch.zeros(3, 4)}, "train_data"),
        ({"optimizer": 0.1}, "optimizer"),
        ({"threads": 0}, "threads"),
    ],
)
def test_argument_out_of_range_raises(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        quiet(network(), **{"train_data": examples(), "epochs": 2, **changes})
    assert caught.value.field == field


def test_step_schedule_needs_data_of_known_length() -> None:
    def batches() -> Any:
        yield from loader(0)

    class Unknown:
        def __iter__(self) -> Any:
            return batches()

    assert quiet(network(), Unknown(), epochs=2).finished
    with pytest.raises(InvalidValueError) as caught:
        quiet(network(), Unknown(), epochs=2, schedule=WarmupCosine(interval="step"))
    assert caught.value.field == "schedule"


def test_strided_pointwise_convolutions_subsample_during_the_training_only() -> None:
    conv = nn.Conv2d(1, 2, 1, stride=2)
    plain, changed = conv._conv_forward, []

    def loss(model: Callable[..., Tensor], batch: Any) -> Tensor:
        changed.append(conv._conv_forward != plain)
        return model(batch[0]).square().mean()

    batches = [(torch.randn(2, 1, 4, 4),)]
    quiet(nn.Sequential(conv), batches, loss=loss, epochs=2, ema=0.5)
    assert changed == [True, True]
    assert conv._conv_forward == plain
