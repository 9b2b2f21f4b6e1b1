"""Searches on a pretended GPU: every estimator, method, space, relaxation, optimizer and selection, step by step.

Each test runs the same in float64 on the CPU and compares numbers; what the pretended GPU cannot show is in
``tests/support/pretended_gpu.py``.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gpu_runs import SMALLEST, assert_same_histories, assert_same_steps, config, in_double, pictures, stepped
from pretended_gpu import gpu_machine
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import module_search, net, rows
from torch import Tensor, nn

import sgenas
from sgenas import SGE, Budget
from sgenas.bilevel import (
    ESTIMATORS,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.hvp import largest_eigenvalue
from sgenas.device import CUBLAS_DETERMINISTIC, CUBLAS_WORKSPACE
from sgenas.errors import MemoryWarning
from sgenas.methods import METHODS
from sgenas.optim import INNER_OPTIMIZERS
from sgenas.run.checkpoint import load_checkpoint
from sgenas.searching.callbacks import SupernetRanking, TabulatedAccuracy, collapse
from sgenas.searching.results import SearchResult
from sgenas.searching.selection import EvolutionSelection, PerturbationSelection, RandomSelection
from sgenas.spaces import RELAXATIONS, AccuracyTable, DartsSettings, GumbelSoftmax, MacroSettings, NasBench201Settings
from sgenas.spaces.nasbench201_space.strings import all_strings

WAYS: dict[str, dict[str, Any]] = {
    "first-order": {"estimator": FirstOrder(), "data": {"cutout": 4}},
    "finite-difference": {"estimator": FiniteDifference()},
    "unrolled": {"estimator": Unrolled(), "inner_steps": 2},
    "neumann": {"estimator": Neumann(1)},
    "conjugate-gradient": {"estimator": ConjugateGradient(1)},
    "evolution-strategies": {"estimator": EvolutionStrategies(1)},
    "sge sequential": {"estimator": SGE(2, computation="sequential"), "inner_steps": 2},
    "sge batched": {"estimator": SGE(3, computation="batched", chunk=2), "inner_steps": 2},
    "sge trajectory": {"estimator": SGE(2, control_variate="finite-difference"), "trajectory_lr": 0.1},
    "sge shards": {"estimator": SGE(2), "data": {"data_parallel": 2, "class_weights": "balanced"}},
    "alpha noise": {"alpha_noise": 0.3},
}


def test_every_estimator_and_relaxation_has_a_row() -> None:
    assert set(ESTIMATORS) <= {name.split()[0] for name in WAYS}
    assert {RELAXATIONS.get(name) for name in RELAXATIONS} == {type(METHODS.get(name).relaxation) for name in METHODS}


@pytest.mark.parametrize("name", WAYS)
def test_step_on_a_gpu_is_that_of_the_cpu(name: str) -> None:
    assert_same_steps(**WAYS[name])


@pytest.mark.slow
def test_step_with_as_many_directions_as_it_takes_is_that_of_the_cpu() -> None:
    assert_same_steps(2, estimator=SGE("auto"))


@pytest.mark.parametrize("method", list(METHODS))
def test_step_of_every_method_is_that_of_the_cpu(method: str) -> None:
    operations = ("max_pool_3x3", "skip_connect", "dil_conv_3x3")
    space = DartsSettings(channels=8, layers=3, nodes=1, operations=operations)
    assert_same_steps(method=method, space=space, warmup_epochs=0)


SPACES: dict[str, Any] = {
    "smooth": DartsSettings(
        channels=2, layers=3, nodes=1, operations=("max_pool_3x3", "avg_pool_3x3"), pooling="smooth", activation="silu"
    ),
    "partial": NasBench201Settings(
        channels=4, layers=1, partial_channels=2, operations=("avg_pool_3x3", "nor_conv_1x1")
    ),
    "macro": MacroSettings(channels=2),
}


@pytest.mark.parametrize("space", SPACES)
def test_step_in_every_space_is_that_of_the_cpu(space: str) -> None:
    assert_same_steps(space=SPACES[space], estimator=SGE(2, computation="batched"))


@pytest.mark.parametrize("name", list(INNER_OPTIMIZERS))
def test_two_steps_of_every_optimizer_are_those_of_the_cpu(name: str) -> None:
    optimizer = INNER_OPTIMIZERS.get(name)(lr=0.01)
    assert_same_steps(2, weight_optimizer=optimizer, arch_optimizer=optimizer, lr_min=0.0)


# -- whole searches ---------------------------------------------------------------------------------------------


def search(device: str, run_dir: Path | None = None, *, classes: int = 4, **changes: Any) -> SearchResult:
    """The result of the search of ``config``, with its callbacks and its ``stop`` among the changes."""
    given = {name: changes.pop(name) for name in ("callbacks", "stop") if name in changes}
    with in_double():
        images = pictures(classes=classes)
        return config(device, **changes).run(run_dir, images=images, progress=False, **given)


def test_search_with_everything_that_is_measured_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "largest_eigenvalue", partial(largest_eigenvalue, tolerance=1e-9))
    monkeypatch.setenv(CUBLAS_WORKSPACE, CUBLAS_DETERMINISTIC[0])
    found = assert_same_histories(
        partial(
            search,
            eigenvalue_every=1,
            on_nonfinite="skip",
            deterministic=True,
            budget=Budget(max_params=10**6, channels=4, layers=3, penalty="params", penalty_weight=0.1),
            data={"cutout": 4, "class_weights": "balanced"},
        )
    )
    expected = {"val_accuracy", "derived_accuracy", "eigenvalue", "derived_params"}
    assert expected <= found.history[-1].keys()


STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random", "selection": RandomSelection(candidates=2, batches=1)},
    "evolution": {"strategy": "evolution", "selection": EvolutionSelection(candidates=3, population=2, sample_size=1)},
    "perturbation": {"selection": PerturbationSelection(finetune_epochs=0)},
}


@pytest.mark.parametrize(
    "name", ["evolution", *(pytest.param(each, marks=pytest.mark.slow) for each in ("random", "perturbation"))]
)
def test_every_selection_chooses_what_it_chooses_on_the_cpu(name: str) -> None:
    assert_same_histories(partial(search, **STRATEGIES[name]))


def test_supernet_ranks_architectures_as_on_the_cpu(tmp_path: Path) -> None:
    accuracies = {arch: (10 + 80 * n * 7919 % 9973 / 9973,) for n, arch in enumerate(all_strings())}
    table = AccuracyTable(["cifar10"], accuracies)

    def run(device: str) -> SearchResult:
        callbacks = [SupernetRanking(table, count=3, batches=1), TabulatedAccuracy(table)]
        space = NasBench201Settings(channels=2, layers=1, operations=("skip_connect", "nor_conv_1x1"))
        return search(device, classes=10, data={"train_images": 20}, space=space, callbacks=callbacks)

    assert "kendall_tau" in assert_same_histories(run).history[-1]


@pytest.mark.parametrize("estimator", ["first-order", SGE(2)])
def test_search_in_a_module_is_that_of_the_cpu(estimator: str | Estimator) -> None:
    def run(device: str) -> SearchResult:
        model = net(nn.BatchNorm1d(8), sgenas.WidthChoice([4, 8], name="width"))
        data = {"train_data": rows(), "val_data": rows(48, seed=1)}
        return module_search(model, device=device, epochs=1, estimator=estimator, **data)

    with in_double():
        assert_same_histories(run)


def test_stopped_search_resumes_bit_for_bit_and_its_checkpoint_is_read_on_a_cpu(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"estimator": SGE(1), "relaxation": GumbelSoftmax(hard=False), "checkpoint_every": 1}
    with gpu_machine():
        search("cuda", tmp_path / "whole", **settings)
        assert not search("cuda", tmp_path / "stopped", stop=stop_after(2), **settings).finished
        assert search("cuda", tmp_path / "stopped", **settings).finished
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    weights = load_checkpoint(tmp_path / "stopped" / "checkpoint.safetensors")["own"]["weights"]
    assert all(type(weight) is Tensor and weight.isfinite().all() for weight in weights.values())


def test_search_stays_on_the_gpu_that_it_is_given() -> None:
    with gpu_machine(gpus=2) as machine:
        search("cuda:1", estimator=SGE(1), data={"train_images": 8})
        assert machine.gpus[0].peak == 0 < machine.gpus[1].peak


def test_directions_are_batched_as_far_as_there_is_room() -> None:
    changes: dict[str, Any] = {"estimator": SGE(4, computation="batched", chunk=4), "space": SMALLEST}
    with gpu_machine() as machine:
        expected, _ = stepped("cuda", **changes)
        peak = machine.gpus[0].peak
    with gpu_machine(memory=int(0.8 * peak)), pytest.warns(MemoryWarning):
        found, run = stepped("cuda", **changes)
    assert run.notes["chunk"] == 2
    assert found == pytest.approx(expected, rel=1e-6)
