import json
from typing import Any

import pytest

from sgenas.engine import (
    AlphaSettings,
    DataSettings,
    EstimatorSettings,
    SearchConfig,
    SpaceSettings,
    WeightSettings,
)
from sgenas.errors import ConfigError


def test_json_both_ways() -> None:
    config = SearchConfig(
        epochs=7,
        data=DataSettings(data="digits", train_images=100),
        space=SpaceSettings(operations="paper"),
        estimator=EstimatorSettings(directions=3, smoothing="auto", blocks="table"),
        weights=WeightSettings(weights="separate", trajectory_lr=None, grad_clip=None),
        alphas=AlphaSettings(alpha_optimizer="sgd", alpha_lr=0.01),
    )
    assert SearchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SearchConfig(method="nas"),
            "--method must be one of darts, pc-darts, fair-darts, beta-darts, got 'nas'",
        ),
        (lambda: SearchConfig(epochs=0), "--epochs must be >= 1, got 0"),
        (lambda: SearchConfig(seed=-1), "--seed must be from 0"),
        (lambda: SearchConfig(precision="half"), "--precision must be one of float32, bfloat16, got 'half'"),
        (
            lambda: SearchConfig(
                precision="bfloat16",
                estimator=EstimatorSettings(computation="directional"),
                weights=WeightSettings(grad_clip=None),
            ),
            "--precision must be float32 with --computation directional, which takes forward-mode",
        ),
        (lambda: EstimatorSettings(memory_limit=0.0), "--memory-limit must be > 0"),
        (
            lambda: EstimatorSettings(computation="loop", memory_limit=1.0),
            "--memory-limit only applies with --computation auto or vectorised, got 1.0",
        ),
        (
            lambda: SearchConfig(estimator=EstimatorSettings(batch_fraction=0.01)),
            "--batch-fraction must be large enough to leave 2 of 64 images, got 1",
        ),
        (lambda: EstimatorSettings(batch_fraction=0.0), r"--batch-fraction must be in \(0, 1\], got 0.0"),
        (
            lambda: EstimatorSettings(estimator="second-order", batch_fraction=0.5),
            "--batch-fraction only applies with --estimator sge, got 0.5",
        ),
        (lambda: EstimatorSettings(blocks="row"), "--blocks must be one of joint, table, edge, got 'row'"),
        (
            lambda: EstimatorSettings(combine="sum"),
            "--combine must be one of mean, least-squares, got 'sum'",
        ),
        (
            lambda: EstimatorSettings(estimator="evolution", combine="least-squares"),
            "--combine only applies with --estimator sge, got 'least-squares'",
        ),
        (
            lambda: EstimatorSettings(estimator="evolution", blocks="edge"),
            "--blocks only applies with --estimator sge, got 'edge'",
        ),
        (
            lambda: EstimatorSettings(smoothing="small"),
            "--smoothing must be auto or a number > 0, got 'small'",
        ),
        (
            lambda: EstimatorSettings(estimator="evolution", smoothing="auto"),
            "--smoothing must be a number > 0, got 'auto'",
        ),
        (
            lambda: EstimatorSettings(estimator="unrolled", last_steps=0),
            "--last-steps must be >= 1, got 0",
        ),
        (
            lambda: EstimatorSettings(estimator="unrolled", inner_steps=3, last_steps=4),
            "--last-steps must be at most --inner-steps 3, got 4",
        ),
        (
            lambda: EstimatorSettings(last_steps=1),
            "--last-steps only applies with --estimator unrolled, got 1",
        ),
        (lambda: EstimatorSettings(estimator="neumann", products=0), "--products must be >= 1, got 0"),
        (
            lambda: EstimatorSettings(products=3),
            "--products only applies with --estimator neumann or conjugate-gradient, got 3",
        ),
        (lambda: EstimatorSettings(estimator="neumann", damping=-1.0), "--damping must be >= 0"),
        (lambda: EstimatorSettings(estimator="neumann", scale=0.0), "--scale must be > 0 and finite"),
        (
            lambda: EstimatorSettings(estimator="conjugate-gradient", scale=0.1),
            "--scale only applies with --estimator neumann, got 0.1",
        ),
        (
            lambda: EstimatorSettings(estimator="conjugate-gradient", tolerance=1.0),
            r"--tolerance must be in \[0, 1\), got 1.0",
        ),
        (
            lambda: SearchConfig(compile=True, estimator=EstimatorSettings(estimator="neumann")),
            "--compile must be off with --estimator neumann, got True",
        ),
        (
            lambda: SearchConfig(compile=True, estimator=EstimatorSettings(computation="directional")),
            "--compile must be off with --computation directional, got True",
        ),
        (lambda: SearchConfig(log_every=0), "--log-every must be >= 1"),
        (lambda: SearchConfig(checkpoint_every=0), "--checkpoint-every must be >= 1"),
        (
            lambda: SearchConfig(epochs=3, alphas=AlphaSettings(warmup_epochs=3)),
            "--warmup-epochs must be below --epochs 3",
        ),
        (lambda: DataSettings(data=""), "--data must be the name"),
        (lambda: DataSettings(batch_size=1), "--batch-size must be >= 2, got 1"),
        (lambda: DataSettings(train_fraction=1.0), r"--train-fraction must be in \(0, 1\), got 1.0"),
        (lambda: DataSettings(train_images=0), "--train-images must be >= 2, got 0"),
        (lambda: DataSettings(augment="all"), "--augment must be one of auto, none, got 'all'"),
        (lambda: DataSettings(cutout=-1), "--cutout must be >= 0, got -1"),
        (lambda: SpaceSettings(layers=2), "--layers must be >= 3, got 2"),
        (lambda: SpaceSettings(channels=1), "--channels must be >= 2"),
        (lambda: SpaceSettings(nodes=0), "--nodes must be >= 1"),
        (lambda: SpaceSettings(operations="all"), "--operations must be one of darts, paper"),
        (
            lambda: EstimatorSettings(estimator="third-order"),
            "--estimator must be one of first-order, .*, evolution, got 'third-order'",
        ),
        (lambda: EstimatorSettings(directions=0), "--directions must be >= 1, got 0"),
        (lambda: EstimatorSettings(smoothing=0.0), "--smoothing must be > 0 and finite, got 0.0"),
        (lambda: EstimatorSettings(smoothing=-0.1), "--smoothing must be > 0"),
        (lambda: EstimatorSettings(smoothing=float("nan")), "--smoothing must be > 0"),
        (lambda: EstimatorSettings(inner_steps=0), "--inner-steps must be >= 1"),
        (
            lambda: EstimatorSettings(estimator="first-order", directions=3),
            "--directions only applies with --estimator sge or evolution, got 3 without it",
        ),
        (
            lambda: EstimatorSettings(computation="magic"),
            "--computation must be one of auto, loop, .* got 'magic'",
        ),
        (
            lambda: SearchConfig(estimator=EstimatorSettings(computation="directional")),
            "--grad-clip must be None with --computation directional, .* got 5.0",
        ),
        (lambda: WeightSettings(weights="shared"), "--weights must be one of trajectory, separate"),
        (lambda: WeightSettings(lr=0.0), "--lr must be > 0"),
        (lambda: WeightSettings(lr_min=1.0), "--lr-min must be at most --lr 0.025, got 1.0"),
        (lambda: WeightSettings(momentum=1.0), r"--momentum must be in \[0, 1\)"),
        (lambda: WeightSettings(weight_decay=-1.0), "--weight-decay must be >= 0"),
        (lambda: WeightSettings(grad_clip=0.0), "--grad-clip must be > 0"),
        (lambda: WeightSettings(trajectory_lr=0.1), "--trajectory-lr only applies with --weights separate"),
        (lambda: AlphaSettings(alpha_optimizer="lion"), "--alpha-optimizer must be one of adam, sgd"),
        (lambda: AlphaSettings(alpha_lr=0.0), "--alpha-lr must be > 0"),
        (lambda: AlphaSettings(alpha_beta1=1.0), r"--alpha-beta1 must be in \[0, 1\)"),
        (
            lambda: AlphaSettings(alpha_optimizer="sgd", alpha_beta1=0.9),
            "--alpha-beta1 only applies with --alpha-optimizer adam",
        ),
        (lambda: AlphaSettings(warmup_epochs=-1), "--warmup-epochs must be >= 0"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def changed(path: list[str], value: Any) -> dict[str, Any]:
    data = SearchConfig().to_dict()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "config must be an object, got list"),
        (changed(["colour"], 1), "got unknown colour"),
        (changed(["data", "colour"], 1), "config.data must have .* got unknown colour"),
        ({"epochs": 3}, "got missing method, seed"),
        (changed(["epochs"], "3"), "config.epochs must be int, got '3'"),
        (changed(["epochs"], True), "config.epochs must be int, got True"),
        (changed(["data", "train_images"], 1.5), "config.data.train_images must be int or null, got 1.5"),
        (changed(["weights"], None), "config.weights must be an object, got NoneType"),
        (changed(["epochs"], 0), "--epochs must be >= 1, got 0"),
    ],
)
def test_bad_json(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig.from_dict(data)


def test_whole_numbers_are_read_where_floats_are_meant() -> None:
    config = SearchConfig.from_dict(changed(["weights", "lr"], 1))
    assert config.weights.lr == 1.0
    assert isinstance(config.weights.lr, float)
