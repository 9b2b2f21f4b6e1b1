"""The hypergradient benchmark on problems whose hypergradient is known; what it resumes, and what it refuses."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypergradients.benchmark import Settings, run
from hypergradients.measure import Task, errors, measure, measure_reference
from hypergradients.problems import PROBLEMS, Images
from hypergradients.reference import automatic, compare, flat, frame, frame_of, inner_product, real
from hypergradients.report import CONDITION, markdown_table, read_results
from hypergradients.rows import mean_and_error
from hypergradients.run import main
from hypergradients.specs import Spec, expand
from hypergradients.warmup import Checkpoint
from torch import Tensor

from sgenas.bilevel import SGE, BilevelProblem, FiniteDifference, Unrolled
from sgenas.bilevel.test_problems import Quadratic
from sgenas.errors import InvalidValueError, RunDirError
from sgenas.optim import SGD
from sgenas.random import generator
from sgenas.run.checkpoint import load_checkpoint
from sgenas.tree import TensorDict

SMALL = Settings(
    estimators=("first-order", "sge", "unrolled"),
    inner_steps=(1, 3),
    warmup_steps=(0, 5),
    batches=2,
    draws=3,
    reference_directions=2,
)


def rows(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in read_results(path)["rows"] if wanted.items() <= row.items()]


def measured(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of both kinds without what differs between machines and calls."""
    content = read_results(path)
    return {
        kind: [{k: v for k, v in record.items() if k not in ("seconds", "environment")} for record in content[kind]]
        for kind in ("references", "measurements")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "small"
    assert run(SMALL, path)
    return path


def draws(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- specifications -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "estimator"),
    [
        ("finite-difference:radius=0.1", FiniteDifference(0.1)),
        ("sge:q=4,mu=0.1,directions=orthogonal", SGE(4, 0.1, directions="orthogonal")),
        ("sge:mu=auto,control-variate=finite-difference", SGE(smoothing="auto", control_variate="finite-difference")),
        ("unrolled:truncate=2", Unrolled(truncate=2)),
    ],
)
def test_specification_makes_its_estimator(text: str, estimator: object) -> None:
    assert Spec.parse(text).make() == estimator
    assert str(Spec.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("banana", "banana"),
        ("sge:banana=1", "banana"),
        ("sge:q=two", "two"),
        ("sge:orthogonal", "OPTION"),
        ("sge:q=0", "0"),
    ],
)
def test_bad_specification_is_named(text: str, word: str) -> None:
    with pytest.raises(InvalidValueError, match=word):
        Spec.parse(text)


def test_axes_fill_in_what_is_open() -> None:
    found = expand(["first-order", "sge", "sge:q=3,directions=orthogonal", "sge:mu=1"], [2, 4], [0.01, 0.1])
    assert [str(spec) for spec in found] == [
        "first-order",
        *("sge:q=2,mu=0.01", "sge:q=2,mu=0.1", "sge:q=4,mu=0.01", "sge:q=4,mu=0.1"),
        *("sge:mu=0.01,q=3,directions=orthogonal", "sge:mu=0.1,q=3,directions=orthogonal"),
        *("sge:q=2,mu=1", "sge:q=4,mu=1"),
    ]
    with pytest.raises(InvalidValueError, match="even"):
        expand(["sge:directions=antithetic"], [3], [0.01])


# -- statistics ---------------------------------------------------------------------------------------------


def test_squared_error_is_bias_and_variance_and_both_are_unbiased() -> None:
    truth, shift, noise = draws(1, 6, 0)[0], draws(1, 6, 1)[0], 0.5
    samples = [errors(truth + shift + noise * draws(3, 6, 100 + seed), truth) for seed in range(2000)]
    assert samples[0]["squared_error"] == pytest.approx(samples[0]["bias"] + samples[0]["variance"], rel=1e-12)
    unit = float(truth.square().sum())
    for name, exact in (("bias", float(shift.square().sum())), ("variance", 6 * noise**2)):
        mean, error = mean_and_error(sample[name] for sample in samples)
        assert mean is not None
        assert error is not None
        assert abs(mean - exact / unit) < 4 * error


def test_errors_by_hand() -> None:
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = errors(torch.tensor([[3.0, 0.0]], dtype=torch.float64), truth)
    expected = {"cosine": 0.6, "relative_error": 0.8, "squared_error": 0.64, "bias": 0.64, "variance": 0.0}
    assert found == pytest.approx(expected)
    assert set(errors(truth[None], torch.zeros_like(truth)).values()) == {None}
    assert errors(torch.zeros_like(truth)[None], truth)["cosine"] is None
    assert mean_and_error([None, math.nan]) == (None, None)
    assert mean_and_error([None, 2.0]) == (2.0, None)
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)


def test_frame_is_orthonormal_and_begins_along_what_is_fixed() -> None:
    fixed = draws(2, 9, 0)
    found = frame(fixed, 4, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found @ found.T, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(found[0], fixed[0] / fixed[0].norm())
    whole = frame(draws(2, 5, 0), 50, torch.Generator().manual_seed(1))
    a, b = draws(2, 5, 2)
    assert inner_product(whole @ a, whole @ b, 2, 5) == pytest.approx(float(a @ b), rel=1e-12)


@pytest.mark.parametrize("same", [False, True])
def test_few_directions_estimate_without_bias(same: bool) -> None:
    """Also if both fixed vectors point the same way, so that the second row is made of rounding."""
    fixed = draws(2, 12, 0)
    if same:
        fixed[1] = 2 * fixed[0]
    a, b = draws(2, 12, 1)
    found = []
    for seed in range(1500):
        chosen = frame(fixed, 3, torch.Generator().manual_seed(seed))
        found.append(inner_product(chosen @ a, chosen @ b, 2, 12))
    mean, error = mean_and_error(found)
    assert mean is not None
    assert error is not None
    assert abs(mean - float(a @ b)) < 4 * error


# -- references ---------------------------------------------------------------------------------------------


class Steps:
    """An inner loss whose gradient jumps: automatic differentiation sees half of how w moves with alpha.

    w' = w - lr (w - a - floor(10 a) / 10): for steps of multiples of 0.1 the floor moves along.
    """

    def __init__(self) -> None:
        self.batch = torch.arange(1, 6, dtype=torch.float64)
        self.problem = BilevelProblem(self.inner, self.outer, SGD(0.5))
        state = self.problem.init({"w": torch.zeros(5, dtype=torch.float64)})
        # so small that floor moves by whole steps on both sides
        self.at = Checkpoint(state, {"a": torch.full((5,), 1e-9, dtype=torch.float64)})

    def inner(self, weights: TensorDict, alphas: TensorDict, batch: Tensor) -> Tensor:
        target = alphas["a"] + (10 * alphas["a"]).floor() / 10
        return ((weights["w"] - target).square() / 2).sum()

    def outer(self, weights: TensorDict, alphas: TensorDict, batch: Tensor) -> Tensor:
        return batch @ weights["w"] + batch @ alphas["a"]


def test_jumps_are_seen_by_finite_differences_alone() -> None:
    case = Steps()
    exact = automatic(case.problem, case.at, [case.batch], case.batch)
    torch.testing.assert_close(exact.indirect, case.batch / 2)
    torch.testing.assert_close(exact.direct, case.batch)
    # sqrt(5) * step = 0.2, a step over two jumps on each side (one fewer on one side: floor(-1.99) = -2)
    basis = torch.eye(5, dtype=torch.float64)
    seen = real(case.problem, case.at, [case.batch], case.batch, basis, [0.2 / math.sqrt(5), 1e-12])
    torch.testing.assert_close(seen.indirect[0], case.batch, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.indirect[1], case.batch / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(seen.direct, case.batch.expand(2, -1), rtol=1e-3, atol=0)
    expected = {"along": 2.0, "distance": 1.0, "cosine": 1.0, "ratio": 2.0}
    assert compare(exact, seen, 0, "indirect") == pytest.approx(expected, rel=1e-5)
    assert compare(exact, seen, 0, "whole")["along"] == pytest.approx(4 / 3, rel=1e-5)
    assert seen.squared_distance(case.batch, 0, "indirect") == pytest.approx(0, abs=1e-9)


def test_few_finite_differences_estimate_the_distance() -> None:
    problem = PROBLEMS["weight-decay-toy"].make(0, Images("", 0), {}, torch.device("cpu"))
    inner, outer = problem.batches(0, 4, 3, seed=0)
    optimizer = SGD(0.1, 0.9)
    at, bilevel = Checkpoint(optimizer.init(problem.weights), problem.alphas), problem.bilevel(optimizer)
    exact = automatic(bilevel, at, inner, outer)
    shift = torch.linspace(-1, 1, 20, dtype=torch.float64) * float(exact.grad.norm())
    found = []
    for seed in range(60):
        seen = real(bilevel, at, inner, outer, frame_of(exact, 4, torch.Generator().manual_seed(seed)), [1e-4])
        found.append(seen.squared_distance(exact.grad + shift, 0, "whole"))
    assert sum(found) / len(found) == pytest.approx(float(shift.square().sum()), rel=0.2)


def test_failing_estimator_is_a_row_that_says_so() -> None:
    case = Steps()
    task = Task(case.problem, case.at, [case.batch], case.batch, 0, 0)
    _, exact, _ = measure_reference(task, 0, [])
    assert "truncate" in measure(Spec.parse("unrolled:truncate=2"), task, 2, exact, None)["failed"]
    broken = BilevelProblem(case.inner, lambda w, a, b: case.outer(w, a, b) * math.nan, SGD(0.5))
    found = measure(Spec.parse("first-order"), replace(task, problem=broken), 2, exact, None)
    assert "nan" in found["failed"]


# -- runs ---------------------------------------------------------------------------------------------------


def test_every_estimator_is_measured_in_every_condition(finished: Path) -> None:
    content = read_results(finished)
    assert (len(content["references"]), len(content["measurements"]), len(content["rows"])) == (8, 24, 12)
    assert {row["batches"] for row in content["rows"]} == {2}
    assert content["facts"] == {"alphas": 6, "weights": 7}
    assert content["environments"][0]["torch"] == torch.__version__


def test_figures_are_those_of_the_closed_form(finished: Path) -> None:
    toy, optimizer = Quadratic.random(generator(0, "toy")), SGD(0.1, 0.9)
    problem = PROBLEMS["quadratic"].make(0, Images("", 0), {}, torch.device("cpu"))
    inner, outer = problem.batches(1, 16, 3, seed=0)
    state = toy.problem(optimizer).init(toy.weights)
    direct, indirect = (flat(part) for part in toy.exact(optimizer, state, inner, outer))
    wanted = {"warmup_steps": 0, "inner_steps": 3, "batch": 1}
    found = next(record for record in read_results(finished)["references"] if wanted.items() <= record.items())
    assert found["direct"] == pytest.approx(float(direct.norm()), rel=1e-10)
    assert found["indirect"] == pytest.approx(float(indirect.norm()), rel=1e-10)
    # F is quadratic: central differences are exact at every step size
    for entry in found["real"]:
        assert entry["whole"]["along"] == pytest.approx(1, rel=1e-9)
        assert entry["whole"]["slopes"][0] == pytest.approx(float((direct + indirect).norm()), rel=1e-9)
    for row in rows(finished, estimator="first-order"):
        assert row["indirect"]["squared_error"] == {"mean": 1.0, "error": 0.0}
        assert row["passes"] == row["inner_steps"] + 1
    for row in rows(finished, estimator="unrolled"):
        assert row["indirect"]["squared_error"]["mean"] < 1e-20
        assert row["real"][0]["indirect"]["mean"] < 1e-15


def test_noise_of_sge_is_what_theory_says(tmp_path: Path) -> None:
    settings = Settings(estimators=("sge",), directions=(8,), inner_steps=(2,), warmup_steps=(0,))
    assert run(replace(settings, batches=2, draws=60, reference_directions=0), tmp_path)
    (row,) = rows(tmp_path)
    part = row["indirect"]
    # (p + 1) / Q with p = 6, no bias; the estimator's own estimate of it is right on average
    assert part["variance"]["mean"] == pytest.approx(7 / 8, rel=0.25)
    assert abs(part["bias"]["mean"]) < 0.1 * part["variance"]["mean"]
    assert part["own_error"]["mean"] == pytest.approx(7 / 8, rel=0.25)
    assert (row["real"], row["passes"]) == ([], (8 + 1) * 2 + 1)


def test_added_variance_share_is_that_of_the_vectors(finished: Path) -> None:
    found, vectors = read_results(finished), load_checkpoint(finished / "references.safetensors")
    truth = found["reference_rows"][0]
    named = {name: truth[name] for name in CONDITION}
    keys = [" ".join(f"{name}={value}" for name, value in (named | {"batch": batch}).items()) for batch in range(2)]
    first, second = (vectors[key][0] - vectors[key][1] for key in keys)
    assert truth["direct_variance"] == pytest.approx(float((first - second).square().sum()) / 2)
    row = next(row for row in found["rows"] if named.items() <= row.items() and row["estimator"].startswith("sge"))
    variances = [
        measured["indirect"]["variance"] * float(vectors[key][1].square().sum())
        for batch, key in enumerate(keys)
        for measured in found["measurements"]
        if (named | {"batch": batch, "estimator": row["estimator"]}).items() <= measured.items()
    ]
    assert row["added_variance"] == pytest.approx(sum(variances) / 2)
    assert f"{row['added_variance'] / truth['direct_variance']:.3g} |" in markdown_table(found)


def test_what_is_there_is_not_measured_again(finished: Path, tmp_path: Path) -> None:
    run(replace(SMALL, warmup_steps=(0,), batches=1), tmp_path)
    before = read_results(tmp_path)
    run(replace(SMALL, estimators=("sge", "finite-difference"), batches=1), tmp_path)
    after = read_results(tmp_path)
    for kind in ("references", "measurements"):
        assert after[kind][: len(before[kind])] == before[kind]
    # the new warm-up checkpoint, and one more estimator at the old one
    assert len(after["measurements"]) == len(before["measurements"]) + 2 + 2 * 2
    assert {record["environment"] for record in after["measurements"]} == {0, 1}
    for record in measured(tmp_path)["references"]:
        assert record in measured(finished)["references"]


def test_cut_run_resumes_to_the_same_figures(finished: Path, tmp_path: Path) -> None:
    asked, calls = [0], 0

    def stop() -> bool:
        asked[0] += 1
        return asked[0] % 4 == 0

    while not run(SMALL, tmp_path, stop=stop):
        calls += 1
    assert calls > 5
    assert measured(tmp_path) == measured(finished)
    ours, theirs = (load_checkpoint(path / "warmup" / "5.safetensors") for path in (tmp_path, finished))
    for name, tensor in ours["outer"]["weights"].items():
        assert torch.equal(tensor, theirs["outer"]["weights"][name])


def test_warmup_has_a_learning_rate_of_its_own(finished: Path, tmp_path: Path) -> None:
    assert run(replace(SMALL, estimators=("first-order",), warmup_lr=0.02), tmp_path)
    for ours, theirs in zip(measured(tmp_path)["references"], measured(finished)["references"], strict=True):
        assert (ours == theirs) == (ours["warmup_steps"] == 0)


@pytest.mark.parametrize("problem", ["weight-decay-toy", "hyper-cleaning", "weight-decay"])
def test_problems_that_take_seconds(problem: str, tmp_path: Path) -> None:
    settings = replace(SMALL, problem=problem, estimators=("finite-difference", "unrolled"), inner_steps=(1,))
    settings = replace(settings, batch_sizes=(16,), reference_directions=3, reference_steps=(1e-3, 1e-2))
    assert run(settings, tmp_path)
    for row in rows(tmp_path):
        # one smooth step: both are exact, up to rounding and the radius
        assert row["indirect"]["squared_error"]["mean"] < 1e-3
        assert row["real"][0]["indirect"]["mean"] < 1e-2
        assert row["whole"]["cosine"]["mean"] > 0.999
    for row in read_results(tmp_path)["reference_rows"]:
        assert row["real"][0]["indirect"]["along"]["mean"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("problem", "sizes"), [("darts", ("nodes=1", "pooling=smooth")), ("nasbench201", ())])
def test_supernets(problem: str, sizes: tuple[str, ...], tmp_path: Path) -> None:
    settings = replace(SMALL, problem=problem, estimators=("first-order", "unrolled"), inner_steps=(1,), batches=1)
    settings = replace(settings, warmup_steps=(1,), batch_sizes=(8,), data="digits", train_images=160)
    settings = replace(settings, space=("channels=2", "activation=silu", *sizes), reference_directions=1)
    assert run(replace(settings, reference_steps=(1e-3,)), tmp_path)
    first_order, unrolled = rows(tmp_path)
    assert first_order["indirect"]["squared_error"]["mean"] == 1
    assert unrolled["indirect"]["squared_error"]["mean"] < 1e-3
    assert unrolled["real"][0]["indirect"]["mean"] < 0.05


def test_command_measures_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out"
    command = ["--problem", "weight-decay-toy", "--estimators", "first-order", "sge", "unrolled:truncate=1"]
    command += ["--directions", "2", "4", "--inner-steps", "1", "--warmup-steps", "3", "--batches", "2"]
    command += ["--draws", "2", "--reference-directions", "1", "--out", str(path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "20 alphas, 20 weights" in said
    for name in ("report.md", "report.csv", "error-against-passes.png"):
        assert f"{path / name}" in said
        assert (path / name).stat().st_size > 200
    with (path / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["estimator"] for line in lines] == [
        *("first-order", "sge:q=2,mu=0.01", "sge:q=4,mu=0.01", "unrolled:truncate=1"),
    ]
    assert main(command) == 0
    assert "relative MSE" not in capsys.readouterr().out
    assert main(["--problem", "banana", "--out", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"problem": "banana"}, "problem"),
        ({"inner_steps": (0,)}, "inner_steps"),
        ({"smoothings": (math.nan,)}, "smoothings"),
        ({"draws": 1}, "draws"),
        ({"warmup_steps": (3, 3)}, "warmup_steps"),
        ({"dtype": "float16"}, "dtype"),
        ({"space": ("channels",)}, "space"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Settings(**values)
    assert caught.value.field == field


def test_directory_keeps_its_settings(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="seed must be 0"):
        run(replace(SMALL, seed=1), finished)
    with pytest.raises(InvalidValueError, match="719"):
        run(replace(SMALL, problem="hyper-cleaning", batch_sizes=(2000,)), tmp_path / "new")
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(RunDirError):
        run(SMALL, tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(RunDirError, match="format"):
        run(SMALL, tmp_path)
