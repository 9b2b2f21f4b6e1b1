"""bfloat16 with estimators that take differences: measured on the search's own network and batches."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgenas.engine import Search, SearchConfig, run_search
from sgenas.engine.plan import plan_search
from sgenas.engine.run_folder import RunFolder
from sgenas.errors import ConfigError

Make = Callable[..., SearchConfig]
FIRST = {"estimator": "first-order", "directions": 10}


def given(small: Make, estimator: str, **settings: Any) -> SearchConfig:
    # 10 is the default, which an estimator without directions must leave
    chosen = {"estimator": estimator, "directions": 10 if estimator == "second-order" else 2} | settings
    return small(epochs=1, precision="bfloat16", estimator=chosen)


@pytest.mark.parametrize(
    ("estimator", "settings", "step"),
    [("sge", {"smoothing": 0.01}, " with --smoothing 0.01"), ("second-order", {}, "")],
)
def test_it_is_refused_with_what_was_measured(
    small: Make, tmp_path: Path, estimator: str, settings: dict[str, Any], step: str
) -> None:
    config = given(small, estimator, **settings)
    with pytest.raises(ConfigError) as caught:
        run_search(config, tmp_path / "run")
    said = str(caught.value)
    assert said.startswith(
        f"--precision must be float32 with --estimator {estimator}{step}, got bfloat16: on the first batches"
    )
    noise, length = (float(number) for number in re.findall(r"\d\.\de[-+]\d\d", said))
    assert 0.1 * length < noise < 100 * length
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError) as planned:
        plan_search(config)
    assert str(planned.value) == said


def test_it_is_allowed_where_it_would_not_drown(small: Make, tmp_path: Path, assert_same_runs: Any) -> None:
    """Values of the outer loss over a whole unit of alpha."""
    config = given(small, "evolution", smoothing=1.0)
    for name in "ab":
        assert run_search(config, tmp_path / name).finished
    assert_same_runs(tmp_path / "a", tmp_path / "b")
    facts = json.loads((tmp_path / "a" / "config.json").read_text())["environment"]
    assert 0 < facts["rounding"]["noise_floor"] < 0.1 * facts["rounding"]["length"]


def test_measuring_takes_no_batch(small: Make) -> None:
    search = Search(given(small, "evolution", smoothing=1.0), RunFolder("unused"))
    before = search.state_dict()
    search.check_precision()
    after = search.state_dict()
    for stream in ("inner_stream", "outer_stream"):
        assert before[stream]["batch"] == after[stream]["batch"]
        assert torch.equal(before[stream]["order"], after[stream]["order"])
        assert torch.equal(before[stream]["generator"], after[stream]["generator"])
    assert torch.equal(before["directions"], after["directions"])


@pytest.mark.parametrize("config", [{"estimator": FIRST, "precision": "bfloat16"}, {}])
def test_nothing_is_measured_without_differences_or_rounding(small: Make, config: dict[str, Any]) -> None:
    assert Search(small(**config), RunFolder("unused")).check_precision() == {}


@pytest.mark.parametrize("estimator", ["unrolled", "neumann", "conjugate-gradient"])
def test_forward_mode_cannot_have_it(small: Make, estimator: str) -> None:
    with pytest.raises(ConfigError, match=f"--precision must be float32 with --estimator {estimator}, which"):
        small(estimator=FIRST | {"estimator": estimator}, precision="bfloat16")


def test_directions_side_by_side_are_rounded_alike(small: Make) -> None:
    """The stacked pass, too, is in the precision asked for."""
    search = Search(given(small, "sge", smoothing=1.0), RunFolder("unused"))
    batch = search.next_batch(search.inner_stream)
    weights, alphas = search.state.weights, search.alphas
    single = search._loss(weights, alphas, batch)
    stacked = search._stacked_loss(
        {name: torch.stack([tensor, tensor]) for name, tensor in weights.items()},
        {name: torch.stack([tensor, tensor]) for name, tensor in alphas.items()},
        batch,
    )
    exact = Search(small(), RunFolder("unused"))._loss(weights, alphas, batch)
    assert stacked.dtype == torch.float32
    assert single != exact
    assert (stacked - exact).abs().max() < 0.05
    assert not torch.equal(stacked, exact.expand(2))
