"""Parts from outside the package: registered by name, then a search with all of them from a configuration."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_searches import cells, module_search

import sgenas
from sgenas import tree
from sgenas.bilevel import Cost, Estimator
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.data import DATASET_SOURCES
from sgenas.data.images import ImageData, ImageSet
from sgenas.data.sources import DatasetSource
from sgenas.errors import InvalidValueError
from sgenas.methods import METHODS, Method
from sgenas.optim import INNER_OPTIMIZERS, InnerState
from sgenas.run.callbacks import Callback
from sgenas.run.loggers import LOGGERS
from sgenas.spaces import SPACES, BetaDecay, DartsSettings


@dataclass(frozen=True)
class Shrunk(Estimator):
    """The direct gradient, and a multiple of it in place of the indirect one.

    Args:
        share: Factor.
    """

    share: float = 0.5
    uses_v: ClassVar[bool] = False

    def indirect_gradient(self, context: Any) -> tree.Tree:
        return tree.scale(context.direct, self.share)

    def indirect_cost(self, inner_steps: int) -> Cost:
        return Cost()


@dataclass(frozen=True)
class SignDescent:
    """Steps of constant length along the signs of the gradient.

    Args:
        lr: Length of a step in each weight.
    """

    lr: float = 0.01

    def init(self, weights: tree.Tree) -> InnerState:
        return InnerState(weights, {})

    def step(self, state: InnerState, grad: tree.Tree) -> InnerState:
        moved = tree.map(lambda w, g: w - self.lr * g.sign(), state.weights, grad)
        return InnerState(moved, {}, state.step + 1)


@dataclass(frozen=True)
class Thin(DartsSettings):
    """Cells with three operations."""

    name: ClassVar[str] = "darts"
    channels: int = 2
    layers: int = 3
    nodes: int = 1
    operations: str | tuple[str, ...] | None = ("none", "skip_connect", "dil_conv_3x3")


def stripes(place: str, request: Any) -> ImageData:
    """Horizontal against vertical stripes."""
    rows = torch.arange(8).reshape(8, 1).expand(8, 8) % 2 * 200
    images = torch.stack([rows, rows.T] * 20).unsqueeze(1).to(torch.uint8)
    images += torch.arange(40).reshape(40, 1, 1, 1).to(torch.uint8)
    part = ImageSet(images, torch.arange(40) % 2)
    return ImageData(request.spec, part, part, ("horizontal", "vertical"))


class Largest(Callback):
    """A metric: the largest mixing weight."""

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        mixing = run.space.mixing(run.alphas)
        row["largest_mixing"] = max(float(table.max()) for table in mixing.values())


class Listed:
    """A logger that keeps its rows."""

    rows: ClassVar[list[dict[str, Any]]] = []

    def open(self, directory: Path, rows: list[dict[str, Any]]) -> None: ...

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def registered() -> Iterator[None]:
    """Registers the parts of this file as ``toy``, for one test."""
    sgenas.register_estimator("toy", Shrunk)
    sgenas.register_optimizer("toy", SignDescent)
    sgenas.register_space("toy", Thin)
    sgenas.register_dataset("toy", DatasetSource(stripes))
    sgenas.register_logger("toy", Listed)
    both = {"darts": {}, "module": {}}
    sgenas.register_method("toy", Method("this file", both, regularizer=BetaDecay(weight=0.1)))
    yield
    for registry in (ESTIMATORS, INNER_OPTIMIZERS, SPACES, DATASET_SOURCES, LOGGERS, METHODS):
        del registry._items["toy"]


@pytest.mark.usefixtures("registered")
def test_search_with_parts_from_outside_by_name(tmp_path: Path) -> None:
    names = {f"{part}.name": "toy" for part in ("estimator", "weight_optimizer", "space")}
    settings = {"method": "toy", "logger": "toy", "epochs": 1, "data.data": "toy", "data.batch_size": 4}
    config = sgenas.SearchConfig.of_method("toy", names | settings | {"estimator.share": 0.25})
    assert config.estimator == Shrunk(0.25)
    config.run(tmp_path / "whole", callbacks=[Largest()], progress=False)
    result = config.run(tmp_path / "whole", callbacks=[Largest()], progress=False)
    assert result.finished
    assert result.space.name == "darts"
    row = result.history[-1]
    assert row["largest_mixing"] > 1 / 3
    assert row["indirect_norm"] == pytest.approx(0.25 * row["direct_norm"], rel=1e-4)
    assert row in Listed.rows
    # config.json has the parts by name, and gives the same configuration again
    plain = json.loads((tmp_path / "whole" / "config.json").read_text())["config"]
    assert plain["estimator"] == {"name": "toy", "share": 0.25}
    again = sgenas.SearchConfig.from_dict(plain)
    assert (again.estimator, again.space, again.weight_optimizer) == (Shrunk(0.25), Thin(), SignDescent())


@pytest.mark.usefixtures("registered")
def test_search_in_a_module_with_parts_from_outside() -> None:
    result = module_search(method="toy", estimator="toy", weight_optimizer=SignDescent(0.05), callbacks=[Largest()])
    assert result.finished
    assert result.history[-1]["largest_mixing"] >= 0.5


@pytest.mark.usefixtures("registered")
def test_name_that_is_taken_is_refused() -> None:
    assert sgenas.register_estimator("toy", Shrunk) is Shrunk
    with pytest.raises(InvalidValueError, match="'sge'"):
        sgenas.register_estimator("sge", Shrunk)
    with pytest.raises(InvalidValueError, match="did you mean 'toy'"):
        ESTIMATORS.get("toys")


def test_parts_need_no_registration_from_python() -> None:
    found = module_search(estimator=Shrunk(0.1), weight_optimizer=SignDescent(), loggers=[Listed()])
    assert found.finished
    with pytest.raises(InvalidValueError, match="registered"):
        cells(estimator=Shrunk()).to_dict()
