"""A run directory that holds another search or training is refused, and the message names what differs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import stop_after
from tiny_searches import module_search, rows, squared_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import sgenas
from sgenas.errors import RunDirError
from sgenas.optim import SGD


def weighted(weight: float) -> Callable[..., Tensor]:
    def loss(model: Any, batch: Any) -> Tensor:
        return squared_error(model, batch) * weight

    return loss


def model(seed: int = 0, *, bias: bool = True, eps: float = 1e-5) -> nn.Module:
    torch.manual_seed(seed)
    choice = sgenas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="act")
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4, eps=eps), choice, nn.Linear(4, 1, bias=bias))


def frozen(value: float) -> nn.Module:
    found = model()
    found.register_buffer("scale", torch.tensor(value))
    return found


def arch(lr: float) -> Callable[..., torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=lr)


@dataclass(frozen=True)
class Faster(sgenas.searching.schedules.Cosine):
    """The same settings as `Cosine`."""

    def __call__(self, lr: float, epoch: int, epochs: int) -> float:
        return super().__call__(lr, min(2 * epoch, epochs), epochs)


def changed(row: int) -> TensorDataset:
    x, y = rows()[:]
    y = y.clone()
    y[row] += 1
    return TensorDataset(x, y)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rows": ({}, {"train_data": rows(80)}, "train_data.rows is 80 here, 64 there"),
    "one label": ({}, {"train_data": changed(40)}, "train_data.content differs"),
    "validation rows": ({}, {"val_data": rows(48, seed=2)}, "val_data.content differs"),
    "subset": (
        {"train_data": Subset(rows(), range(32))},
        {"train_data": Subset(rows(), range(32, 64))},
        "train_data.indices differs",
    ),
    "loader": (
        {"train_data": DataLoader(rows(), 16)},
        {"train_data": DataLoader(rows(), 8)},
        "train_data.batch_size is 8 here, 16 there",
    ),
    "list": ({"train_data": [rows(8)[:]]}, {"train_data": [rows(8, 1)[:]]}, "train_data.content differs"),
    "batch size": ({}, {"batch_size": 8}, "batch_size is 8 here, 16 there"),
    "constant of the loss": ({"loss": weighted(1.0)}, {"loss": weighted(2.0)}, "loss.code differs"),
    "loss": ({}, {"loss": sgenas.losses.mean_squared_error}, "loss.name is 'sgenas.losses.mean_squared_error' here"),
    "start weights": (
        {"model": model()},
        {"model": model(1)},
        r"start_weights differs.*same seed, or pass resume=True",
    ),
    "shapes": ({"model": model()}, {"model": model(bias=False)}, "model.parameters is 20 here, 21 there"),
    "a layer's setting": ({"model": model()}, {"model": model(eps=1e-3)}, "model.layers differs"),
    "a buffer": ({"model": frozen(1.0)}, {"model": frozen(2.0)}, "model.fixed_tensors differs"),
    "alpha optimizer": ({"arch_optimizer": arch(0.1)}, {"arch_optimizer": arch(0.2)}, "arch_optimizer.code differs"),
    "schedule": ({}, {"schedule": sgenas.searching.schedules.Cosine(0.01)}, "schedule.final is 0.01 here"),
    "trajectory": ({}, {"trajectory_optimizer": SGD(0.1)}, "trajectory_optimizer"),
    "warm-up": ({}, {"warmup_epochs": 1}, "warmup_epochs is 1 here, 0 there"),
    "alpha steps": ({}, {"alpha_every": 2}, "alpha_every is 2 here, 1 there"),
    "regularizer": ({}, {"regularizer": sgenas.spaces.BetaDecay(weight=0.1)}, "regularizer"),
    "budget": ({}, {"budget": sgenas.Budget(max_params=1000)}, "budget"),
    "precision": ({}, {"precision": "bf16"}, "precision is 'bf16' here"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_search_in_the_directory_is_refused(name: str, tmp_path: Path) -> None:
    first, second, said = CHANGES[name]
    module_search(**{"run_dir": tmp_path, "epochs": 2, "stop": stop_after(1)} | first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunDirError, match=said) as caught:
        module_search(**{"run_dir": tmp_path, "epochs": 2} | second)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert module_search(**{"run_dir": tmp_path, "epochs": 2} | first).finished, "the same search goes on"
    assert module_search(**{"run_dir": tmp_path, "epochs": 2, "overwrite": True} | second).finished


def test_resume_takes_a_model_that_started_from_other_weights(tmp_path: Path) -> None:
    """A script without a seed can go on: all weights are in the checkpoint."""
    whole = module_search(model(), run_dir=tmp_path / "whole")
    module_search(model(), run_dir=tmp_path / "run", stop=stop_after(2))
    result = module_search(model(1), run_dir=tmp_path / "run", resume=True)
    assert all(torch.equal(result.weights[name], tensor) for name, tensor in whole.weights.items())
    with pytest.raises(RunDirError, match="fixed_tensors"):
        module_search(frozen(1.0), run_dir=tmp_path / "run", resume=True, overwrite=False)


def training(path: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {"network": nn.Linear(1, 1), "train_data": rows(), "loss": squared_error, "epochs": 1}
    return sgenas.train(run_dir=path, batch_size=16, progress=False, device="cpu", **given | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_data": changed(3)}, "train_data.content differs"),
        ({"test_data": rows(8)}, "test_data.type"),
        ({"loss": weighted(2.0)}, "loss"),
        ({"network": nn.Linear(1, 1, bias=False)}, "model.parameters is 1 here, 2 there"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.5)}, "optimizer"),
    ],
)
def test_other_training_in_the_directory_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    training(tmp_path)
    with pytest.raises(RunDirError, match=said):
        training(tmp_path, **changes)
    assert training(tmp_path).finished


def cell_search(path: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {"channels": 2, "layers": 3, "nodes": 1, "num_classes": 2, "input_channels": 1}
    settings = {name: changes.pop(name) for name in ("channels", "activation", "pooling") if name in changes}
    space = sgenas.spaces.darts(**given | settings, operations=("max_pool_3x3", "skip_connect"))
    images = TensorDataset(torch.zeros(12, 1, 8, 8), torch.arange(12) % 2)
    fixed: dict[str, Any] = {"batch_size": 4, "epochs": 2, "run_dir": path, "progress": False, "device": "cpu"}
    return sgenas.search(space, images, images, **fixed | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "silu"}, "space.settings.activation is 'silu' here, 'relu' there"),
        ({"pooling": "smooth"}, "space.settings.pooling"),
        ({"channels": 4}, "space.settings.channels is 4 here, 2 there"),
        ({"relaxation": sgenas.spaces.Dirichlet()}, "relaxation.name is 'dirichlet' here, 'softmax' there"),
        ({"weight_optimizer": sgenas.optim.AdamW(1e-3)}, "weight_optimizer.name is 'adamw' here, 'adam' there"),
        ({"estimator": sgenas.FiniteDifference()}, "estimator.name"),
        ({"schedule": Faster(0.0)}, "schedule.type"),
    ],
    ids=str,
)
def test_other_search_of_cells_in_the_directory_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    same: dict[str, Any] = {
        "weight_optimizer": sgenas.optim.Adam(1e-3, weight_decay=sgenas.optim.AdamW(1e-3).weight_decay),
        "schedule": sgenas.searching.schedules.Cosine(0.0),
    }
    cell_search(tmp_path, **same, stop=stop_after(1))
    with pytest.raises(RunDirError, match=said):
        cell_search(tmp_path, **same | changes)
    assert cell_search(tmp_path, **same).finished


def test_dropout_of_the_space_is_part_of_the_search(tmp_path: Path) -> None:
    fixed: dict[str, Any] = {"loss": squared_error, "batch_size": 16, "epochs": 1, "progress": False, "device": "cpu"}
    sgenas.search(sgenas.ModuleSpace(model()), rows(), rows(), run_dir=tmp_path, stop=stop_after(1), **fixed)
    with pytest.raises(RunDirError, match="space.dropout is True here"):
        sgenas.search(sgenas.ModuleSpace(model(), dropout=True), rows(), rows(), run_dir=tmp_path, **fixed)
