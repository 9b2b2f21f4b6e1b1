"""Searches that take less than a second: cells on digits, and choices in a small MLP."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import sgenas
from sgenas import SearchConfig
from sgenas.data import SearchImageSettings
from sgenas.run.loop import Loop
from sgenas.searching.loop import Search
from sgenas.spaces import DartsSettings

CELLS = SearchConfig(
    epochs=2,
    log_every=2,
    checkpoint_every=2,
    data=SearchImageSettings(data="digits", train_images=48, batch_size=8),
    space=DartsSettings(channels=2, layers=3, nodes=1, operations=("max_pool_3x3", "skip_connect", "dil_conv_3x3")),
)
"""Three steps per epoch, in cells with three operations on two edges."""


def cells(**changes: Any) -> SearchConfig:
    """CELLS with changes; a dict changes the fields of a component: ``cells(epochs=1, data={"cutout": 2})``."""
    new = {
        name: replace(getattr(CELLS, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return replace(CELLS, **new)


class Flip(nn.Module):
    """The features of another row of the batch: noise for a target that depends on a row's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(0)


def net(*more: nn.Module) -> nn.Sequential:
    """Can fit y = |x| only with the option ``own``."""
    torch.manual_seed(0)
    whose = sgenas.Choice({"others": Flip(), "own": nn.Identity()}, name="whose")
    return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), *more, whose, nn.Linear(8, 1))


def rows(count: int = 64, seed: int = 0) -> TensorDataset:
    """Pairs (x, |x|)."""
    x = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.abs())


def squared_error(model: Callable[..., Tensor], batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def module_search(model: nn.Module | None = None, **settings: Any) -> Any:
    """`sgenas.search` in ``net()``: 4 training and 3 validation batches, 2 epochs."""
    given: dict[str, Any] = {"train_data": rows(), "val_data": rows(48, seed=1), "loss": squared_error}
    given |= {"epochs": 2, "batch_size": 16, "progress": False, "device": "cpu"} | settings
    return sgenas.search(sgenas.ModuleSpace(model or net()), **given)


def unstarted(start: Callable[[], object]) -> Search:
    """The `Search` that ``start`` would run, before its first step."""
    found: list[Loop] = []
    plain, Loop.run = Loop.run, lambda self, stop=None: found.append(self)
    try:
        start()
    finally:
        Loop.run = plain
    (run,) = found
    assert isinstance(run, Search)
    return run


def unstarted_cells(**changes: Any) -> Search:
    """The `Search` of ``cells(**changes)``."""
    return unstarted(partial(cells(**changes).run, progress=False))


def steps(run: Search, count: int) -> Iterator[dict[str, Tensor]]:
    """Takes that many steps without logs and checkpoints; yields what each logs."""
    for _ in range(count):
        values = run.take_step()
        run.step, run.step_in_epoch = run.step + 1, run.step_in_epoch + 1
        if run.epoch_is_over():
            run.epoch, run.step_in_epoch = run.epoch + 1, 0
        yield values
