import math

import pytest

from sgenas.engine import SearchConfig
from sgenas.experiments.presets import PRESETS, ROWS, Row, preset, search_config, train_settings
from sgenas.experiments.published import TABLE_1


def test_the_rows_are_those_of_the_paper_in_its_order() -> None:
    assert [row.name for row in ROWS] == [
        *("darts-first-order", "pc-darts-first-order", "fair-darts-first-order", "beta-darts-first-order"),
        *("darts-sge", "pc-darts-sge", "fair-darts-sge", "beta-darts-sge"),
    ]
    # dicts keep their order, and the paper prints one data set beside the other
    for data in ("cifar10", "cifar100"):
        assert [key[1:] for key in TABLE_1 if key[0] == data] == [(row.method, row.estimator) for row in ROWS]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_has_settings_that_can_be_run_again(name: str, row: Row) -> None:
    config = search_config(name, row, "digits", 3)
    assert SearchConfig.from_dict(config.to_dict()) == config
    assert (config.method, config.estimator.estimator) == (row.method, row.estimator)
    assert (config.data.data, config.seed) == ("digits", 3)
    training = train_settings(name, "digits", 3)
    assert (training.data.data, training.seed) == ("digits", 3)


def test_paper_has_the_settings_of_the_sources_and_of_the_paper() -> None:
    base = search_config("paper", ROWS[1], "cifar10", 0)
    assert (base.epochs, base.data.batch_size, base.weights.lr, base.alphas.warmup_epochs) == (
        50,
        256,
        0.1,
        15,
    )
    assert (base.alphas.alpha_optimizer, base.alphas.alpha_lr) == ("adam", 6e-4)
    sge = search_config("paper", ROWS[5], "cifar10", 0)
    assert (sge.epochs, sge.data.batch_size, sge.weights.lr, sge.alphas.warmup_epochs) == (50, 256, 0.005, 15)
    assert (sge.alphas.alpha_optimizer, sge.alphas.alpha_lr) == ("sgd", 0.01)
    assert (sge.estimator.directions, sge.estimator.smoothing, sge.weights.trajectory_lr) == (10, 0.01, 0.01)
    assert search_config("paper", ROWS[2], "cifar10", 0).space.derivation is None
    training = train_settings("paper", "cifar10", 0)
    assert (training.epochs, training.optimizer.lr, training.network.channels) == (600, 0.005, None)


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_short_searches_take_equal_numbers_of_steps_and_warm_up_for_the_same_share(name: str) -> None:
    configs = [search_config(name, row, "digits", 0) for row in ROWS]
    steps = {
        config.epochs * (config.data.train_images // 2 // config.data.batch_size)
        for config in configs
        if config.data.train_images is not None
    }
    assert len(steps) == 1
    for row, config in zip(ROWS, configs, strict=True):
        assert config.alphas.warmup_epochs == (round(0.3 * config.epochs) if row.method == "pc-darts" else 0)
        assert config.space.derivation == ("top2" if row.method == "fair-darts" else None)
        own = SearchConfig.of_method(row.method).alphas.alpha_lr
        assert math.isclose(config.alphas.alpha_lr, preset(name).alpha_lr_scale * own)


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_short_presets_search_with_sge_as_it_is_by_default(name: str) -> None:
    base, sge = (
        search_config(name, Row("darts", estimator), "digits", 0) for estimator in ("first-order", "sge")
    )
    assert (base.estimator.estimator, sge.estimator.estimator) == ("first-order", "sge")
    assert sge.alphas == base.alphas
    assert sge.weights.weights == "trajectory"
    assert (sge.space.activation, sge.estimator.smoothing) == ("auto", None)
