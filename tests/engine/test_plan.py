"""What a plan says: exact where it counts, by its formulas where it measures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgenas.bilevel import Cost
from sgenas.engine import Search, SearchConfig, plan, run_search
from sgenas.engine.plan import Constants, plan_search
from sgenas.engine.run_folder import RunFolder
from sgenas.engine.schedule import Schedule

Make = Callable[..., SearchConfig]
FIRST = {"estimator": "first-order", "directions": 10}
CONSTANTS = Constants(
    weights_pass=1.0,
    alphas_pass=0.5,
    perturbed_pass=0.25,
    evaluation_pass=0.01,
    side_by_side=2,
    room=12,
    saved_bytes=1000,
    trajectory_bytes=1750,
    resting_bytes=50_000,
    working_bytes=53_000,
)
"""Every pass has a price of its own, so that no two can be taken for one another."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ENOUGH_SECONDS", 0.0)


@pytest.fixture
def forecast(small: Make, tmp_path: Path) -> Callable[..., plan.Forecast]:
    """The forecast of SMALL with changes, from CONSTANTS: 3 epochs of 3 steps, 60 images of either kind."""

    def make(**changes: Any) -> plan.Forecast:
        search = Search(small(**changes), RunFolder(tmp_path / "none"))
        return plan.forecast(search.schedule, CONSTANTS, search)

    return make


# 3 epochs, each with a test of the supernet and one of the derived cell on 60 images in batches of 16
TESTS = 2 * 3 * 60 / 16 * 0.01


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"estimator": FIRST}, 9 * (1 + 0.5)),
        ({"estimator": FIRST | {"estimator": "second-order"}}, 9 * (2 + 2 * 0.5)),
        ({}, 9 * (2 + 2 * 0.25)),
        ({"estimator": {"directions": 4, "control_variate": "both"}}, 9 * (2 + 4 * 0.25 + 2 * 0.5)),
        ({"estimator": {"directions": 4, "control_variate": "one-sided"}}, 9 * (2 + 4 * 0.25 + 0.5)),
        ({"estimator": {"batch_fraction": 0.5}}, 9 * (2 + 3 * 0.25)),
        ({"weights": {"weights": "separate"}}, 9 * (3 + 2 * 0.25)),
        ({"alphas": {"alpha_every": 2}}, 5 * 1 + 4 * (2 + 2 * 0.25)),
        ({"alphas": {"warmup_epochs": 1}}, 3 * 1 + 6 * (2 + 2 * 0.25)),
        ({"estimator": {"inner_steps": 3}}, 3 * (4 + 6 * 0.25)),
        ({"estimator": FIRST, "watch": {"eigenvalue_every": 3}}, 9 * 1.5 + 100),
    ],
    ids=str,
)
def test_seconds_are_the_passes_at_their_prices(
    changes: dict[str, Any], seconds: float, forecast: Callable[..., plan.Forecast]
) -> None:
    assert forecast(**changes).seconds == pytest.approx(seconds + TESTS)


def test_tests_that_are_left_out_cost_nothing(forecast: Callable[..., plan.Forecast]) -> None:
    whole = forecast().seconds
    assert forecast(watch={"derived_every": 0}).seconds == pytest.approx(whole - TESTS / 2)
    assert forecast(watch={"derived_every": 2}).seconds == pytest.approx(whole - TESTS / 3)


def test_memory_grows_with_what_goes_side_by_side(forecast: Callable[..., plan.Forecast]) -> None:
    assert forecast(estimator=FIRST).peak_memory_bytes == 53_000
    assert forecast(estimator={"directions": 10}).peak_memory_bytes == 50_000 + 10 * 1750
    assert forecast(estimator={"directions": 20}).peak_memory_bytes == 50_000 + 12 * 1750
    assert forecast(estimator={"directions": 1}).peak_memory_bytes == 53_000


def test_an_unknown_estimator_costs_its_passes() -> None:
    class Other:
        def cost(self, inner_steps: int) -> Cost:
            return Cost(7 * inner_steps, 7 * inner_steps, inner_steps)

    assert plan._estimator_seconds(Other(), 2, CONSTANTS) == 14.0  # type: ignore[arg-type]


def test_a_plan_is_exact_where_it_counts_and_writes_nothing(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small(alphas={"alpha_every": 2})
    found = plan_search(config)
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["directions"] == 2
    first, *others = found.rows
    last = run_search(config, "run").epochs[-1]
    assert (first.forward, first.backward, first.images, first.steps) == tuple(
        last[name] for name in ("forward", "backward", "images", "step")
    )
    constants = found.constants
    prices = constants.weights_pass, constants.alphas_pass, constants.perturbed_pass
    assert min(*prices, constants.evaluation_pass) > 0
    assert constants.side_by_side == 2
    assert constants.saved_bytes > 10_000
    weights = 4 * found.facts["weights"]
    assert constants.trajectory_bytes == pytest.approx(1.25 * constants.saved_bytes + 5 * weights)
    # 9 steps leave no room for alphas every 10, 3 batches none for N = 5
    assert [row.name for row in others] == [
        "first-order, N = 1",
        "second-order, N = 1",
        "sge, Q = 10, N = 1",
        "sge, Q = 4, N = 1",
        "sge, Q = 10, N = 1, alphas every 5",
    ]
    assert found.first_order is others[0]
    # Q = 2: 3 passes more than a step of the weights; first order 1, second order 3
    assert found.break_even == {"first-order": 3, "second-order": 1}


def test_the_same_search_stands_there_once(small: Make) -> None:
    rows = list(plan.compared(Schedule(small(estimator={"directions": 10}), 600)))
    assert [(row.config.estimator.directions, row.config.alphas.alpha_every) for row in rows[2:]] == [
        *((4, 1), (10, 5), (10, 10)),
        (10, 1),
    ]
    assert rows[-1].config.estimator.inner_steps == 5


def test_directions_go_side_by_side_in_the_plan_as_in_the_search(small: Make) -> None:
    def constants(**estimator: Any) -> Constants:
        return plan_search(small(estimator={"directions": 6} | estimator)).constants

    together = constants()
    assert together.room > 6 == together.side_by_side
    alone = constants(computation="streamed")
    assert (alone.room, alone.side_by_side) == (1, 1)
    part = constants(batch_fraction=0.5)
    assert part.trajectory_bytes < together.trajectory_bytes
    assert part.saved_bytes == together.saved_bytes
    limited = constants(memory_limit=3.5 * together.trajectory_bytes / 2**30)
    assert (limited.room, limited.side_by_side) == (3, 3)


def test_settings_that_sge_cannot_have_leave_it_out(small: Make) -> None:
    found = plan_search(small(estimator=FIRST, precision="bfloat16"))
    assert [row.name for row in found.rows] == ["first-order, N = 1"]
    assert found.constants.perturbed_pass is None
    assert found.break_even == {}


def test_break_even_is_where_the_passes_are_equal(small: Make) -> None:
    for changes in ({}, {"weights": {"weights": "separate"}}, {"estimator": {"batch_fraction": 0.3}}):
        sizes = {"directions": 10, **changes.get("estimator", {})}
        config = small(epochs=1, **(changes | {"estimator": sizes}))
        sge = Schedule(config, 16 * 10_000)
        found = plan.break_even([sge, *plan.compared(sge)])
        for name, every in found.items():
            reference = next(
                each for each in plan.compared(sge) if each.config.estimator.estimator == name
            ).cost.forward
            means = {}
            for k in (every, every - 1):
                if k:
                    alphas = {"alpha_every": k}
                    means[k] = Schedule(
                        small(epochs=1, **(changes | {"estimator": sizes, "alphas": alphas})), 16 * 10_000
                    ).cost.forward
            # 10,000 steps: the last incomplete round of k steps is within a thousandth
            assert means[every] <= 1.001 * reference
            assert every == 1 or means[every - 1] > reference
    alone = Schedule(small(estimator=FIRST), 60)
    assert plan.break_even([alone]) == {}
    assert plan.break_even([alone, *plan.compared(alone)]) == {"first-order": 11, "second-order": 4}


def test_second_order_and_separate_weights_are_measured_too(small: Make) -> None:
    config = small(
        estimator={"directions": 4, "direction_kind": "antithetic", "batch_fraction": 0.5},
        weights={"weights": "separate"},
    )
    found = plan_search(config)
    # the asked for Q = 4 stands there once
    assert [row.directions for row in found.rows] == [4, None, None, 10, 10]
