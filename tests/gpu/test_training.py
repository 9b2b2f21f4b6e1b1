"""Training runs on a pretended GPU, with the CPU's numbers, and what their files are good for on a CPU."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_runs import assert_same_histories, in_double, pictures
from pretended_gpu import gpu_machine
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_cells import TINY_CELLS
from torch import nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas.data import TrainImageSettings
from sgenas.device import CUBLAS_DETERMINISTIC, CUBLAS_WORKSPACE
from sgenas.spaces.nasbench201_space.strings import from_string
from sgenas.training import TrainConfig, TrainResult, evaluate_run

CONFIG = TrainConfig(
    TINY_CELLS,
    epochs=2,
    threads=1,
    precision="ieee",
    channels=2,
    layers=3,
    drop_path=0.3,
    auxiliary_weight=0.0,
    ema=0.9,
    nesterov=True,
    label_smoothing=0.1,
    data=TrainImageSettings(data="pictures", batch_size=8, cutout=2, class_weights="balanced"),
)


def train(device: str, run_dir: Path | None = None, *, side: int = 8, stop: Any = None, **changes: Any) -> TrainResult:
    """The result of CONFIG with changes, three steps per epoch."""
    config = TrainConfig.from_dict(CONFIG.to_dict() | {"device": device, **changes})
    given = {} if stop is None else {"stop": stop}
    return config.run(run_dir, images=pictures(side=side), progress=False, **given)


WAYS: dict[str, dict[str, Any]] = {
    "darts": {},
    "deterministic": {"deterministic": True, "drop_path": 0.0, "ema": None, "schedule": "step", "warmup": 1},
}
BENCHMARK: dict[str, Any] = {
    "genotype": from_string(
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
    ).to_dict(),
    "drop_path": None,
    "layers": 1,
    "data": CONFIG.to_dict()["data"] | {"class_weights": "none"},
}


@pytest.mark.parametrize("name", WAYS)
def test_training_on_a_gpu_is_that_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC[0])
    assert_same_histories(partial(train, **WAYS[name]), 2e-3)


def test_training_of_a_benchmark_cell_is_that_of_the_cpu() -> None:
    """In float64: rounding of float32 grows to a percent within these six steps."""
    with in_double():
        assert_same_histories(partial(train, **BENCHMARK))


@pytest.mark.parametrize("precision", ["auto", "tf32"])
def test_every_precision_trains_with_the_auxiliary_head(precision: str) -> None:
    """Autocast ignores pretended tensors, so only that it runs."""
    with gpu_machine():
        assert train("cuda", side=32, precision=precision, auxiliary_weight=0.4, epochs=2).finished


def test_stopped_training_resumes_bit_for_bit_and_is_tested_on_either_device(tmp_path: Path) -> None:
    images = pictures()
    with gpu_machine():
        train("cuda", tmp_path / "whole")
        assert not train("cuda", tmp_path / "run", stop=stop_after(4)).finished
        assert train("cuda", tmp_path / "run").finished
        on_gpu = evaluate_run(tmp_path / "run", device="cuda", images=images)
        assert on_gpu.equal
    assert_same_runs(tmp_path / "whole", tmp_path / "run")
    on_cpu = evaluate_run(tmp_path / "run", device="cpu", images=images)
    assert on_cpu.test_loss == pytest.approx(on_gpu.test_loss, rel=1e-4)


def test_module_with_dropout_trains_on_a_gpu_and_draws_from_no_global_generator() -> None:
    with gpu_machine() as machine:
        network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
        rows = TensorDataset(torch.randn(16, 3), torch.arange(16) % 2)
        before = [each.get_state() for each in (torch.default_generator, *machine.generators)]
        result = sgenas.train(network, rows, epochs=1, batch_size=8, device="cuda", progress=False)
        after = [each.get_state() for each in (torch.default_generator, *machine.generators)]
        assert all(map(torch.equal, before, after))
        assert result.finished
