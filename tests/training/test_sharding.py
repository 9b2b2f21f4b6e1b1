"""Training on shards of a batch, on one process: against the whole batch, and against the definition."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from same_runs import assert_same_runs
from stopping import stop_after
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sgenas import losses
from sgenas.errors import InvalidValueError
from sgenas.optim import SGD
from sgenas.training import TrainConfig, TrainResult, train

quiet: Callable[..., TrainResult] = partial(train, progress=False)


def perceptron(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *more, nn.Tanh(), nn.Linear(8, 3)).double()


def rows(count: int = 48) -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=draw, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 3, (count,), generator=draw))


def squared(model: Any, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), F.one_hot(batch[1], 3).double())


def weights_of(network: nn.Module) -> list[Tensor]:
    return [each.detach() for each in network.state_dict().values()]


@pytest.mark.parametrize("shards", [2, 3, 4, 12])
@pytest.mark.parametrize("loss", [None, squared])
def test_without_batch_statistics_shards_equal_the_whole_batch(loss: Any, shards: int) -> None:
    given: dict[str, Any] = {"epochs": 2, "batch_size": 12, "ema": 0.9}
    if loss is None:
        # the sums of the weights differ from shard to shard
        given |= {"class_weights": torch.tensor([0.2, 1.0, 3.0]).double(), "label_smoothing": 0.1}
    whole, cut = (quiet(perceptron(), rows(), rows(), loss, shards=each, **given) for each in (1, shards))
    for one, other in zip(weights_of(cut.network), weights_of(whole.network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    for name in ("train_loss", "test_loss"):
        assert cut.history[-1][name] == pytest.approx(whole.history[-1][name], rel=1e-12)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0]).double()])
def test_shards_with_ignored_labels_equal_the_whole_batch(weights: Tensor | None) -> None:
    inputs, labels = rows(12).tensors
    # all of a shard, and a part of another
    labels[:4] = labels[7] = -100
    given: dict[str, Any] = {"epochs": 2, "class_weights": weights}
    whole, cut = (quiet(perceptron(), [(inputs, labels)], shards=shards, **given) for shards in (1, 3))
    for one, other in zip(weights_of(cut.network), weights_of(whole.network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    for name in ("train_loss", "train_accuracy"):
        assert cut.history[-1][name] == pytest.approx(whole.history[-1][name], rel=1e-6)


def test_each_shard_has_its_own_batch_statistics() -> None:
    """A step, written out: mean of the shards' gradients, mean of their running statistics."""
    network, expected = perceptron(nn.BatchNorm1d(8)), perceptron(nn.BatchNorm1d(8))
    inputs, labels = rows(12).tensors
    start = {name: value.clone() for name, value in expected.state_dict().items()}
    gradients, statistics = [], []
    for part in range(3):
        expected.load_state_dict(start)
        span = slice(4 * part, 4 * part + 4)
        gradients.append(
            torch.autograd.grad(F.cross_entropy(expected(inputs[span]), labels[span]), expected.parameters())
        )
        statistics.append([expected[1].running_mean.clone(), expected[1].running_var.clone()])
    quiet(network, [(inputs, labels)], epochs=1, shards=3, optimizer=SGD(0.5))
    for parameter, name, *parts in zip(network.parameters(), dict(network.named_parameters()), *gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), start[name] - 0.5 * sum(parts) / 3)
    for found, *parts in zip((network[1].running_mean, network[1].running_var), *statistics, strict=True):
        torch.testing.assert_close(found, sum(parts) / 3)
    assert network[1].num_batches_tracked == 1


def test_buffers_that_are_no_statistics_stay_bit_for_bit() -> None:
    network = perceptron()
    network.register_buffer("constant", torch.randn(50, dtype=torch.float64))
    before = network.constant.clone()
    quiet(network, rows(49), epochs=3, batch_size=49, shards=7)
    assert torch.equal(network.constant, before)


def test_shards_draw_dropout_of_their_own() -> None:
    masks: list[Tensor] = []

    class Watched(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            masks.append(out == 0)
            return out

    quiet(perceptron(Watched(0.5)), rows(24), epochs=2, batch_size=24, shards=2)
    assert len(masks) == 4
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4


def test_sharded_training_resumes_exactly(training: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = training(data={"data_parallel": 4})
    config.run(tmp_path / "whole", progress=False)
    config.run(tmp_path / "stopped", stop=stop_after(5), progress=False)
    assert config.run(tmp_path / "stopped", progress=False).finished
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_unused_weights_are_not_decayed() -> None:
    network = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)}).double()
    before = network["unused"].weight.detach().clone()

    def loss(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(network["used"](batch[0]), batch[1])

    quiet(network, rows(), None, loss, epochs=1, batch_size=12, shards=2, optimizer=SGD(0.1, weight_decay=0.5))
    assert torch.equal(network["unused"].weight, before)


def test_gradients_that_come_and_go_are_refused() -> None:
    network = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]).double()
    calls = iter(range(99))

    def loss(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(network[next(calls) % 2](batch[0]), batch[1])

    with pytest.raises(InvalidValueError) as caught:
        quiet(network, rows(), None, loss, epochs=1, batch_size=12, shards=2)
    assert caught.value.field == "shards"


def test_batches_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(InvalidValueError) as caught:
        quiet(perceptron(), DataLoader(rows(), 9), None, losses.cross_entropy, epochs=1, shards=2)
    assert "Shards.count" in str(caught.value)
    with pytest.raises(InvalidValueError) as caught:
        quiet(perceptron(), rows(), epochs=1, shards=0)
    assert caught.value.field == "shards"
