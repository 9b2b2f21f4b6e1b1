"""What the directions add to the noise of the batches, and how many of them a search takes."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from bilevel_cases import equal
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import cells, module_search, steps, unstarted
from torch import Tensor

from sgenas import SGE, EvolutionStrategies, FirstOrder, Unrolled, tree
from sgenas.bilevel import BilevelProblem, Estimator
from sgenas.bilevel.estimators.sge.aggregation import aggregate
from sgenas.bilevel.estimators.sge.directions import draw
from sgenas.optim import SGD
from sgenas.searching.plan import Forecast
from sgenas.searching.variance import FIRST_DIRECTIONS, MOST, GradientStatistics

SIZE = 20
AUTO = SGE("auto", smoothing=0.1)


class Linear:
    """The direct gradient is the batch, N(3, noise^2 I); the indirect one is (norm, 0, 0, ...) in every step."""

    def __init__(self, noise: float, norm: float = 1.0) -> None:
        self.noise, self.norm, self.draw = noise, norm, torch.Generator().manual_seed(0)
        self.alphas = torch.zeros(SIZE, dtype=torch.float64)
        self.exact = norm * torch.eye(SIZE, dtype=torch.float64)[0]

        def inner(weights: Tensor, alphas: Tensor, batch: Any) -> Tensor:
            return -norm * weights * alphas[0]

        def outer(weights: Tensor, alphas: Tensor, batch: Tensor) -> Tensor:
            return weights + batch @ alphas

        self.problem = BilevelProblem(inner, outer, SGD(1.0))
        self.start = self.problem.init(torch.zeros((), dtype=torch.float64))
        self.statistics = GradientStatistics(self.alphas)

    def batch(self) -> Tensor:
        return 3 + self.noise * torch.randn(SIZE, generator=self.draw, dtype=torch.float64)

    def steps(self, estimator: Estimator, count: int) -> list[dict[str, float]]:
        """Rows of real calls."""
        rows = []
        for _ in range(count):
            concrete, batch = self.statistics.with_directions(estimator), self.batch()
            result = concrete(self.problem, self.start, self.alphas, [None], batch, generator=self.draw)
            rows.append(floats(self.statistics.update(estimator, result)))
        return rows

    def quick_steps(self, estimator: SGE, count: int, baseline: Tensor | None = None) -> list[dict[str, float]]:
        """The same without the passes, whose projections are known."""
        result, rows = Unrolled()(self.problem, self.start, self.alphas, [None], self.batch()), []
        kind = estimator.directions
        for _ in range(count):
            concrete = self.statistics.with_directions(estimator)
            assert isinstance(concrete, SGE)
            drawn = draw(kind, concrete.most_directions, self.alphas, self.draw)
            found, known = aggregate(drawn, drawn @ self.exact, kind, baseline)
            indirect = tree.unflatten(found, self.alphas)
            changed = replace(result, direct=self.batch(), indirect=indirect, diagnostics=known)
            rows.append(floats(self.statistics.update(estimator, changed)))
        return rows


def floats(row: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}


def needed(noise: float, bound: float, square: float = 1.0) -> float:
    """Directions with which (p + 1) |g|^2 / Q is ``bound`` times the variance of the direct gradient."""
    return (SIZE + 1) * square / (bound * SIZE * noise**2)


# -- measured shares -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "factor"), [("gaussian", 21), ("antithetic", 42)])
@pytest.mark.parametrize("count", [2, 6])
def test_added_variance_share_is_that_of_the_closed_form(kind: str, factor: int, count: int) -> None:
    rows = Linear(noise=0.5).quick_steps(SGE(count, directions=kind), 600)
    assert "added_variance_share" not in rows[0], "one step has no variance"
    found = mean(row["added_variance_share"] for row in rows[100:])
    assert found == pytest.approx(factor / count / (SIZE * 0.25), rel=0.15)


def test_evolution_strategies_have_a_share_too() -> None:
    """Their estimate has the noise of the whole gradient: 9 p + 2 * 3 + 1, at the alphas' zero."""
    rows = Linear(noise=0.5).steps(EvolutionStrategies(10), 120)
    square = 9 * (SIZE - 1) + 4**2 + SIZE * 0.25
    found = mean(row["added_variance_share"] for row in rows[60:])
    assert found == pytest.approx((SIZE + 1) * square / 10 / (SIZE * 0.25), rel=0.25)


def test_estimators_without_own_variance_have_no_share() -> None:
    for estimator in (SGE(4, directions="orthogonal"), SGE(4, aggregate="least-squares"), Unrolled()):
        rows = Linear(noise=0.5).steps(estimator, 3)
        assert "added_variance_share" not in rows[-1]
        assert {"hypergradient_share", "cosine"} < set(rows[-1])
    assert set(Linear(noise=0.5).steps(FirstOrder(), 2)[-1]) == {"direct_norm", "indirect_norm"}


def test_share_and_cosine_are_those_of_the_step_and_of_the_means_of_the_epoch() -> None:
    case = Linear(noise=1.0, norm=2.0)
    rows = case.steps(Unrolled(), 50)
    assert rows[7]["hypergradient_share"] == pytest.approx(rows[7]["indirect_norm"] / rows[7]["direct_norm"])
    assert rows[7]["indirect_norm"] == pytest.approx(2.0)
    same = Linear(noise=1.0)
    direct = torch.stack([same.batch() for _ in rows]).mean(0)
    epoch = case.statistics.end_epoch(Unrolled())
    assert epoch == pytest.approx(
        {"hypergradient_share": 2 / direct.norm().item(), "cosine": (direct[0] / direct.norm()).item()}
    )
    assert case.statistics.end_epoch(Unrolled()) == {}, "an epoch without alpha steps has none"


def test_zero_gradients_give_finite_numbers() -> None:
    case = Linear(noise=0.0, norm=0.0)
    row = case.steps(SGE(2), 3)[-1]
    assert (row["hypergradient_share"], row["cosine"], row["added_variance_share"]) == (0, 0, 0)
    case = Linear(noise=0.0, norm=1.0)
    assert case.steps(SGE(2), 3)[-1]["added_variance_share"] <= MOST
    result = SGE(2)(case.problem, case.start, case.alphas, [None], torch.zeros_like(case.alphas), seed=0)
    row = floats(case.statistics.update(SGE(2), result))
    assert row["hypergradient_share"] == pytest.approx(MOST)
    assert all(map(math.isfinite, row.values()))


# -- chosen directions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "bound"), [(1.0, 0.25), (1.0, 0.1), (0.7, 0.25)])
def test_auto_directions_are_those_of_the_closed_form(noise: float, bound: float) -> None:
    rows = Linear(noise).quick_steps(SGE("auto", max_added_variance=bound), 1200)
    assert {row["num_directions"] for row in rows[:10]} == {FIRST_DIRECTIONS}
    # rounded up, hence a half
    assert mean(row["num_directions"] for row in rows[200:]) == pytest.approx(needed(noise, bound) + 0.5, rel=0.12)
    real = mean(needed(noise, 1) / row["num_directions"] for row in rows[200:])
    assert 0.7 * bound < real < 1.05 * bound


@pytest.mark.parametrize(
    ("noise", "kind", "expected"),
    [(30.0, "gaussian", 1), (30.0, "antithetic", 2), (0.01, "gaussian", 32), (0.0, "gaussian", 32)],
)
def test_auto_directions_stay_within_their_bounds(noise: float, kind: str, expected: int) -> None:
    rows = Linear(noise).quick_steps(SGE("auto", directions=kind), 50)
    assert {row["num_directions"] for row in rows[10:]} == {expected}


def test_one_direction_is_left_again_when_the_noise_of_the_batches_falls() -> None:
    case = Linear(noise=5.0)
    assert case.quick_steps(AUTO, 100)[-1]["num_directions"] == 1
    case.noise = 0.7
    found = mean(row["num_directions"] for row in case.quick_steps(AUTO, 800)[400:])
    assert found == pytest.approx(needed(0.7, 0.25) + 0.5, rel=0.15)


def test_antithetic_directions_are_chosen_in_pairs() -> None:
    rows = Linear(1.0).quick_steps(SGE("auto", directions="antithetic"), 400)
    assert all(row["num_directions"] % 2 == 0 for row in rows)
    assert mean(row["num_directions"] for row in rows[200:]) == pytest.approx(2 * needed(1, 0.25) + 1, rel=0.2)


def test_variance_after_the_control_variate_counts() -> None:
    case = Linear(0.5)
    assert case.quick_steps(AUTO, 50, baseline=case.exact)[-1]["num_directions"] == 1
    # a baseline that explains nothing
    case = Linear(0.5)
    assert case.quick_steps(AUTO, 50, baseline=case.exact.roll(1))[-1]["num_directions"] > 10


def test_quick_steps_are_those_of_real_calls() -> None:
    for estimator in (SGE(4, directions="antithetic"), SGE(1), SGE("auto")):
        quick, real = (
            mean(row["added_variance_share"] for row in rows[20:])
            for rows in (Linear(1.0).quick_steps(estimator, 100), Linear(1.0).steps(estimator, 100))
        )
        assert quick == pytest.approx(real, rel=0.4)


# -- in a search -----------------------------------------------------------------------------------------------


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_search_with_auto_directions_resumes_exactly(tmp_path: Path) -> None:
    """4 steps per epoch: stops before and after the first choice, and in the middle of an epoch."""
    settings = {"epochs": 6, "log_every": 1, "estimator": AUTO}
    whole = module_search(run_dir=tmp_path / "whole", **settings)
    for stops in ((3, 8, 3), (10, 9)):
        path = tmp_path / f"stopped-{stops[0]}"
        for count in stops:
            assert not module_search(run_dir=path, stop=stop_after(count), **settings).finished
        result = module_search(run_dir=path, resume=True, **settings)
        assert result.cost == whole.cost
        assert_same_runs(tmp_path / "whole", path)
    rows = metrics(tmp_path / "whole")
    counts = [row["num_directions"] for row in rows if row["kind"] == "step"]
    assert counts[:10] == [FIRST_DIRECTIONS] * 10 != counts[10:20]
    assert whole.cost.forward == sum(count + 2 for count in counts)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert epochs[2]["num_directions"] == mean(counts[8:12])
    assert {"hypergradient_share", "cosine", "added_variance_share"} < set(epochs[0])


def test_statistics_are_restored_with_a_snapshot() -> None:
    run = unstarted(lambda: module_search(estimator=SGE(2, smoothing=0.1)))
    list(steps(run, 2))
    before = run.snapshot()
    kept = tree.clone({name: value for name, value in before["statistics"].items() if isinstance(value, Tensor)})
    list(steps(run, 1))
    assert not equal(run.statistics.state_dict()["last"], kept["last"])
    run.restore(before)
    now = run.statistics.state_dict()
    assert all(equal(now[name], value) for name, value in kept.items())
    assert now["steps"] == before["statistics"]["steps"] == 2


def test_fixed_directions_are_used_as_they_are(tmp_path: Path) -> None:
    module_search(run_dir=tmp_path / "run", estimator=SGE(3), log_every=1)
    rows = metrics(tmp_path / "run")
    assert all("num_directions" not in row for row in rows)
    assert "added_variance_share" in rows[1]


def test_cost_of_auto_directions_is_predicted_as_that_of_the_most(tmp_path: Path) -> None:
    run, most = (unstarted(lambda: module_search(estimator=SGE(count))) for count in ("auto", 32))  # noqa: B023
    assert run.predicted_cost() == most.predicted_cost()
    assert run.work_total == run.predicted_cost(SGE(FIRST_DIRECTIONS)).forward
    fields: dict[str, Any] = dict.fromkeys(Forecast.__dataclass_fields__, 1) | {"estimator": "sge"}
    assert "Q = auto (at most 32)" in Forecast(**fields | {"directions": "auto"}).name


@pytest.mark.slow
def test_auto_directions_search_cells(tmp_path: Path) -> None:
    cells(estimator=AUTO, epochs=4).run(tmp_path / "run", progress=False)
    assert metrics(tmp_path / "run")[-1]["num_directions"] <= 32
