import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stopping import stop_after
from torch import nn

from sgenas import data
from sgenas.engine import (
    TrainConfig,
    Training,
    parts,
    resume_search,
    resume_training,
    run_search,
    run_training,
)
from sgenas.engine import checkpoint as checkpoints
from sgenas.engine.average import RunningAverage
from sgenas.engine.run_folder import RunFolder, read_settings
from sgenas.errors import CheckpointError, ConfigError, DataError, DivergenceError, RunFolderError
from sgenas.nets import build, published
from sgenas.spaces import Genotype
from sgenas.spaces.nasbench201_strings import from_string

Make = Callable[..., TrainConfig]
BENCHMARK_CELL = from_string(
    "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_training_fills_its_run_folder(training: Make, tmp_path: Path) -> None:
    config = training()
    result = run_training(config, tmp_path / "run")
    assert result.finished
    names = {path.name for path in result.path.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "checkpoint.pt", "checkpoint-previous.pt", "genotype.json"),
        *("run.lock", "tensorboard"),
    }
    assert read_settings(result.path) == config
    assert Genotype.load(result.path / "genotype.json") == config.genotype == result.genotype
    head = json.loads((result.path / "config.json").read_text())
    assert head["kind"] == "training"
    assert head["environment"]["images"] == {"training": 96, "test": 60}
    assert head["environment"]["input"] == [1, 8, 8]

    found = rows(result.path)
    assert [(row["kind"], row["epoch"], row["step"]) for row in found] == [
        *(("step", 0, 2), ("step", 0, 3), ("epoch", 0, 3)),
        *(("step", 1, 4), ("step", 1, 6), ("epoch", 1, 6)),
        *(("step", 2, 8), ("step", 2, 9), ("epoch", 2, 9)),
    ]
    assert set(found[0]) == {"kind", "epoch", "step", "lr", "loss", "accuracy", "seconds"}
    last = found[-1]
    assert last == result.epochs[-1]
    assert (last["forward"], last["backward"], last["images"]) == (9, 9, 9 * 32)
    assert last["peak_memory_bytes"] > 10 * 2**20
    assert last["seconds"] > 0
    assert last["device_seconds"] > 0
    accuracies = [row["test_accuracy"] for row in result.epochs]
    assert [row["best_test_accuracy"] for row in result.epochs] == list(np.maximum.accumulate(accuracies))


def by_hand(config: TrainConfig, steps: int) -> tuple[nn.Module, nn.Module]:
    """The first `steps` steps, written out in plain PyTorch; (network, running average)."""
    images = parts.load_images(config, test=True)
    augment = parts.make_augmentation(config, images, images.train)
    stream = data.BatchStream(
        images.train, config.data.batch_size, augment, parts.generator(config.seed, "training batches")
    )
    network = build(
        config.genotype,
        channels=config.network.channels,
        layers=config.network.layers,
        classes=len(images.classes),
        input_channels=images.channels,
        auxiliary=config.auxiliary_weight > 0,
        generator=parts.generator(config.seed, "weights"),
    ).to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    network.drop_path_generator = parts.generator(config.seed, "drop path")
    settings = config.optimizer
    optimizer = torch.optim.SGD(
        network.parameters(), settings.lr, settings.momentum, 0, settings.weight_decay, settings.nesterov
    )
    per_epoch = stream.batches_per_pass
    for step in range(steps):
        network.drop_path = config.drop_path * (step // per_epoch) / config.epochs
        time = step / per_epoch
        if time < settings.warmup:
            lr = settings.lr * (step + 1) / (settings.warmup * per_epoch)
        else:
            share = (time - settings.warmup) / (config.epochs - settings.warmup)
            lr = settings.lr * (1 + math.cos(math.pi * share)) / 2
        optimizer.param_groups[0]["lr"] = lr
        batch, labels = next(stream)
        output = network(batch.contiguous(memory_format=torch.channels_last))
        logits = output if isinstance(output, tuple) else (output,)
        factors = (1.0, config.auxiliary_weight)
        loss = sum(
            factor * F.cross_entropy(part, labels, label_smoothing=settings.label_smoothing)
            for factor, part in zip(factors, logits, strict=False)
        )
        optimizer.zero_grad()
        loss.backward()
        if settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip)
        optimizer.step()
        decay = min(settings.ema or 0.0, (2 + step) / (11 + step))
        with torch.no_grad():
            for name, value in average.state_dict().items():
                now = network.state_dict()[name]
                value.copy_(decay * value + (1 - decay) * now if value.is_floating_point() else now)
    return network, average


@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_loop_is_what_its_settings_say(clip: float | None, training: Make, tmp_path: Path) -> None:
    config = training(optimizer={"grad_clip": clip})
    run = Training(config, RunFolder(tmp_path))
    for _ in range(7):
        run._take_step()
        run._count_step()
        if run.step_in_epoch == run.steps_per_epoch:
            run._next_epoch()
    network, average = by_hand(config, 7)
    for ours, theirs in ((run.network, network), (run.average.network, average)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    # the two networks must not be equal for another reason
    first, last = run.network.state_dict(), run.average.network.state_dict()
    assert not torch.allclose(first["classifier.weight"], last["classifier.weight"], atol=1e-4)


def test_the_auxiliary_head_trains_too(training: Make, photos: str, tmp_path: Path) -> None:
    changes = {"data": photos, "train_images": None, "test_images": None, "batch_size": 6}
    config = training(data=changes, network={"auxiliary_weight": 0.7, "drop_path": 0.0})
    run = Training(config, RunFolder(tmp_path))
    run._take_step()
    network, _ = by_hand(config, 1)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(run.network.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    logits, auxiliary, labels = torch.randn(4, 2), torch.randn(4, 2), torch.tensor([0, 1, 1, 0])

    def smoothed(values: torch.Tensor) -> torch.Tensor:
        target = 0.9 * F.one_hot(labels, 2) + 0.1 / 2
        return -(target * values.log_softmax(dim=1)).sum(dim=1).mean()

    loss, main = run.loss((logits, auxiliary), labels)
    torch.testing.assert_close(loss, smoothed(logits) + 0.7 * smoothed(auxiliary))
    assert main is logits
    torch.testing.assert_close(run.loss(logits, labels)[0], smoothed(logits))
    # testing has no auxiliary output, and knows no smoothing
    test_loss, _ = run.evaluate()
    batch = run._augment.plain(run.test.images)
    plain = F.cross_entropy(run.average.network(batch), run.test.labels)
    assert test_loss == pytest.approx(plain.item(), rel=1e-5)


def test_a_training_learns(training: Make, tmp_path: Path) -> None:
    config = training(
        epochs=8,
        data={"train_images": 800, "test_images": None, "batch_size": 32, "cutout": 0},
        network={"channels": 8, "drop_path": 0.0},
        optimizer={"lr": 0.1},
    )
    result = run_training(config, tmp_path / "run")
    assert result.epochs[-1]["test_accuracy"] > 0.8, "chance is 0.1"
    assert result.epochs[-1]["train_loss"] < result.epochs[0]["train_loss"]


def test_another_network_trains_by_the_same_settings(training: Make, tmp_path: Path) -> None:
    def linear(images: data.ImageData) -> nn.Module:
        pixels = images.channels * images.height * images.width
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, len(images.classes)))

    torch.manual_seed(0)
    config = training(optimizer={"ema": None})
    run = Training(config, RunFolder(tmp_path), make_network=linear)
    weight = run.network[1].weight.detach().clone()
    run._take_step()
    assert run.network[1].weight.shape == (10, 64)
    assert not torch.equal(run.network[1].weight, weight)
    # what the settings say of the cell's network has nothing to act on, and the rest is as it was
    assert torch.equal(
        run.stream.state_dict()["order"], after_one_step(config, tmp_path).stream.state_dict()["order"]
    )


def after_one_step(config: TrainConfig, path: Path) -> Training:
    run = Training(config, RunFolder(path))
    run._take_step()
    return run


def test_a_benchmark_cell_trains(training: Make, tmp_path: Path) -> None:
    config = training(
        genotype=BENCHMARK_CELL, epochs=1, network={"layers": 1, "drop_path": None}, optimizer={"warmup": 0}
    )
    assert config.drop_path == config.auxiliary_weight == 0
    assert run_training(config, tmp_path / "run").finished


MODES: dict[str, dict[str, Any]] = {
    "everything": {},
    "plain": {"network": {"drop_path": 0.0}, "optimizer": {"ema": None, "schedule": "epoch", "warmup": 0}},
    "benchmark": {"genotype": BENCHMARK_CELL, "network": {"layers": 1, "drop_path": None}},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_training_equals_an_uninterrupted_one(
    mode: str, training: Make, tmp_path: Path, assert_same_runs: Any
) -> None:
    config = training(**MODES[mode])
    run_training(config, tmp_path / "whole")
    for steps in (1, 3, 5):
        path = tmp_path / f"stopped-{steps}"
        assert not run_training(config, path, stop=stop_after(steps)).finished
        assert not resume_training(path, stop=stop_after(2)).finished
        assert resume_training(path).finished
        assert_same_runs(tmp_path / "whole", path)


def test_steps_after_the_last_checkpoint_are_taken_again(
    training: Make, tmp_path: Path, assert_same_runs: Any
) -> None:
    run_training(training(), tmp_path / "whole")
    run_training(training(), tmp_path / "killed", stop=stop_after(4))
    log = tmp_path / "killed" / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'{"kind": "step", "epoch": 1, "step": 6}\n{"kind": "st')
    resume_training(tmp_path / "killed")
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def test_a_run_folder_runs_again_from_its_config_alone(
    training: Make, tmp_path: Path, assert_same_runs: Any
) -> None:
    run_training(training(), tmp_path / "a")
    config = read_settings(tmp_path / "a")
    assert isinstance(config, TrainConfig)
    run_training(config, tmp_path / "b")
    assert_same_runs(tmp_path / "a", tmp_path / "b")


def after_six_steps(config: TrainConfig, path: Path) -> tuple[torch.Tensor, float]:
    run = Training(config, RunFolder(path))
    for _ in range(6):
        run._take_step()
        run._count_step()
        if run.step_in_epoch == run.steps_per_epoch:
            run._next_epoch()
    weights = torch.cat([tensor.flatten() for tensor in run.result.parameters()])
    return weights.detach(), run.evaluate()[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"epochs": 4},
        {"precision": "bfloat16"},
        *(
            {"data": {name: value}}
            for name, value in (("augment", "none"), ("cutout", 4), ("batch_size", 24))
        ),
        *({"network": {name: value}} for name, value in (("channels", 3), ("layers", 4), ("drop_path", 0.6))),
        *(
            {"optimizer": {name: value}}
            for name, value in (
                ("lr", 0.03),
                ("lr_min", 0.02),
                ("schedule", "epoch"),
                ("warmup", 0),
                ("momentum", 0.5),
                ("nesterov", False),
                ("weight_decay", 0.1),
                ("grad_clip", 0.1),
                ("label_smoothing", 0.3),
                ("ema", 0.1),
            )
        ),
    ],
    ids=str,
)
def test_every_setting_has_an_effect(changes: dict[str, Any], training: Make, tmp_path: Path) -> None:
    before, _ = after_six_steps(training(), tmp_path)
    same, _ = after_six_steps(training(), tmp_path)
    assert torch.equal(before, same)
    after, _ = after_six_steps(training(**changes), tmp_path)
    assert before.shape != after.shape or not torch.equal(before, after)


def test_fewer_test_images_are_drawn_by_class(training: Make, tmp_path: Path) -> None:
    run = Training(training(data={"test_images": 50}), RunFolder(tmp_path))
    assert sorted(run.test.labels.bincount().tolist()) == [5] * 10
    every = Training(training(data={"test_images": None}), RunFolder(tmp_path))
    assert len(every.test) == 359
    assert len(Training(training(data={"test_images": 9999}), RunFolder(tmp_path)).test) == 359


def test_learning_rate_and_drop_path_follow_their_schedules(training: Make, tmp_path: Path) -> None:
    changes = {"lr": 0.1, "lr_min": 0.02, "warmup": 0, "schedule": "epoch"}
    run = Training(training(epochs=10, optimizer=changes), RunFolder(tmp_path))
    rates, drops = [], []
    for run.epoch in range(10):
        rates.append(run.learning_rate())
        drops.append(run.drop_path())
        run.step_in_epoch = 2
        assert run.learning_rate() == rates[-1], "constant within an epoch"
        run.step_in_epoch = 0
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.06)
    assert rates[9] == pytest.approx(0.02 + 0.04 * (1 + math.cos(0.9 * math.pi)))
    assert drops == pytest.approx([0.3 * epoch / 10 for epoch in range(10)])

    run = Training(training(epochs=4, optimizer={"lr": 0.6, "warmup": 2}), RunFolder(tmp_path))
    rates = []
    for run.epoch in range(4):
        for run.step_in_epoch in range(3):
            rates.append(run.learning_rate())
    assert rates[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert rates[6:] == pytest.approx([0.3 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_drop_path_of_the_epoch_reaches_the_network(training: Make, tmp_path: Path) -> None:
    run = Training(training(epochs=4), RunFolder(tmp_path))
    before = run.drop_path_draws.get_state()
    run._take_step()
    assert run.network.drop_path == 0
    assert torch.equal(run.drop_path_draws.get_state(), before), "nothing is dropped in the first epoch"
    run.epoch = 2
    run._take_step()
    assert run.network.drop_path == pytest.approx(0.15)
    assert not torch.equal(run.drop_path_draws.get_state(), before)


def test_the_running_average_is_its_definition() -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    expected = {name: value.clone().double() for name, value in network.state_dict().items()}
    average = RunningAverage(network, 0.4)
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


def test_no_global_generator_is_used(training: Make, tmp_path: Path) -> None:
    import rich.style  # noqa: F401  its import alone draws a number

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_training(training(), tmp_path / "run")
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_what_was_measured_does_not_depend_on_the_batches_of_the_test(training: Make, tmp_path: Path) -> None:
    """Running statistics: an image's logits do not depend on those that it is tested with."""
    run = Training(training(), RunFolder(tmp_path))
    for _ in range(3):
        run._take_step()
    loss, accuracy = run.evaluate()
    order = torch.randperm(len(run.test), generator=torch.Generator().manual_seed(0))
    run.test = run.test.subset(order)
    again, same = run.evaluate()
    assert again == pytest.approx(loss, rel=1e-5)
    assert same == accuracy
    assert run.network.training, "the running average is tested, the network goes on training"


def test_a_diverging_training_says_so_and_keeps_its_checkpoint(training: Make, tmp_path: Path) -> None:
    config = training(optimizer={"lr": 1e30, "grad_clip": None, "warmup": 0})
    with pytest.raises(DivergenceError, match=r"is (nan|inf) at step 2 .*the training diverged; try"):
        run_training(config, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 0


def test_bad_input_leaves_nothing_behind(training: Make, photos: str, tmp_path: Path) -> None:
    no_test = f"folder:{tmp_path / 'photos' / 'train'}"
    for config, message in (
        (training(data={"batch_size": 97}), "--batch-size must be at most the 96 images that train, got 97"),
        (training(data={"cutout": 9}), "--cutout must be at most the image's side 8, got 9"),
        (training(data={"test_images": 9}), "--data digits --test-images 9: sample size must be from 10"),
        (training(data={"data": no_test, "train_images": None}), "must have test images, got none"),
        (training(device="abacus"), "--device must be auto or a device of this machine, got 'abacus'"),
        (
            training(network={"auxiliary_weight": 0.4}),
            "--auxiliary-weight must be 0 with images of less than 29 x 29 pixels, got 0.4",
        ),
        (training(network={"channels": 1}), "--channels must be an integer >= 2, got 1"),
        (training(network={"layers": 2}), "--layers must be an integer >= 3, got 2"),
    ):
        with pytest.raises((ConfigError, DataError), match=message) as caught:
            run_training(config, tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be >= 1, got 0"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"precision": "half"}, "--precision must be one of auto, float32, bfloat16, got 'half'"),
        ({"log_every": 0}, "--log-every must be >= 1"),
        ({"checkpoint_every": 0}, "--checkpoint-every must be >= 1"),
        ({"epochs": 1, "optimizer": {"warmup": 0}}, "--epochs must be > 1 with --drop-path"),
        ({"optimizer": {"warmup": 3}}, "--warmup must be below --epochs 3, got 3"),
        ({"optimizer": {"warmup": -1}}, "--warmup must be >= 0, got -1"),
        ({"optimizer": {"lr": 0.0}}, "--lr must be > 0 and finite, got 0.0"),
        ({"optimizer": {"lr_min": 1.0}}, "--lr-min must be at most --lr 0.025, got 1.0"),
        ({"optimizer": {"schedule": "never"}}, "--schedule must be one of epoch, step, got 'never'"),
        ({"optimizer": {"momentum": 1.0}}, r"--momentum must be in \[0, 1\), got 1.0"),
        ({"optimizer": {"momentum": 0.0}}, "--nesterov only applies with --momentum above 0, got True"),
        ({"optimizer": {"weight_decay": math.nan}}, "--weight-decay must be >= 0 and finite, got nan"),
        ({"optimizer": {"grad_clip": 0.0}}, "--grad-clip must be > 0"),
        ({"optimizer": {"label_smoothing": 1.0}}, r"--label-smoothing must be in \[0, 1\), got 1.0"),
        ({"optimizer": {"ema": 1.0}}, r"--ema must be in \(0, 1\), got 1.0"),
        ({"network": {"drop_path": 1.0}}, r"--drop-path must be in \[0, 1\), got 1.0"),
        ({"network": {"auxiliary_weight": -1.0}}, "--auxiliary-weight must be >= 0"),
        ({"data": {"test_images": 1}}, "--test-images must be >= 2, got 1"),
        ({"data": {"batch_size": 1}}, "--batch-size must be >= 2, got 1"),
        (
            {"genotype": BENCHMARK_CELL},
            "--drop-path must be 0 in the space nasbench201, which has none",
        ),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str, training: Make) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        training(**changes)
    assert "\n" not in str(caught.value)


def test_json_both_ways(training: Make) -> None:
    for config in (training(), TrainConfig(genotype=BENCHMARK_CELL)):
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    broken = training().to_dict()
    broken["genotype"]["cells"]["normal"]["edges"][0]["operation"] = "magic"
    with pytest.raises(ConfigError, match=r"config.genotype: .*'magic'"):
        TrainConfig.from_dict(broken)
    with pytest.raises(ConfigError, match="got missing genotype"):
        TrainConfig.from_dict({name: value for name, value in broken.items() if name != "genotype"})


def test_recipes() -> None:
    source = TrainConfig.of_recipe("source", genotype=published("darts-v2"))
    assert source == TrainConfig(genotype=published("darts-v2"))
    settings = source.optimizer
    assert (source.epochs, source.data.batch_size, source.data.cutout) == (600, 96, 16)
    assert (settings.lr, settings.lr_min, settings.momentum, settings.weight_decay) == (0.025, 0, 0.9, 3e-4)
    assert (settings.grad_clip, settings.schedule, settings.warmup, settings.ema) == (5.0, "epoch", 0, None)
    assert (source.drop_path, source.auxiliary_weight, settings.label_smoothing) == (0.2, 0.4, 0)
    paper = TrainConfig.of_recipe("paper", genotype=published("darts-v2")).to_dict()
    assert paper["optimizer"].pop("lr") == 0.005
    expected = source.to_dict()
    del expected["optimizer"]["lr"]
    assert paper == expected
    fast = TrainConfig.of_recipe("fast", genotype=published("darts-v2"))
    assert (fast.drop_path, fast.auxiliary_weight, fast.precision) == (0, 0, "auto")
    assert (fast.optimizer.nesterov, fast.optimizer.schedule, fast.optimizer.label_smoothing) == (
        True,
        "step",
        0.1,
    )
    assert TrainConfig.of_recipe("fast", genotype=BENCHMARK_CELL).drop_path == 0
    with pytest.raises(ConfigError, match="--recipe must be one of source, paper, fast, got 'slow'"):
        TrainConfig.of_recipe("slow", genotype=published("darts-v2"))


class TestBadCheckpoints:
    @pytest.fixture
    def path(self, training: Make, tmp_path: Path) -> Path:
        run_training(training(), tmp_path / "run", stop=stop_after(2))
        return tmp_path / "run"

    @pytest.mark.parametrize("field", ["network", "average", "optimizer", "stream", "drop_path", "sums"])
    def test_with_parts_that_do_not_fit(self, path: Path, field: str) -> None:
        state = torch.load(path / "checkpoint.pt", weights_only=True)
        state[field] = {"other": torch.zeros(2)}
        checkpoints.save(path / "checkpoint.pt", state)
        with pytest.raises(CheckpointError, match="does not fit this training"):
            resume_training(path)

    def test_of_other_images(self, path: Path) -> None:
        state = torch.load(path / "checkpoint.pt", weights_only=True)
        checkpoints.save(path / "checkpoint.pt", state | {"images_digest": "0"})
        with pytest.raises(CheckpointError, match="made with other images than --data digits holds now"):
            resume_training(path)

    def test_from_another_configuration(self, path: Path) -> None:
        head = json.loads((path / "config.json").read_text())
        head["config"]["optimizer"]["lr"] = 0.5
        (path / "config.json").write_text(json.dumps(head))
        with pytest.raises(CheckpointError, match=r"optimizer.lr is 0.5 in config.json, 0.025 there"):
            resume_training(path)


def test_a_run_is_never_overwritten_unasked(training: Make, tmp_path: Path) -> None:
    config = training(epochs=2)
    run_training(config, tmp_path / "run")
    with pytest.raises(RunFolderError, match="already holds a run.*--overwrite"):
        run_training(config, tmp_path / "run")
    run_training(training(epochs=2, seed=3), tmp_path / "run", overwrite=True)
    assert read_settings(tmp_path / "run").seed == 3


def test_a_search_and_a_training_are_told_apart(training: Make, small: Any, tmp_path: Path) -> None:
    run_training(training(epochs=2), tmp_path / "training")
    run_search(small(epochs=1), tmp_path / "search")
    with pytest.raises(ConfigError, match="must be of a search, got a training run"):
        resume_search(tmp_path / "training")
    with pytest.raises(ConfigError, match=r"must be of a training run \(`sgenas train`\), got a search"):
        resume_training(tmp_path / "search")
    head = json.loads((tmp_path / "search" / "config.json").read_text())
    for kind, good in (("search", True), ("cooking", False), (None, False)):
        (tmp_path / "search" / "config.json").write_text(json.dumps(head | {"kind": kind}))
        if good:
            assert resume_search(tmp_path / "search").finished
        else:
            with pytest.raises(ConfigError, match=f"kind must be one of search, training, got {kind!r}"):
                resume_search(tmp_path / "search")
    del head["kind"]
    (tmp_path / "search" / "config.json").write_text(json.dumps(head))
    assert resume_search(tmp_path / "search").finished, "runs from before trainings have no kind"


def test_bfloat16_follows_float32(training: Make, tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "auto", "bfloat16"):
        config = training(precision=precision, device="cpu")
        found = run_training(config, tmp_path / precision).epochs
        losses[precision] = [row["train_loss"] for row in found]
    assert losses["auto"] == losses["float32"], "auto is float32 on a CPU"
    assert losses["bfloat16"] != losses["float32"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


@pytest.mark.slow
def test_a_compiled_training_follows_the_plain_one(training: Make, tmp_path: Path) -> None:
    """Long: the compiler takes a minute on a CPU."""
    losses = []
    for compiled in (False, True):
        config = training(epochs=2, compile=compiled)
        losses.append([row["train_loss"] for row in run_training(config, tmp_path / str(compiled)).epochs])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_on_the_gpu(training: Make, tmp_path: Path) -> None:
    found = run_training(training(device="cuda", precision="auto"), tmp_path / "run").epochs
    assert math.isfinite(found[-1]["test_loss"])
    assert found[-1]["peak_memory_bytes"] > 0
