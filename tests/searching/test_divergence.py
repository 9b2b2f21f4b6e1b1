"""NaN and infinity end a run before anything is derived from them, and the message blames what is at fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_searches import module_search, net, rows, squared_error
from torch import Tensor, nn

import sgenas
from sgenas.errors import DivergenceError
from sgenas.optim import SGD
from sgenas.run.callbacks import Callback


class Counted:
    """A loss that is finite and has a NaN slope once its run has come to the last step."""

    def __init__(self) -> None:
        self.last = False

    def __call__(self, model: Any, batch: Any) -> Tensor:
        loss = squared_error(model, batch)
        # sqrt has slope infinity at 0, and 0 * infinity is NaN
        return loss + ((loss - loss.detach()) * 0).abs().sqrt() if self.last else loss


class Tell(Callback):
    def __init__(self, loss: Counted, step: int) -> None:
        self.loss, self.step = loss, step

    def on_step_start(self, run: Any) -> None:
        self.loss.last = run.step == self.step


@pytest.mark.parametrize("settings", [{}, {"inner_steps": 2, "epochs": 4}, {"alpha_every": 3}], ids=str)
def test_nan_slope_in_the_last_step_is_no_choice(settings: dict[str, Any], tmp_path: Path) -> None:
    loss = Counted()
    told = Tell(loss, 7)
    with pytest.raises(DivergenceError, match="step 8") as caught:
        module_search(loss=loss, callbacks=[told], run_dir=tmp_path, **settings)
    assert "\n" not in str(caught.value)
    steps = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "NaN" in line]
    assert not steps
    # choices.json is of the last epoch that was finite
    assert len(np.load(tmp_path / "alphas.npz")["epoch"]) < settings.get("epochs", 2) + 1


def with_nan(count: int = 64, value: float = float("nan")) -> Any:
    x, y = rows(count)[:]
    x = x.clone()
    x[-1] = value
    return [(a, b) for a, b in zip(x.split(16), y.split(16), strict=True)]


@pytest.mark.parametrize("side", ["train_data", "val_data"])
@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_data_is_blamed(side: str, warmup: int, value: float) -> None:
    with pytest.raises(DivergenceError, match=rf"batch 4 of {side} has NaN or infinite") as caught:
        module_search(**{side: with_nan(value=value)}, warmup_epochs=warmup, epochs=2, log_every=100)
    assert "learning rate" not in str(caught.value)
    assert "\n" not in str(caught.value)


def entropy_loss(model: Callable[..., Tensor], batch: Any) -> Tensor:
    x, labels = batch
    return F.cross_entropy(model(x), labels)


def labeled(*labels: int) -> list[Any]:
    return [(torch.randn(4, 1), torch.full((4,), label)) for label in labels]


@pytest.mark.parametrize("side", ["train_data", "val_data"])
def test_batch_without_a_label_that_counts_is_blamed(side: str) -> None:
    choice = sgenas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="act")
    model = nn.Sequential(nn.Linear(1, 4), choice, nn.Linear(4, 3))
    data = {"train_data": labeled(0, 1, 2), "val_data": labeled(1, 2, 0)} | {side: labeled(0, -100, 1)}
    with pytest.raises(DivergenceError, match=rf"batch 2 of {side} has no label but -100"):
        module_search(model, loss=entropy_loss, **data)


def test_learning_rate_is_blamed_for_finite_data() -> None:
    with pytest.raises(DivergenceError, match=r"search diverged; try a lower learning rate"):
        module_search(weight_optimizer=SGD(lr=1e30))
    # infinities that steps went well with are no fault
    masked = [(x, y, torch.tensor([0.0, -torch.inf])) for x, y in with_nan(value=1.0)]
    with pytest.raises(DivergenceError, match=r"search diverged; try a lower learning rate"):
        module_search(
            train_data=masked,
            loss=lambda model, batch: squared_error(model, batch[:2]),
            callbacks=[Raise(4)],
            epochs=3,
        )


class Raise(Callback):
    """Makes the weights infinite at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_start(self, run: Any) -> None:
        if run.step == self.step:
            for tensor in run.state.weights.values():
                tensor.fill_(1e38)


@pytest.mark.parametrize("log_every", [1, 100])
def test_training_blames_its_data(log_every: int) -> None:
    with pytest.raises(DivergenceError, match="batch 4 of train_data has NaN"):
        sgenas.train(
            nn.Linear(1, 1),
            with_nan(),
            loss=squared_error,
            epochs=2,
            progress=False,
            device="cpu",
            log_every=log_every,
            optimizer=SGD(0.1),
        )


def test_first_step_hints_at_the_loss_itself() -> None:
    with pytest.raises(DivergenceError, match="initial weights"):
        module_search(net(), loss=lambda model, batch: squared_error(model, batch) * float("inf"))
