"""Alphas and derivatives out of their range: a line in the log of every such epoch, one warning."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sgenas import trees
from sgenas.bilevel import SGD
from sgenas.engine import Search, SearchConfig, run_search
from sgenas.engine.ranges import Ranges
from sgenas.engine.run_folder import RunFolder
from sgenas.errors import RangeWarning

FIRST = {"estimator": "first-order", "directions": 10}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((10.1, 1.0, 5.0, 1.0, 1.0), "the largest alpha is 10.1 in size, over 10: .* a lower --alpha-lr"),
        ((1.0, 51.0, 5.0, 1.0, 1.0), "is 51 long in the mean, over 10 times --grad-clip 5: .* --lr"),
        ((1.0, 1.0, 5.0, 0.01, 1.1), "is 1.1 long in the mean, over 100 times its direct part of 0.01"),
    ],
)
def test_each_kind_is_warned_of_once_and_always_logged(
    values: tuple[float, float, float, float, float], said: str
) -> None:
    ranges = Ranges()
    with pytest.warns(RangeWarning, match=said) as warned:
        both = [ranges.look(*values) for _ in range(2)]
    first = both[0]
    assert both[1] == first
    assert [str(warning.message) for warning in warned] == first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Ranges(quiet=True).look(*values) == first


def test_nothing_is_said_of_what_is_in_its_range_or_unknown() -> None:
    assert Ranges().look(9.9, 49.0, 5.0, 0.01, 0.99) == []
    assert Ranges().look(1.0, 1e6, None, None, None) == []
    assert Ranges().look(1.0, None, 5.0, 1.0, 0.0) == []


def test_a_search_logs_them(small: Callable[..., SearchConfig], tmp_path: Path) -> None:
    """The clipping is so tight that every gradient is far beyond it."""
    config = small(epochs=2, estimator=FIRST, weights={"grad_clip": 1e-3}, log_every=1)
    with pytest.warns(RangeWarning, match="over 10 times --grad-clip 0.001") as warned:
        run_search(config, tmp_path / "run")
    assert len(warned) == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    steps = [row for row in rows if row["kind"] == "step"]
    assert epochs[0]["out_of_range"] == [str(warned[0].message)]
    assert len(epochs[1]["out_of_range"]) == 1
    for row in steps:
        assert row["weight_grad_norm"] > 0.01
        assert row["alpha_min"] < 0 < row["alpha_max"]
    mean = sum(row["weight_grad_norm"] for row in steps[:3]) / 3
    assert epochs[0]["weight_grad_norm"] == pytest.approx(mean, rel=1e-5)


def test_the_norm_is_that_of_the_gradient_before_clipping(small: Callable[..., SearchConfig]) -> None:
    search = Search(small(estimator=FIRST), RunFolder("unused"))
    batch = search.next_batch(search.inner_stream)
    for optimizer in (SGD(0.1), SGD(0.1, grad_clip=1e-3), SGD(0.1, 0.9, 0.1, grad_clip=5.0)):
        problem = search._problem(optimizer)
        start = problem.init(search.state.weights)
        assert start.grad_norm is None
        trajectory = problem.run(start, search.alphas, [batch])
        norm = trajectory.end.grad_norm
        assert norm is not None
        assert torch.equal(norm, trees.norm(trajectory.last_grad))
