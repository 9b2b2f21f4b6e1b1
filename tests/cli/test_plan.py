"""`sgenas plan`: exact in passes, by its formulas in seconds, and without files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_lines import SEARCH

from sgenas.bilevel import SGE, FiniteDifference, FirstOrder, Unrolled
from sgenas.cli.main import main
from sgenas.run.callbacks import Callback
from sgenas.searching import plan
from sgenas.searching.config import SearchConfig

CONSTANTS = plan.Constants(
    weights_pass=1.0,
    alphas_pass=0.5,
    indirect_pass={"finite-difference": 0.4, "sge": 0.25, "unrolled": 7.0},
    evaluation_pass=0.01,
    room=12,
    saved_bytes=1000,
    trajectory_bytes=1750,
    resting_bytes=50_000,
    working_bytes=53_000,
)
"""Every pass has another cost, so that a mistake shows."""
SGE_2 = {"estimator.name": "sge", "estimator.num_directions": 2}
SMALL = {
    "data.data": "digits",
    "data.train_images": 120,
    "data.batch_size": 16,
    "space.channels": 2,
    "space.layers": 3,
    "space.nodes": 1,
    "epochs": 3,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr(plan, "REPEATS", 1)


def built(**changes: Any) -> tuple[Any, SearchConfig]:
    """A search before its first step: 3 epochs of 4 batches of 16 images, the last one incomplete or not."""

    class Left(Exception):
        pass

    class Leave(Callback):
        def on_start(self, run: Any) -> None:
            found.append(run)
            raise Left

    found: list[Any] = []
    config = SearchConfig.of_method(
        "darts", SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    )
    with pytest.raises(Left):
        config.run(None, callbacks=[Leave()], progress=False)
    return found[0], config


def forecast(**changes: Any) -> plan.Forecast:
    run, config = built(**changes)
    return plan.forecast(run, CONSTANTS, config)


def test_seconds_are_the_passes_at_their_costs() -> None:
    run, config = built(**SGE_2)
    batches, steps = run._train.length, 3 * run._train.length
    tests = 2 * 3 * run._val.length * 0.01

    def seconds(estimator: Any, inner_steps: int = 1, every: int = 1) -> float:
        return plan.forecast(plan.variant(run, estimator, inner_steps, every), CONSTANTS, config).seconds - tests

    assert seconds(FirstOrder()) == pytest.approx(steps * 1.5)
    assert seconds(SGE(2)) == pytest.approx(steps * (2 + 2 * 0.25))
    assert seconds(SGE(2, control_variate="finite-difference")) == pytest.approx(steps * (2 + (2 + 2) * 0.25))
    assert seconds(FiniteDifference()) == pytest.approx(steps * (2 + 2 * 0.4))
    assert seconds(Unrolled()) == pytest.approx(steps * (2 + Unrolled().indirect_cost(1).forward * 7.0))
    moves = steps // 2
    assert seconds(FirstOrder(), every=2) == pytest.approx((steps - moves) + moves * 1.5)
    full, rest = divmod(batches, 3)
    assert seconds(SGE(2), inner_steps=3) == pytest.approx(3 * (full * (4 + 6 * 0.25) + rest))


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"derived_every": 0}, -0.01),
        ({"eigenvalue_every": 3}, 100.0),
        ({"trajectory_lr": 0.01}, 1.0),
    ],
)
def test_what_happens_besides_the_estimator_takes_seconds(changes: dict[str, Any], more: float) -> None:
    run, config = built(**changes)
    plain, _ = built()
    count = {"derived_every": 3 * plain._val.length, "eigenvalue_every": 1, "trajectory_lr": 3 * plain._train.length}
    expected = forecast().seconds + more * count[next(iter(changes))]
    assert plan.forecast(run, CONSTANTS, config).seconds == pytest.approx(expected)


def test_memory_grows_with_the_batched_trajectories() -> None:
    run, config = built(**SGE_2)

    def peak(estimator: Any) -> int:
        return plan.forecast(plan.variant(run, estimator, 1, 1), CONSTANTS, config).peak_memory_bytes

    assert peak(FirstOrder()) == peak(SGE(1)) == 53_000
    assert peak(SGE(10)) == 50_000 + 10 * 1750
    assert peak(SGE(20)) == 50_000 + 12 * 1750


def test_break_even_is_where_the_passes_are_equal() -> None:
    run, _ = built(**SGE_2 | {"estimator.num_directions": 10})
    assert plan.break_even([run, *plan.compared(run)]) == {"first-order": 11, "finite-difference": 4}
    alone = plan.variant(run, FirstOrder(), 1, 1)
    assert plan.break_even([alone]) == {}


def test_requested_search_is_listed_once_and_impossible_ones_are_left_out() -> None:
    run, _ = built(**SGE_2 | {"estimator.num_directions": 10})
    others = [each for each in plan.compared(run) if isinstance(each.estimator, SGE)]
    found = [(each.estimator.num_directions, each.inner_steps, each._alpha_every) for each in others]
    assert (10, 1, 1) not in found
    assert found[:2] == [(4, 1, 1), (10, 1, 5)]
    rounded, _ = built(precision="bf16")
    assert list(plan.compared(rounded)) == []


def test_plan_predicts_the_passes_of_the_search_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], searched: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config", str(searched), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = json.loads((searched / "metrics.jsonl").read_text().splitlines()[-1])
    first = found["rows"][0]
    assert [first[name] for name in ("forward", "backward", "steps")] == [
        last[name] for name in ("forward", "backward", "step")
    ]
    assert min(found["constants"][name] for name in ("weights_pass", "evaluation_pass", "saved_bytes")) > 0
    assert main(["plan", *SEARCH[1:]]) == 0
    out = capsys.readouterr().out
    assert "supernet of" in out
    assert re.search(r"sge, Q = 2, N = 1 \(requested\) +\d+ +\d+ +2\.00 ", out)
    assert "no more passes than first-order from --alpha-every 3 on" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_other_estimators_are_measured_themselves() -> None:
    found = plan.plan_search(SearchConfig.of_method("darts", SMALL | {"estimator.name": "unrolled", "inner_steps": 2}))
    assert found.rows[0].name == "unrolled, N = 2"
    assert found.constants.indirect_pass["unrolled"] > 0
    json.dumps(found.to_dict())


def test_bad_plan_is_one_line(fails: Any) -> None:
    assert "--batch-size must be at most" in fails("plan", *SEARCH[1:], "--batch-size", "64")
