"""Black boxes: closed forms, what trainings may return, worker processes, failures, and resumed calls."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bilevel_cases import QuadraticCase, close, equal
from black_box_trainings import ALPHAS, Spoiled, count, drawing, exact, outer_loss, ridge
from torch import Tensor, nn

from sgenas import tree
from sgenas.bilevel import (
    SGE,
    BlackBoxProblem,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    RayExecutor,
    TrainingError,
    Unrolled,
)
from sgenas.errors import DivergenceError, InvalidValueError, ProcessError, RunDirError
from sgenas.optim import SGD

LEAST = {"directions": "orthogonal", "aggregate": "least-squares"}
SUPPORT = Path(__file__).parents[1] / "support"


# -- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", ["gaussian", "orthogonal", "antithetic"])
def test_sge_with_as_many_directions_as_alphas_is_the_closed_form(directions: str) -> None:
    direct, indirect = exact(ALPHAS)
    for smoothing in (1e-3, 1e-4):
        # pairs measure half as many directions, and central differences are better by an order
        pairs = directions == "antithetic"
        estimator = SGE(8 if pairs else 4, smoothing, directions, aggregate="least-squares")
        result = BlackBoxProblem(ridge, outer_loss).hypergradient(ALPHAS, estimator=estimator)
        torch.testing.assert_close(tree.flatten(result.direct), direct, rtol=1e-12, atol=1e-12)
        tolerance = 100 * smoothing**2 if pairs else 10 * smoothing
        torch.testing.assert_close(tree.flatten(result.indirect), indirect, rtol=0, atol=tolerance)
        close(result.grad, tree.add(result.direct, result.indirect))
        assert result.state.weights["count"].dtype == torch.int64
        close(result.state.weights, ridge(ALPHAS, 0))


def test_sge_of_written_out_inner_steps_is_sge_of_the_problem_and_near_unrolled() -> None:
    case = QuadraticCase(SGD(0.2, momentum=0.9), 5)

    def train(alphas: Any, seed: int) -> Any:
        return case.problem.run(case.state, alphas, case.inner).end.weights

    problem = BlackBoxProblem(train, case.problem.outer_loss)
    estimator = SGE(6, 0.1, **LEAST)
    black_box = problem.hypergradient(case.alphas, case.outer, estimator=estimator, seed=3)
    close(black_box.grad, case.estimate(estimator, seed=3).grad, 1e-9)
    close(black_box.grad, case.estimate(Unrolled()).grad, 1e-9)
    values = EvolutionStrategies(5)
    black_box = problem.hypergradient(case.alphas, case.outer, estimator=values, seed=3)
    close(black_box.grad, case.estimate(values, seed=3).grad)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.01, "auto"])
def test_the_mean_over_many_directions_is_the_closed_form(smoothing: Any) -> None:
    problem, (direct, indirect) = BlackBoxProblem(ridge, outer_loss), exact(ALPHAS)
    result = problem.hypergradient(ALPHAS, estimator=SGE(200, smoothing, "antithetic"))
    error = (tree.flatten(result.indirect) - indirect).norm()
    assert error < 3 * result.diagnostics["standard_error"] < indirect.norm()
    whole = problem.hypergradient(ALPHAS, estimator=EvolutionStrategies(200, 0.01, "antithetic"))
    assert (tree.flatten(whole.grad) - direct - indirect).norm() < 3 * whole.diagnostics["standard_error"]


def test_first_order_takes_one_training_and_gives_the_direct_gradient() -> None:
    result = BlackBoxProblem(ridge, outer_loss).hypergradient(ALPHAS, estimator=FirstOrder())
    torch.testing.assert_close(tree.flatten(result.grad), exact(ALPHAS)[0])
    assert result.diagnostics["trainings"] == 1


@pytest.mark.parametrize(
    ("estimator", "trainings"),
    [(SGE(3), 4), (SGE(3, "auto"), 9), (SGE(2, "auto", "antithetic"), 13), (EvolutionStrategies(3), 4)],
    ids=repr,
)
def test_trainings_are_as_many_as_documented(estimator: Estimator, trainings: int, tmp_path: Path) -> None:
    problem = BlackBoxProblem(Spoiled(tmp_path), outer_loss)
    assert problem.hypergradient(ALPHAS, estimator=estimator).diagnostics["trainings"] == trainings
    assert count(tmp_path) == trainings
    # nothing is held after a call that succeeded
    problem.hypergradient(ALPHAS, estimator=estimator)
    assert count(tmp_path) == 2 * trainings


def test_backward_adds_to_the_gradients_of_the_alphas() -> None:
    alphas = {"first": ALPHAS["first"].clone().requires_grad_(), "rest": [ALPHAS["rest"][0].clone()]}
    result = BlackBoxProblem(ridge, outer_loss).hypergradient(alphas)
    result.backward()
    assert torch.equal(alphas["first"].grad, result.grad["first"])
    assert torch.equal(alphas["rest"][0].grad, result.grad["rest"][0])


def test_the_outer_batch_and_the_training_seed_arrive() -> None:
    seen = set()

    def train(alphas: Any, seed: int) -> Any:
        seen.add(seed)
        alphas["first"].zero_()
        return ridge(alphas, seed)

    problem = BlackBoxProblem(train, outer_loss)
    alphas = tree.clone(ALPHAS)
    result = problem.hypergradient(alphas, torch.zeros(4).double(), seed=5)
    assert equal(alphas, ALPHAS)
    loss = outer_loss(result.state.weights, ALPHAS, torch.zeros(4).double())
    assert result.outer_loss == loss
    problem.hypergradient(alphas, seed=5, training_seed=11)
    assert seen == {5, 11}


# -- what trainings return -----------------------------------------------------------------------------------


def scaled(alphas: Any, seed: int) -> Tensor:
    return alphas.exp() * torch.arange(1.0, 4.0)


def as_module(alphas: Any, seed: int) -> Any:
    model = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[1].running_mean.copy_(scaled(alphas, seed))
    model[1].num_batches_tracked.fill_(5)
    model.requires_grad_()
    return model


KINDS: dict[str, tuple[Any, Any]] = {
    "tensor": (scaled, lambda w: w),
    "array": (lambda a, s: scaled(a, s).numpy()[::-1], lambda w: w),
    "nested": (lambda a, s: {"a": [(scaled(a, s), torch.tensor(True))], 2: {}}, lambda w: w["a"][0][0]),
    "module": (as_module, lambda w: w["1.running_mean"]),
    "state dict": (lambda a, s: as_module(a, s).state_dict(), lambda w: w["1.running_mean"]),
    "scalar": (lambda a, s: {"w": np.float32(scaled(a, s).sum()), "n": np.int64(3)}, lambda w: w["w"]),
    "tied": (lambda a, s: [scaled(a, s)] * 2, lambda w: w[1]),
    "half": (lambda a, s: scaled(a, s).bfloat16(), lambda w: w),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_trainings_may_return(kind: str, on_disk: bool, tmp_path: Path) -> None:
    train, part = KINDS[kind]
    alphas = torch.tensor([0.1, 0.2, 0.3])
    run_dir = tmp_path if on_disk else None
    problem = BlackBoxProblem(train, lambda w, a, b: part(w).float().sum(), run_dir=run_dir)
    result = problem.hypergradient(alphas, estimator=SGE(3, 0.25, **LEAST))
    slopes = torch.arange(1.0, 4.0).flip(0) if kind == "array" else torch.arange(1.0, 4.0)
    expected = alphas.exp() * torch.arange(1.0, 4.0)
    assert slopes.numel() == 3
    torch.testing.assert_close(result.grad, expected, rtol=0.5, atol=0.1)
    if kind == "nested":
        assert result.state.weights["a"][0][1].dtype == torch.bool
        assert result.state.weights[2] == {}
    if kind == "module":
        assert result.state.weights["1.num_batches_tracked"] == torch.tensor(5)


@pytest.mark.parametrize("kind", ["text", "returns None", "nan", "complex", "empty", "key", "objects"])
def test_unusable_weights_are_named(kind: str, tmp_path: Path) -> None:
    problem = BlackBoxProblem(Spoiled(tmp_path, kind, limit=-9.0), outer_loss)
    with pytest.raises(TrainingError, match="without perturbation at alphas.*returned") as caught:
        problem.hypergradient(ALPHAS)
    assert "\n" not in str(caught.value)


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "raised RuntimeError: no luck"),
        ("exits", "raised SystemExit: 3"),
        ("nan", "NaN or infinite values in 'w'"),
        ("shape", "'w' shape (2,), and shape (4,)"),
        ("keys", "'w' missing"),
        ("order", "another order"),
    ],
)
@pytest.mark.parametrize("estimator", [SGE(6), EvolutionStrategies(6)], ids=["sge", "es"])
def test_a_failed_training_is_named_and_the_others_are_kept(
    kind: str, words: str, estimator: Estimator, tmp_path: Path
) -> None:
    written, run_dir = tmp_path / "written", tmp_path / "run"
    written.mkdir()
    for folder in (None, run_dir):
        problem = BlackBoxProblem(Spoiled(written, kind), outer_loss, run_dir=folder)
        with pytest.raises(TrainingError, match=r"direction \d of 6 at alphas \[0.3") as caught:
            problem.hypergradient(ALPHAS, estimator=estimator)
        message = str(caught.value)
        assert words in message
        assert "\n" not in message
        assert (kind in ("raises", "exits")) == any(
            "Traceback" in note for note in getattr(caught.value, "__notes__", [])
        )
        first = count(written)
        with pytest.raises(TrainingError) as again:
            problem.hypergradient(ALPHAS, estimator=estimator)
        # only the failed ones are trained again, in memory as on disk
        assert count(written) - first < 7
        if kind in ("raises", "exits", "nan"):
            assert str(again.value) == message
            failed = int(found[1]) + 1 if (found := re.search(r"(\d) more failed", message)) else 1
            assert count(written) - first == failed
            assert f"; {7 - failed} finished" in message
        for path in written.iterdir():
            path.unlink()


def test_a_diverged_step_of_automatic_smoothing_is_left_out() -> None:
    def train(alphas: Any, seed: int) -> Any:
        weights = ridge(alphas, seed)
        far = (tree.flatten(alphas) - tree.flatten(ALPHAS)).norm() > 0.3
        return weights | {"w": weights["w"] * float("nan")} if far else weights

    result = BlackBoxProblem(train, outer_loss).hypergradient(ALPHAS, estimator=SGE(4, "auto", **LEAST))
    torch.testing.assert_close(tree.flatten(result.indirect), exact(ALPHAS)[1], rtol=0.01, atol=0.01)


def test_an_infinite_outer_loss_is_named() -> None:
    problem = BlackBoxProblem(ridge, lambda w, a, b: w["w"].sum() * float("inf"))
    with pytest.raises(DivergenceError, match="outer_loss"):
        problem.hypergradient(ALPHAS)


def test_evolution_strategies_need_no_derivative_and_sge_says_so() -> None:
    problem = BlackBoxProblem(ridge, lambda w, a, b: (w["w"].detach() - 1).square().sum())
    result = problem.hypergradient(ALPHAS, estimator=EvolutionStrategies(4))
    assert tree.norm(result.grad) > 0
    with pytest.raises(InvalidValueError, match="EvolutionStrategies") as caught:
        problem.hypergradient(ALPHAS)
    assert caught.value.field == "outer_loss"


@pytest.mark.parametrize(
    "estimator", [Unrolled(), Neumann(), ConjugateGradient(), FiniteDifference()], ids=lambda e: type(e).__name__
)
def test_estimators_with_an_inner_loss_are_refused_before_any_training(estimator: Estimator, tmp_path: Path) -> None:
    problem = BlackBoxProblem(Spoiled(tmp_path), outer_loss)
    with pytest.raises(InvalidValueError, match="use SGE or EvolutionStrategies"):
        problem.hypergradient(ALPHAS, estimator=estimator)
    assert count(tmp_path) == 0


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("SGE.control_variate", {"estimator": SGE(control_variate="finite-difference")}),
        ("SGE.computation", {"estimator": SGE(computation="batched")}),
        ("seed", {"seed": -1}),
        ("training_seed", {"training_seed": 0.5}),
        ("alphas", {"alphas": torch.tensor([1])}),
        ("alphas", {"alphas": {}}),
    ],
)
def test_unsuitable_arguments_of_a_call_are_refused(field: str, call: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError) as caught:
        BlackBoxProblem(Spoiled(tmp_path), outer_loss).hypergradient(**({"alphas": ALPHAS} | call))
    assert caught.value.field == field
    assert count(tmp_path) == 0


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("train", {"train": None}),
        ("train", {"train": lambda a, s: a, "workers": 2}),
        ("workers", {"workers": 0}),
        ("workers", {"workers": 2, "executor": ThreadPoolExecutor(1)}),
        ("threads", {"threads": 0}),
        ("timeout", {"timeout": 0}),
        ("timeout", {"timeout": float("nan")}),
        ("timeout", {"timeout": 1, "executor": ThreadPoolExecutor(1)}),
    ],
)
def test_unsuitable_settings_are_refused(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        BlackBoxProblem(**({"train": ridge, "outer_loss": outer_loss} | settings))
    assert caught.value.field == f"BlackBoxProblem.{field}"


# -- where trainings run -------------------------------------------------------------------------------------


def test_trainings_are_seeded_and_leave_the_global_generators_alone() -> None:
    def state() -> str:
        generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        return f"{generators} {torch.get_num_threads()}"

    problem, before = BlackBoxProblem(drawing, outer_loss, threads=1), state()
    with torch.no_grad():
        results = [problem.hypergradient(ALPHAS, seed=seed) for seed in (0, 0, 1)]
    assert state() == before
    assert equal(results[0].grad, results[1].grad)
    # (the noise of a training is the same at all alphas)
    assert tree.norm(results[0].grad) < 100
    assert not equal(results[0].state.weights, results[2].state.weights)


@pytest.mark.parametrize("estimator", [SGE(3), EvolutionStrategies(3)], ids=["sge", "es"])
def test_an_outer_loss_that_draws_is_seeded(estimator: Estimator) -> None:
    def noisy(weights: Any, alphas: Any, batch: Any) -> Tensor:
        return outer_loss(weights, alphas, batch) + torch.randn(()) + float(np.random.rand())

    noise = BlackBoxProblem(ridge, noisy).hypergradient(ALPHAS, estimator=estimator)
    close(noise.grad, BlackBoxProblem(ridge, outer_loss).hypergradient(ALPHAS, estimator=estimator).grad, 1e-6)


def test_worker_processes_and_executors_give_the_same_numbers() -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        BlackBoxProblem(drawing, outer_loss, workers=2) as processes,
    ):
        problems = [
            BlackBoxProblem(drawing, outer_loss, threads=1),
            BlackBoxProblem(drawing, outer_loss, executor=pool, threads=1),
            processes,
        ]
        for estimator in (SGE(3, "auto"), EvolutionStrategies(3)):
            here, *others = (each.hypergradient(ALPHAS, estimator=estimator, seed=2) for each in problems)
            for other in others:
                assert equal(other.grad, here.grad)
                assert equal(other.state.weights, here.state.weights)


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_fails_its_own_training_only(tmp_path: Path) -> None:
    for how, words in (("dies", "its process ended with SIGKILL"), ("hangs", "timeout of 0.5 s")):
        written, run_dir = tmp_path / how, tmp_path / f"{how} run"
        written.mkdir()
        train, timeout = Spoiled(written, how), 0.5 if how == "hangs" else None
        with BlackBoxProblem(train, outer_loss, workers=1 + (not timeout), timeout=timeout, run_dir=run_dir) as problem:
            with pytest.raises(TrainingError, match=words):
                problem.hypergradient(ALPHAS, estimator=SGE(2, directions="antithetic"))
            assert len(list((run_dir / "trainings").glob("*.pt"))) == 2


class Broken:
    def submit(self, function: Any, *arguments: Any) -> Any:
        raise ProcessError("the cluster is gone")


def test_an_executor_that_takes_no_calls_is_named() -> None:
    with pytest.raises(TrainingError, match="submitted.*the cluster is gone"):
        BlackBoxProblem(ridge, outer_loss, executor=Broken()).hypergradient(ALPHAS)


def test_ray_gives_the_same_numbers() -> None:
    ray = pytest.importorskip("ray")
    # functions are pickled by reference: workers must find the module of the training
    paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env=paths)
    try:
        problem = BlackBoxProblem(lambda a, s: ridge(a, s), outer_loss, executor=RayExecutor(), threads=1)
        found = problem.hypergradient(ALPHAS, seed=1)
    finally:
        ray.shutdown()
    assert equal(found.grad, BlackBoxProblem(ridge, outer_loss).hypergradient(ALPHAS, seed=1).grad)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidValueError, match=r"sgenas\[ray\]"):
        RayExecutor()


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(SUPPORT)!r})\n"
        "from black_box_trainings import ALPHAS, outer_loss, ridge\n"
        "from sgenas import SGE, BlackBoxProblem\n"
        "BlackBoxProblem(ridge, outer_loss, timeout=60).hypergradient(ALPHAS, estimator=SGE(1))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert "__name__ == '__main__'" in done.stderr.splitlines()[-1]


# -- resumed calls -------------------------------------------------------------------------------------------


def test_a_completed_call_is_not_trained_again_and_replaces_the_one_before(tmp_path: Path) -> None:
    written, run_dir = tmp_path / "written", tmp_path / "run"
    written.mkdir()

    def call(seed: int, how: str = "none", **settings: Any) -> Any:
        problem = BlackBoxProblem(Spoiled(written, how, 9.0), outer_loss, run_dir=run_dir)
        return problem.hypergradient(ALPHAS, seed=seed, estimator=SGE(3), **settings)

    first = call(0)
    again = call(0)
    assert equal(first.grad, again.grad)
    assert (first.diagnostics["trainings"], again.diagnostics["trainings"]) == (4, 0)
    # another seed of the directions shares the unperturbed training
    assert call(1, training_seed=0).diagnostics["trainings"] == 3
    assert len(list((run_dir / "trainings").glob("*.pt"))) == 4
    assert call(0).diagnostics["trainings"] == 3
    # another procedure shares nothing
    assert call(0, how="raises").diagnostics["trainings"] == 4


def test_other_values_that_train_reads_are_trained_again(tmp_path: Path) -> None:
    config, found = {"scale": [1.0]}, []

    def train(alphas: Any, seed: int) -> Any:
        weights = ridge(alphas, seed)
        return weights | {"w": weights["w"] * config["scale"][0]}

    for scale in (1.0, 1.0, 2.0):
        config["scale"][0] = scale
        problem = BlackBoxProblem(train, outer_loss, run_dir=tmp_path)
        found.append(problem.hypergradient(ALPHAS, estimator=SGE(3)))
    assert [each.diagnostics["trainings"] for each in found] == [4, 0, 4]
    torch.testing.assert_close(found[2].state.weights["w"], 2 * found[0].state.weights["w"])


def test_a_damaged_file_is_trained_again(tmp_path: Path) -> None:
    problem = BlackBoxProblem(ridge, outer_loss, run_dir=tmp_path)
    before = problem.hypergradient(ALPHAS, estimator=SGE(3))
    cut, empty, other, *_ = sorted((tmp_path / "trainings").glob("*.pt"))
    cut.write_bytes(cut.read_bytes()[:-9])
    empty.write_bytes(b"")
    torch.save({"w": 1}, other)
    after = problem.hypergradient(ALPHAS, estimator=SGE(3))
    assert after.diagnostics["trainings"] == 3
    assert equal(before.grad, after.grad)


def test_a_second_call_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    problem = BlackBoxProblem(ridge, outer_loss, run_dir=tmp_path)

    def train(alphas: Any, seed: int) -> Any:
        problem.hypergradient(alphas)

    with pytest.raises(TrainingError, match="in use") as caught:
        BlackBoxProblem(train, outer_loss, run_dir=tmp_path).hypergradient(ALPHAS, estimator=SGE(1))
    assert RunDirError.__name__ in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_call_resumes_with_the_trainings_that_finished(workers: int, tmp_path: Path) -> None:
    written, run_dir = tmp_path / "written", tmp_path / "run"
    written.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(SUPPORT)!r})\n"
        "from black_box_trainings import ALPHAS, Spoiled, outer_loss\n"
        "from sgenas import SGE, BlackBoxProblem\n"
        "if __name__ == '__main__':\n"
        f"    train = Spoiled(Path({str(written)!r}), 'slow', -9.0)\n"
        f"    problem = BlackBoxProblem(train, outer_loss, workers={workers}, threads=1, run_dir={str(run_dir)!r})\n"
        "    result = problem.hypergradient(ALPHAS, estimator=SGE(7), seed=4)\n"
        "    print(int(result.diagnostics['trainings']), result.grad['first'].item().hex())\n"
    )
    process = subprocess.Popen([sys.executable, script])
    finished: list[Path] = []
    while len(finished) < 3:
        time.sleep(0.05)
        finished = list((run_dir / "trainings").glob("*.pt"))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = len(list((run_dir / "trainings").glob("*.pt")))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    trained, first = done.stdout.split()
    assert int(trained) == 8 - kept
    undisturbed = BlackBoxProblem(Spoiled(written), outer_loss, threads=1).hypergradient(
        ALPHAS, estimator=SGE(7), seed=4
    )
    assert float.fromhex(first) == undisturbed.grad["first"].item()
    # the processes of the killed one are gone: they would have written more files
    total = count(written)
    time.sleep(1.5)
    assert count(written) == total
    assert total <= 8 + workers + 8 - kept + 8
