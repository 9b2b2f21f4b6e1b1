"""The numbers of a training: against plain PyTorch, against their definitions, and each setting's effect."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sgenas import data
from sgenas.random import generator
from sgenas.spaces.networks import build
from sgenas.training import TrainConfig, Training, WarmupCosine
from sgenas.training.ema import MovingAverage
from sgenas.training.objectives import Classification

Make = Callable[..., TrainConfig]
Loop = Callable[[TrainConfig], Training]
Steps = Callable[[Training, int], None]


def by_hand(config: TrainConfig, count: int) -> tuple[nn.Module, nn.Module]:
    """The first steps, written out in plain PyTorch: (network, moving average)."""
    images = data.load_images(config.data, config.seed, test=True)
    augmentation = data.make_augmentation(config.data, images, images.train)
    draws = generator(config.seed, "training batches")
    stream = data.BatchStream(images.train, config.data.batch_size, augmentation, draws)
    network = build(
        config.genotype,
        channels=config.channels,
        layers=config.layers,
        num_classes=len(images.classes),
        input_channels=images.channels,
        auxiliary=config.head_weight > 0,
        generator=generator(config.seed, "weights"),
    ).to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    network.drop_path_generator = generator(config.seed, "drop path")
    optimizer = torch.optim.SGD(
        network.parameters(), config.lr, config.momentum, 0, config.weight_decay, config.nesterov
    )
    weights = data.make_class_weights(config.data, images)
    per_epoch = stream.batches_per_pass
    for step in range(count):
        network.drop_path = config.final_drop_path * (step // per_epoch) / config.epochs
        time = step / per_epoch
        if time < config.warmup:
            lr = config.lr * (step + 1) / (config.warmup * per_epoch)
        else:
            share = (time - config.warmup) / (config.epochs - config.warmup)
            lr = config.lr * (1 + math.cos(math.pi * share)) / 2
        optimizer.param_groups[0]["lr"] = lr
        batch, labels = next(stream)
        output = network(batch.contiguous(memory_format=torch.channels_last))
        parts = output if isinstance(output, tuple) else (output,)
        loss = sum(
            factor * F.cross_entropy(part, labels, weights, label_smoothing=config.label_smoothing)
            for factor, part in zip((1.0, config.head_weight), parts, strict=False)
        )
        optimizer.zero_grad()
        loss.backward()
        if config.grad_clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
        optimizer.step()
        decay = min(config.ema or 0.0, (2 + step) / (11 + step))
        with torch.no_grad():
            for name, value in average.state_dict().items():
                now = network.state_dict()[name]
                value.copy_(decay * value + (1 - decay) * now if value.is_floating_point() else now)
    return network, average


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("clip", [None, 0.3])
def test_steps_equal_plain_pytorch(clip: float | None, training: Make, loop: Loop, steps: Steps) -> None:
    config = training(grad_clip=clip)
    run = loop(config)
    steps(run, 7)
    network, average = by_hand(config, 7)
    assert run.average is not None
    assert_same_weights(run.network, network)
    assert_same_weights(run.average.network, average)
    # the two networks must not be equal for another reason
    first, last = run.network.state_dict(), run.average.network.state_dict()
    assert not torch.allclose(first["classifier.weight"], last["classifier.weight"], atol=1e-4)


def test_auxiliary_head_and_class_weights_equal_plain_pytorch(
    training: Make, loop: Loop, steps: Steps, photos: str
) -> None:
    images = {"data": photos, "train_images": 11, "test_images": None, "batch_size": 6}
    images["class_weights"] = "balanced"
    config = training(data=images, auxiliary_weight=0.7, drop_path=0.0)
    run = loop(config)
    steps(run, 1)
    assert_same_weights(run.network, by_hand(config, 1)[0])
    # tests have neither auxiliary output nor smoothing nor class weights
    whole = data.load_images(config.data, config.seed, test=True)
    batch = data.make_augmentation(config.data, whole, whole.train).plain(whole.test.images)
    expected = F.cross_entropy(run.result(batch), whole.test.labels).item()
    assert run.test()["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert run.network.training, "the test leaves the network in training mode"


def test_classification_is_its_definition() -> None:
    logits, auxiliary, labels = torch.randn(2, 4, 3)[0], torch.randn(4, 3), torch.tensor([0, 1, 2, 0])

    def smoothed(values: torch.Tensor) -> torch.Tensor:
        target = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
        return -(target * values.log_softmax(dim=1)).sum(dim=1).mean()

    objective = Classification(label_smoothing=0.1, auxiliary_weight=0.7)
    found = objective.train(lambda _: (logits, auxiliary), (None, labels))
    torch.testing.assert_close(found["loss"], smoothed(logits) + 0.7 * smoothed(auxiliary))
    assert found["accuracy"] == (logits.argmax(dim=1) == labels).float().mean()
    torch.testing.assert_close(objective.train(lambda _: logits, (None, labels))["loss"], smoothed(logits))


def after_six_steps(run: Training, steps: Steps) -> torch.Tensor:
    steps(run, 6)
    return torch.cat([tensor.detach().flatten() for tensor in run.result.parameters()])


@pytest.mark.parametrize(
    "changes",
    [
        *({"seed": 1}, {"epochs": 4}, {"precision": "bf16"}, {"data": {"augment": "none"}}),
        *({"data": {"cutout": 4}}, {"data": {"batch_size": 24}}, {"channels": 3}, {"layers": 4}),
        *({"drop_path": 0.6}, {"lr": 0.03}, {"lr_min": 0.02}, {"schedule": "epoch"}, {"warmup": 0}),
        *({"momentum": 0.5}, {"nesterov": False}, {"weight_decay": 0.1}, {"grad_clip": 0.1}),
        *({"label_smoothing": 0.3}, {"ema": 0.1}, {"data": {"train_images": 100}}),
    ],
    ids=str,
)
def test_every_setting_has_an_effect(changes: dict[str, Any], training: Make, loop: Loop, steps: Steps) -> None:
    before = after_six_steps(loop(training()), steps)
    assert torch.equal(before, after_six_steps(loop(training()), steps))
    after = after_six_steps(loop(training(**changes)), steps)
    assert before.shape != after.shape or not torch.equal(before, after)


def test_schedule_by_epoch_is_constant_within_an_epoch() -> None:
    schedule = WarmupCosine(lr_min=0.02)
    rates = [schedule(0.1, epoch, 10, 0, 3) for epoch in range(10)]
    assert rates == [schedule(0.1, epoch, 10, 2, 3) for epoch in range(10)]
    assert rates == pytest.approx([0.02 + 0.04 * (1 + math.cos(math.pi * e / 10)) for e in range(10)])


def test_schedule_by_step_warms_up_linearly_then_follows_the_cosine() -> None:
    schedule = WarmupCosine(interval="step", warmup=2)
    rates = [schedule(0.6, epoch, 4, step, 3) for epoch in range(4) for step in range(3)]
    assert rates[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert rates[6:] == pytest.approx([0.3 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_drop_path_rises_by_epoch_and_reaches_the_network(training: Make, loop: Loop) -> None:
    run = loop(training(epochs=4))
    draws = run.network.drop_path_generator
    before = draws.get_state()
    run.take_step()
    assert run.network.drop_path == 0
    assert torch.equal(draws.get_state(), before), "nothing is dropped in the first epoch"
    run.epoch = 2
    run.take_step()
    assert run.network.drop_path == pytest.approx(0.3 * 2 / 4)
    assert not torch.equal(draws.get_state(), before)


def test_moving_average_is_its_definition() -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    expected = {name: value.clone().double() for name, value in network.state_dict().items()}
    average = MovingAverage(network, 0.4)
    for step in range(1, 8):
        with torch.no_grad():
            for value in network.state_dict().values():
                value += step
        average.update(network)
        # 2/11, 3/12, 4/13, 5/14, 0.4, ...: the decay of the first updates is smaller
        decay = min(0.4, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    found = average.network.state_dict()
    assert found.pop("1.num_batches_tracked") == network[1].num_batches_tracked == 28
    for name, value in found.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


class Tied(nn.Module):
    """A weight with two names, a complex weight, and a mask with infinite entries."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.alone = (nn.Linear(1, 1, bias=False) for _ in range(3))
        self.second.weight = self.first.weight
        self.waves = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def test_moving_average_takes_in_shared_and_complex_weights_once() -> None:
    network = Tied().requires_grad_(False)
    for weight in network.parameters():
        weight.zero_()
    average = MovingAverage(network, 0.999)
    for step, expected in ((1, 1 - 2 / 11), (2, 1 - 2 / 11 * 3 / 12)):
        for weight in network.parameters():
            weight.fill_(1.0)
        average.update(network)
        for weight in average.network.state_dict().values():
            if weight.shape != network.mask.shape:
                torch.testing.assert_close(weight.real, torch.full_like(weight.real, expected), msg=f"update {step}")
        assert torch.equal(average.network.mask, network.mask)


def test_test_does_not_depend_on_the_batches(training: Make, loop: Loop, steps: Steps) -> None:
    run = loop(training())
    steps(run, 3)
    expected, batches = run.test(), list(run.test_batches())
    run.test_batches = lambda: [
        (images[i : i + 1], labels[i : i + 1]) for images, labels in batches for i in range(len(labels))
    ]
    found = run.test()
    assert found["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-5)
    assert found["test_accuracy"] == expected["test_accuracy"]


def test_test_images_are_drawn_by_class(training: Make, loop: Loop) -> None:
    for count, expected in ((50, 50), (None, 359), (9999, 359)):
        run = loop(training(data={"test_images": count}))
        labels = torch.cat([labels for _, labels in run.test_batches()])
        assert len(labels) == expected
        assert count != 50 or labels.bincount().tolist() == [5] * 10
