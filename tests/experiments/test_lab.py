"""The laboratory on problems whose hypergradient is known, going on where it was cut, and what it refuses."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import SGD, BilevelProblem, Unrolled
from sgenas.bilevel.toy import Quadratic
from sgenas.cli import main
from sgenas.engine.parts import generator
from sgenas.errors import ConfigError, DivergenceError, RunFolderError
from sgenas.experiments.lab import PROBLEMS, LabSettings, run_lab
from sgenas.experiments.lab.estimators import Spec
from sgenas.experiments.lab.measure import Task, measure, measure_truth
from sgenas.experiments.lab.problems import Moment, Walk, moments
from sgenas.experiments.lab.truth import automatic, compare, flat, real, rows_for, squared_distance
from sgenas.report.lab import save_lab
from sgenas.report.lab_record import read_lab
from sgenas.trees import Tree

SMALL = LabSettings(
    estimators=("first-order", "sge", "unrolled"),
    inner_steps=(1, 3),
    moments=(0, 5),
    batches=2,
    draws=3,
    truth_directions=2,
)


def content(path: Path) -> dict[str, Any]:
    return read_lab(path)


def rows(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in content(path)["rows"] if all(row[name] == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lab") / "small"
    assert run_lab(SMALL, path).finished
    return path


def test_every_estimator_is_measured_in_every_condition(finished: Path) -> None:
    found = content(finished)
    assert len(found["truths"]) == 2 * 2 * 2
    assert len(found["measurements"]) == 2 * 2 * 2 * 3
    assert len(found["rows"]) == 2 * 2 * 3
    assert {row["batches"] for row in found["rows"]} == {2}
    assert found["facts"] == {"alphas": 6, "weights": 7}
    assert found["environments"][0]["torch"] == torch.__version__


def truths(path: Path, moment: int) -> list[float]:
    return [record["indirect"] for record in content(path)["truths"] if record["moment"] == moment]


def test_the_way_to_a_moment_has_a_learning_rate_of_its_own(finished: Path, tmp_path: Path) -> None:
    assert run_lab(replace(SMALL, walk_lr=0.02), tmp_path / "other").finished
    assert truths(tmp_path / "other", 0) == truths(finished, 0)
    assert truths(tmp_path / "other", 5) != truths(finished, 5)


def test_the_truth_has_a_precision_of_its_own(tmp_path: Path) -> None:
    digits = replace(
        SMALL,
        problem="weight-decay",
        estimators=("first-order",),
        moments=(0,),
        batches=1,
        truth_directions=0,
    )
    for dtype in ("float64", "float32"):
        assert run_lab(replace(digits, truth_dtype=dtype), tmp_path / dtype).finished
    exact, rounded = (truths(tmp_path / dtype, 0) for dtype in ("float64", "float32"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-3)


def test_figures_are_those_of_the_closed_form(finished: Path) -> None:
    """The truth is the closed form of the toy, and the errors of the estimators what they must be."""
    toy = Quadratic.random(generator(0, "toy"))
    optimizer = SGD(0.1, 0.9)
    state = toy.problem(optimizer).init(toy.weights)
    problem = PROBLEMS["quadratic"].make(SMALL)
    inner, outer = problem.batches(1, 16, 3, seed=0)
    direct, indirect = (flat(part) for part in toy.exact(optimizer, state, inner, outer))
    truth = next(
        record
        for record in content(finished)["truths"]
        if (record["moment"], record["inner_steps"], record["batch"]) == (0, 3, 1)
    )
    assert truth["direct"] == pytest.approx(float(direct.norm()), rel=1e-10)
    assert truth["indirect"] == pytest.approx(float(indirect.norm()), rel=1e-10)
    # F is quadratic: slopes are exact at every step, and two directions and two more see four of six
    for entry in truth["real"]:
        assert entry["whole"]["along"] == pytest.approx(1, rel=1e-9)
        assert entry["indirect"]["distance"] == pytest.approx(0, abs=1e-15)
        assert entry["whole"]["slopes"][0] == pytest.approx(float((direct + indirect).norm()), rel=1e-9)
    for row in rows(finished, estimator="first-order"):
        assert row["indirect"]["squared_error"] == {"mean": 1.0, "error": 0.0}
        assert row["indirect"]["cosine"]["mean"] is None
        assert row["passes"] == row["inner_steps"] + 1
    for row in rows(finished, estimator="unrolled"):
        assert row["indirect"]["squared_error"]["mean"] < 1e-20
        assert row["real"][0]["indirect"]["mean"] < 1e-15


def test_noise_of_sge_is_what_theory_says(tmp_path: Path) -> None:
    settings = LabSettings(
        estimators=("sge",),
        directions=(8,),
        inner_steps=(2,),
        moments=(0,),
        batches=2,
        draws=100,
        truth_directions=0,
    )
    run_lab(settings, tmp_path / "lab")
    (row,) = rows(tmp_path / "lab")
    part = row["indirect"]
    # (p + 1) / Q with p = 6, no bias
    assert part["variance"]["mean"] == pytest.approx(7 / 8, rel=0.2)
    assert abs(part["bias"]["mean"]) < 0.1 * part["variance"]["mean"]
    # what the estimator says of its own noise is right on average
    assert part["own_error"]["mean"] == pytest.approx(7 / 8, rel=0.2)
    assert row["real"] == []
    assert row["passes"] == (8 + 1) * 2 + 1


def test_a_memory_is_filled_before_it_is_measured(tmp_path: Path) -> None:
    estimators = ("sge:q=4", "sge:q=4,memory")
    settings = replace(SMALL, estimators=estimators, inner_steps=(3,), moments=(0,), draws=12)
    run_lab(settings, tmp_path / "lab")
    plain, remembers = rows(tmp_path / "lab")
    assert remembers["indirect"]["variance"]["mean"] < plain["indirect"]["variance"]["mean"] / 2


def test_what_is_there_is_not_measured_again(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "lab"
    run_lab(replace(SMALL, moments=(0,), batches=1), path)
    before = content(path)
    run_lab(replace(SMALL, inner_steps=(1, 3), estimators=("sge", "second-order"), batches=1), path)
    after = content(path)
    # the new moment, and one more estimator in the old one
    assert after["truths"][: len(before["truths"])] == before["truths"]
    assert after["measurements"][: len(before["measurements"])] == before["measurements"]
    assert len(after["measurements"]) == len(before["measurements"]) + 2 + 2 * 2
    assert {record["environment"] for record in after["measurements"]} == {0, 1}
    # the same figures as in a run that had all at once
    for row in after["truths"]:
        whole = next(
            other
            for other in content(finished)["truths"]
            if all(other[name] == row[name] for name in ("moment", "inner_steps", "batch"))
        )
        assert whole["indirect"] == row["indirect"]


def test_a_run_that_is_cut_goes_on(finished: Path, tmp_path: Path) -> None:
    path, pieces = tmp_path / "lab", [0]

    def stop() -> bool:
        pieces[0] += 1
        return pieces[0] % 4 == 0

    calls = 0
    while not run_lab(SMALL, path, stop=stop).finished:
        calls += 1
        # the way to a moment is asked too
        assert len(content(path)["truths"]) + len(content(path)["measurements"]) <= 4 * calls
    whole, parts = content(finished), content(path)
    assert calls > 5
    for kind in ("truths", "measurements"):
        for ours, theirs in zip(whole[kind], parts[kind], strict=True):
            drop = ("seconds", "environment")
            assert {k: v for k, v in ours.items() if k not in drop} == {
                k: v for k, v in theirs.items() if k not in drop
            }


def test_a_way_to_a_moment_that_is_cut_goes_on(tmp_path: Path) -> None:
    settings = LabSettings("quadratic", ("first-order",), moments=(0, 7), inner_steps=(1,), batches=1)
    whole, path, asked = tmp_path / "whole", tmp_path / "cut", [0]
    assert run_lab(settings, whole).finished

    def stop() -> bool:
        asked[0] += 1
        return asked[0] % 3 == 0

    assert not run_lab(settings, path, stop=stop).finished
    assert content(path)["measurements"] == []
    assert sorted(file.name for file in (path / "moments").iterdir()) == ["0.pt", "3.pt"]
    # tables of nothing are no error
    save_lab(path)
    while not run_lab(settings, path, stop=stop).finished:
        pass
    ours, theirs = (torch.load(each / "moments" / "7.pt", weights_only=True) for each in (whole, path))
    for kind in ("weights", "buffers", "alphas"):
        assert all(torch.equal(ours[kind][name], theirs[kind][name]) for name in ours[kind])
    assert asked[0] > 7


def test_a_way_that_diverges_says_what_to_change(tmp_path: Path) -> None:
    settings = LabSettings("quadratic", ("first-order",), moments=(500,), inner_steps=(1,), walk_lr=1e3)
    with pytest.raises(DivergenceError, match=r"at step \d+ on the way to a moment: try a lower --walk-lr"):
        run_lab(settings, tmp_path / "lab")


def test_moments_do_not_depend_on_each_other(tmp_path: Path) -> None:
    problem = PROBLEMS["weight-decay"].make(LabSettings("weight-decay"))
    walk = Walk(SGD(0.2, 0.9), 0.1, 32, 0)

    def at(folder: Path, *wanted: int) -> Moment:
        return dict(moments(problem, walk, wanted, folder, lambda passes: None))[wanted[-1]]

    direct = at(tmp_path / "a", 7)
    at(tmp_path / "b", 3)
    for moment in (at(tmp_path / "b", 3, 7), at(tmp_path / "b", 7)):
        for ours, theirs in (
            (direct.state.weights, moment.state.weights),
            (direct.state.buffers, moment.state.buffers),
            (direct.alphas, moment.alphas),
        ):
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(direct.alphas["first.bias"], problem.alphas["first.bias"])


class Steps:
    """An inner loss whose gradient jumps: automatic differentiation sees half of how w moves with alpha.

    w' = w - lr (w - a - floor(10 a) / 10): in real steps of multiples of 0.1 the floor moves along.
    """

    size = 5

    def __init__(self) -> None:
        self.problem = BilevelProblem(self.inner, self.outer, SGD(0.5))
        state = self.problem.init({"w": torch.zeros(self.size, dtype=torch.float64)})
        # so small that floor moves by whole steps on both sides
        alphas = {"a": torch.full((self.size,), 1e-9, dtype=torch.float64)}
        self.moment = Moment(state, alphas)

    def inner(self, weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:  # noqa: ARG002
        target = alphas["a"] + (10 * alphas["a"]).floor() / 10
        return ((weights["w"] - target).square() / 2).sum()

    def outer(self, weights: Tree, alphas: Tree, batch: Tensor) -> Tensor:
        return batch @ weights["w"] + batch @ alphas["a"]

    @property
    def batch(self) -> Tensor:
        return torch.arange(1, self.size + 1, dtype=torch.float64)


def test_jumps_are_seen_by_the_real_truth_alone() -> None:
    case = Steps()
    exact = automatic(case.problem, case.moment, [case.batch], case.batch)
    torch.testing.assert_close(exact.indirect, case.batch / 2)
    torch.testing.assert_close(exact.direct, case.batch)
    rows = torch.eye(case.size, dtype=torch.float64)
    # sqrt(5) * step = 0.2, a step over two jumps on each side
    seen = real(case.problem, case.moment, [case.batch], case.batch, rows, [0.2 / math.sqrt(5), 1e-12])
    # (one jump fewer on one side, since floor(-1.99) = -2 and floor(2.01) = 2)
    torch.testing.assert_close(seen.indirect[0], case.batch, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.indirect[1], case.batch / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(seen.direct, case.batch.expand(2, -1), rtol=1e-3, atol=0)
    assert compare(exact, seen, 0, "indirect") == pytest.approx(
        {"along": 2.0, "distance": 1.0, "cosine": 1.0, "ratio": 2.0}, rel=1e-5
    )
    assert compare(exact, seen, 0, "whole")["along"] == pytest.approx(4 / 3, rel=1e-5)
    assert squared_distance(case.batch, seen, 0, "indirect") == pytest.approx(0, abs=1e-9)


def test_slopes_in_few_directions_estimate_the_distance() -> None:
    """Of an estimate that is off in every direction: the mean over frames is its real squared error."""
    problem = PROBLEMS["weight-decay-toy"].make(LabSettings("weight-decay-toy"))
    inner, outer = problem.batches(0, 4, 3, seed=0)
    optimizer = SGD(0.1, 0.9)
    moment = Moment(optimizer.init(problem.weights), problem.alphas)
    bilevel = problem.bilevel(optimizer)
    exact = automatic(bilevel, moment, inner, outer)
    shift = torch.linspace(-1, 1, 20, dtype=torch.float64) * float(exact.grad.norm())
    found = []
    for seed in range(150):
        rows = rows_for(exact, 4, torch.Generator().manual_seed(seed))
        seen = real(bilevel, moment, inner, outer, rows, [1e-4])
        found.append(squared_distance(exact.grad + shift, seen, 0, "whole"))
    mean = sum(found) / len(found)
    assert mean == pytest.approx(float(shift.square().sum()), rel=0.1)


def test_a_failing_estimator_is_a_row_that_says_so() -> None:
    case = Steps()
    task = Task(case.problem, case.moment, [case.batch], case.batch, list, 0, 0)
    _, exact, _ = measure_truth(task, 0, [])
    # more steps to walk back than there are
    record = measure(Spec.parse("unrolled:last=2"), task, 2, exact, None)
    assert "at least Unrolled.last_steps = 2" in record["failed"]
    broken = Task(
        BilevelProblem(case.inner, lambda w, a, b: case.outer(w, a, b) * math.nan, SGD(0.5)),
        *(case.moment, [case.batch], case.batch, list, 0, 0),
    )
    assert "outer_loss is nan" in measure(Spec.parse("first-order"), broken, 2, exact, None)["failed"]


@pytest.mark.parametrize("problem", ["weight-decay-toy", "hyper-cleaning", "weight-decay"])
def test_problems_that_take_seconds(problem: str, tmp_path: Path) -> None:
    settings = LabSettings(
        problem,
        estimators=("second-order", "unrolled"),
        inner_steps=(1,),
        moments=(0, 20),
        batch_sizes=(16,),
        batches=2,
        truth_directions=3,
        truth_steps=(1e-3, 1e-2),
    )
    run_lab(settings, tmp_path / "lab")
    for row in rows(tmp_path / "lab"):
        # one smooth step: both are exact, up to rounding and the radius
        assert row["indirect"]["squared_error"]["mean"] < 1e-3
        assert row["real"][0]["indirect"]["mean"] < 1e-2
        assert row["whole"]["cosine"]["mean"] > 0.999
    for truth in content(tmp_path / "lab")["truth_rows"]:
        assert truth["real"][0]["indirect"]["along"]["mean"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("problem", ["darts", "nasbench201"])
def test_supernets(problem: str, tmp_path: Path) -> None:
    settings = LabSettings(
        problem,
        estimators=("first-order", "second-order", "sge:q=2", "unrolled"),
        data="digits",
        train_images=200,
        channels=2,
        activation="silu",
        inner_steps=(2,),
        moments=(2,),
        batch_sizes=(8,),
        walk_batch_size=8,
        batches=1,
        draws=2,
        truth_directions=1,
        truth_steps=(1e-3,),
        **({"pooling": "smooth", "nodes": 1} if problem == "darts" else {}),
    )
    run_lab(settings, tmp_path / "lab")
    found = content(tmp_path / "lab")
    assert found["settings"]["activation"] == "silu"
    assert len(found["rows"]) == 4
    for row in rows(tmp_path / "lab", estimator="unrolled"):
        # float32 against float64
        assert row["indirect"]["squared_error"]["mean"] < 1e-4
        assert row["real"][0]["indirect"]["mean"] < 0.05
    for truth in found["truth_rows"]:
        assert 0 < truth["share"]["mean"] < 10


def test_the_command_measures_and_draws_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lab"
    command = [
        "lab",
        "--problem",
        "weight-decay-toy",
        "--estimators",
        "first-order",
        "sge",
        "unrolled:last=1",
    ]
    command += ["--directions", "2", "4", "--smoothings", "0.01", "0.1", "--inner-steps", "1", "2"]
    command += ["--batch-sizes", "4", "16", "--moments", "3", "--batches", "2", "--draws", "2"]
    command += ["--truth-directions", "1", "--out", str(path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "20 alphas, 20 weights; 4 conditions, 6 estimators, 2 draws" in out
    names = ["lab.md", "lab.csv", "error-against-passes.png", "error-against-seconds.png"]
    names += ["bias-and-variance.png", "error-against-inner-steps.png", "error-against-directions.png"]
    names += ["error-against-smoothing.png", "error-against-batch-size.png", "truths.png"]
    for name in names:
        assert f"{path / name}" in out
        assert (path / name).stat().st_size > 500
    assert not (path / "error-against-inner-lr.png").exists()

    table = (path / "lab.md").read_text()
    assert table.count("\n## after ") == 4
    assert "`sge:q=4,mu=0.1`" in table
    with (path / "lab.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 6
    first_order = [line for line in lines if line["estimator"] == "first-order"]
    assert {float(line["indirect_squared_error"]) for line in first_order} == {1.0}

    assert main(command) == 0
    assert "squared error" not in capsys.readouterr().out


def test_bad_settings_fail_in_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    def lab(*flags: str) -> str:
        return fails("lab", *flags, "--out", str(tmp_path / "lab"))

    assert "--problem must be one of quadratic" in lab("--problem", "banana")
    assert "--estimators must be among first-order" in lab("--estimators", "banana")
    assert "--inner-steps must be >= 1, got 0" in lab("--inner-steps", "0")
    assert "--smoothings must be > 0 and finite, got nan" in lab("--smoothings", "nan")
    assert "--draws must be >= 2, got 1" in lab("--draws", "1")
    assert "--moments must be without repeats" in lab("--moments", "3", "3")
    assert "--dtype must be float64 with --problem quadratic" in lab("--dtype", "float32")
    assert "--channels only applies with --problem darts or nasbench201" in lab("--channels", "8")
    assert "--layers only applies with --problem darts" in lab("--problem", "nasbench201", "--layers", "4")
    message = lab("--problem", "hyper-cleaning", "--batch-sizes", "2000")
    assert "--batch-sizes must be at most the 719 examples" in message
    message = lab("--problem", "darts", "--data", "parquet:/nowhere")
    assert "--data parquet:/nowhere" in message
    assert not (tmp_path / "lab").exists()


def test_a_folder_keeps_to_its_settings(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--seed must be 0 as in --out .*, got 1: choose another folder"):
        run_lab(replace(SMALL, seed=1), finished)
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(RunFolderError, match="must be new, empty, or a folder of"):
        run_lab(SMALL, tmp_path)
    (tmp_path / "lab.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(RunFolderError, match="format must be 'sgenas-lab'"):
        run_lab(SMALL, tmp_path)


def test_the_exact_estimator_is_the_truth() -> None:
    case = Steps()
    exact = automatic(case.problem, case.moment, [case.batch], case.batch)
    result = Unrolled()(case.problem, case.moment.state, case.moment.alphas, [case.batch], case.batch)
    assert torch.equal(exact.grad, trees.flatten(result.grad))
