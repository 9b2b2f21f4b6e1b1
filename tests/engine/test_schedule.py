"""Passes are counted before a search as the search then takes them; docs/cost.md says the same."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgenas.engine import DataSettings, EstimatorSettings, SearchConfig, WeightSettings, run_search
from sgenas.engine.schedule import Schedule
from sgenas.errors import ConfigError

Make = Callable[..., SearchConfig]
PAGE = (Path(__file__).parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")

MODES: dict[str, dict[str, Any]] = {
    "sge": {},
    "first-order": {"estimator": {"estimator": "first-order", "directions": 10}},
    "second-order": {"estimator": {"estimator": "second-order", "directions": 10}},
    "separate": {"weights": {"weights": "separate"}},
    "part": {"estimator": {"batch_fraction": 0.5}},
    "variate, alphas seldom": {
        "estimator": {"directions": 4, "control_variate": "finite-difference"},
        "alphas": {"alpha_every": 2},
    },
    "warm-up, N = 2": {
        "alphas": {"warmup_epochs": 1, "alpha_every": 3},
        "estimator": {"inner_steps": 2},
        "data": {"batch_size": 8},
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_a_search_takes_what_its_schedule_says(mode: str, small: Make, tmp_path: Path) -> None:
    config = small(**MODES[mode])
    last = run_search(config, tmp_path / "run").epochs[-1]
    schedule = Schedule(config, 60)
    assert (schedule.steps, schedule.steps_per_epoch) == (last["step"], last["step"] // 3)
    cost = schedule.cost
    assert (cost.forward, cost.backward, cost.inner_steps) == tuple(
        last[name] for name in ("forward", "backward", "inner_steps")
    )


def test_the_cost_is_the_sum_over_the_steps(small: Make) -> None:
    schedule = Schedule(small(epochs=7, alphas={"warmup_epochs": 2, "alpha_every": 4}), 80)
    moves = [schedule.moves_alphas(step) for step in range(schedule.steps)]
    assert (len(moves), sum(moves)) == (35, schedule.alpha_steps) == (35, 35 // 4 - 10 // 4)
    assert schedule.cost.forward == sum(schedule.step_cost(step).forward for step in range(schedule.steps))


def test_what_would_have_no_step_is_refused(small: Make) -> None:
    with pytest.raises(ConfigError, match="--inner-steps must be at most the 3 batches of an epoch, got 4"):
        Schedule(small(estimator={"inner_steps": 4}), 60)
    with pytest.raises(ConfigError, match="--alpha-every must be at most the 9 steps of the search, .* 10"):
        Schedule(small(alphas={"alpha_every": 10}), 60)


def made(estimator: str, directions: int, inner_steps: int, every: int, separate: bool = False) -> Schedule:
    settings = EstimatorSettings(estimator=estimator, inner_steps=inner_steps)
    if estimator == "sge":
        settings = EstimatorSettings(inner_steps=inner_steps, directions=directions)
    config = SearchConfig(
        epochs=1,
        data=DataSettings(batch_size=64),
        estimator=settings,
        weights=WeightSettings(weights="separate" if separate else "trajectory"),
    )
    return Schedule(config, 64 * inner_steps * every)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading of the page, without its head."""
    text = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines[0].splitlines()[2:]]


def test_the_pages_formulas_are_the_counts() -> None:
    rows = table("Passes of a step")
    assert {row[0] for row in rows} >= {"`first-order`", "`second-order`", "`sge`"}
    for name, *formulas in rows[:3]:
        for number, formula in enumerate(formulas):
            program = re.sub(r"(\)|\d) (?=[A-Z(])", r"\1 * ", formula.replace("2N", "2 * N"))
            for directions, inner_steps in ((1, 1), (10, 1), (4, 5)):
                schedule = made(name.strip("`"), directions, inner_steps, 1, separate=number == 1)
                values = {"Q": directions, "N": inner_steps}
                assert eval(program, values) == schedule.alpha_cost.forward == schedule.alpha_cost.backward


def test_the_pages_ratios_are_those_of_the_counts() -> None:
    rows = table("Against first and second order")
    assert len(rows) >= 5
    for row in rows:
        directions, inner_steps = int(row[0]), int(row[1])
        first = made("first-order", 0, inner_steps, 1)
        per_step = dict.fromkeys(("first", "second"), first.cost.forward)
        per_step["second"] = made("second-order", 0, inner_steps, 1).cost.forward
        for every, said in zip((1, 2, 5, 10, 20), row[2:7], strict=True):
            sge = made("sge", directions, inner_steps, every)
            # the schedule is of one round: `every` steps, the last of which moves the alphas
            training, moving = sge.training_cost.forward, sge.alpha_cost.forward
            mean = training + (moving - training) / every
            assert float(said) == pytest.approx(mean / per_step["first"], abs=0.006)
        for name, said in zip(("first", "second"), row[7:], strict=True):
            enough, before = int(said), int(said) - 1
            sge = made("sge", directions, inner_steps, 1)
            training, moving = sge.training_cost.forward, sge.alpha_cost.forward
            assert training + (moving - training) / enough <= per_step[name] + 1e-9
            assert before == 0 or training + (moving - training) / before > per_step[name]
