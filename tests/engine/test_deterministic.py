"""The same seed, the same result: for every method and kind of estimator, whatever the global generators say;
and `--deterministic`, which refuses the operations that cannot keep that promise."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from global_state import disturb, untouched
from torch import nn

import sgenas
from sgenas.bilevel import FirstOrder
from sgenas.engine import (
    Search,
    SearchConfig,
    TrainConfig,
    deterministic,
    resume_search,
    run_search,
    run_training,
)
from sgenas.engine.config import ESTIMATOR_NAMES
from sgenas.engine.run_folder import RunFolder
from sgenas.errors import ConfigError
from sgenas.methods import METHODS

Make = Callable[..., Any]
CLIPPED = {"grad_clip": None}


def of_estimator(name: str) -> dict[str, Any]:
    # 10 is the default, which an estimator without directions must leave
    directions = 2 if name in ("sge", "evolution") else 10
    return {"estimator": {"estimator": name, "directions": directions}}


RUNS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    # its operations take one channel in four
    "pc-darts": {"method": "pc-darts", "space": {"channels": 8}},
    **{name: of_estimator(name) for name in ESTIMATOR_NAMES if name != "sge"},
    "nasbench201": {"space": {"space": "nasbench201", "cells": 1, "layers": 8, "nodes": 4}},
    **{
        f"sge-{name}": {"estimator": {"computation": name}, "weights": CLIPPED}
        for name in ("loop", "streamed", "vectorised", "directional", "difference")
    },
    "antithetic": {"estimator": {"direction_kind": "antithetic", "smoothing": "auto"}},
    "orthogonal": {"estimator": {"direction_kind": "orthogonal", "control_variate": "both"}},
    "sphere": {"estimator": {"direction_kind": "sphere", "blocks": "table"}},
    "fraction": {"estimator": {"batch_fraction": 0.5, "inner_steps": 2}, "weights": {"weights": "separate"}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_seed_makes_a_search(name: str, small: Make, tmp_path: Path, assert_same_runs: Any) -> None:
    import rich.style  # noqa: F401  its import alone draws a number

    data = {"train_images": 64, "cutout": 2}
    config = small(epochs=1, deterministic=name == "darts", data=data, **RUNS[name])
    for seed, folder in enumerate("ab"):
        disturb(seed)
        with untouched():
            run_search(config, tmp_path / folder)
    assert_same_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("kept", [True, False])
def test_a_seed_makes_a_training(kept: bool, training: Make, tmp_path: Path, assert_same_runs: Any) -> None:
    import rich.style  # noqa: F401

    config: TrainConfig = training(epochs=2, deterministic=kept)
    for seed, folder in enumerate("ab"):
        disturb(seed)
        with untouched():
            run_training(config, tmp_path / folder)
    assert_same_runs(tmp_path / "a", tmp_path / "b")


GENERATORS = {"inner_stream", "outer_stream", "directions"}
"""Of a search: what it draws from after its first step. Others are made anew from the seed and their name:
sample, split, evaluate, weights, alphas, rounding, and eigenvalue with the number of the epoch."""


def generators_of(run: Any) -> dict[str, torch.Generator]:
    """{attribute: generator} of a run and of what it holds, modules and streams above all."""
    found = {}
    for name, value in vars(run).items():
        for inner in (value, *getattr(value, "__dict__", {}).values()):
            if isinstance(inner, torch.Generator):
                found[name] = inner
    return found


def test_every_generator_of_a_search_is_in_its_checkpoint(small: Make, tmp_path: Path) -> None:
    search = Search(small(), RunFolder(tmp_path / "run"))
    found = generators_of(search)
    assert set(found) == GENERATORS
    state = search.state_dict()
    for name, generator in found.items():
        saved = state[name] if name == "directions" else state[name]["generator"]
        assert torch.equal(saved, generator.get_state())
        generator.manual_seed(12345)
    search.load_state_dict(state)
    for name, generator in found.items():
        saved = state[name] if name == "directions" else state[name]["generator"]
        assert torch.equal(saved, generator.get_state())


def test_every_generator_of_a_training_is_in_its_checkpoint(training: Make, tmp_path: Path) -> None:
    from sgenas.engine import Training

    run = Training(training(), RunFolder(tmp_path / "run"))
    found = generators_of(run)
    # the network draws from `drop_path_draws` too, and goes by two names
    assert {id(generator) for generator in found.values()} == {
        id(found["stream"]),
        id(found["drop_path_draws"]),
    }
    assert found["network"] is found["drop_path_draws"]
    state = run.state_dict()
    assert torch.equal(state["stream"]["generator"], found["stream"].get_state())
    assert torch.equal(state["drop_path"], found["drop_path_draws"].get_state())


# -- the flag ---------------------------------------------------------------------------------------------


def overwrite_twice(x: torch.Tensor) -> torch.Tensor:
    """An operation that PyTorch has in no deterministic form, on a CPU either."""
    return x.detach().clone().put_(torch.tensor([0]), x.detach().flatten()[:1])


NAMED = r"deterministic must be off with the operation put_, of which PyTorch has no deterministic form"


def test_an_operation_without_a_deterministic_form_is_named(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Search._loss

    def loss(self: Search, weights: Any, alphas: Any, batch: Any) -> torch.Tensor:
        overwrite_twice(batch[0])
        return plain(self, weights, alphas, batch)

    monkeypatch.setattr(Search, "_loss", loss)
    config: SearchConfig = small(epochs=1, **of_estimator("first-order"))
    assert run_search(config, tmp_path / "free").finished
    with pytest.raises(ConfigError, match=f"^--{NAMED}"):
        run_search(
            small(epochs=1, deterministic=True, **of_estimator("first-order")), tmp_path / "deterministic"
        )
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.undo()
    assert resume_search(tmp_path / "deterministic").finished, "its first checkpoint is whole"


def test_in_a_module_too() -> None:
    space = sgenas.ModuleSpace(
        nn.Sequential(nn.Linear(1, 1), sgenas.Choice({"a": nn.ReLU(), "b": nn.Tanh()}, name="c"))
    )
    batches = [torch.ones(4, 1)]

    def loss(model: Any, batch: Any) -> torch.Tensor:
        overwrite_twice(batch)
        value: torch.Tensor = model(batch).square().mean()
        return value

    def search(**more: Any) -> Any:
        return sgenas.search(space, batches, batches, loss, estimator=FirstOrder(), epochs=1, **more)

    assert search().history
    with pytest.raises(ConfigError, match=f"^{NAMED}"):
        search(deterministic=True)


@pytest.mark.parametrize("mode", [(False, False), (True, False), (True, True)])
def test_the_mode_is_put_back(mode: tuple[bool, bool]) -> None:
    def state() -> tuple[bool, bool]:
        enabled = torch.are_deterministic_algorithms_enabled()
        return enabled, torch.is_deterministic_algorithms_warn_only_enabled()

    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
    try:
        with deterministic.algorithms(False, "it"):
            assert state() == mode
        for error in (ValueError("other"), RuntimeError("other")):
            with pytest.raises(type(error), match="^other$"), deterministic.algorithms(True, "it"):
                assert state() == (True, False)
                raise error
            assert state() == mode
        with deterministic.algorithms(True, "it"):
            assert state() == (True, False)
        assert state() == mode
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_needs_a_setting_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    deterministic.check(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG must be :4096:8 or :16:8 .* got None"):
        deterministic.check(gpu)
    deterministic.prepare_process()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    deterministic.check(gpu)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    deterministic.prepare_process()
    with pytest.raises(ConfigError, match="got ':0:0'"):
        deterministic.check(gpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(
    small: Make,
    training: Make,
    tmp_path: Path,
    assert_same_runs: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not yet run: no machine with a GPU was at hand."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name in "ab":
        run_search(small(device="cuda", deterministic=True), tmp_path / "search" / name)
        run_training(training(device="cuda", deterministic=True), tmp_path / "training" / name)
    assert_same_runs(tmp_path / "search" / "a", tmp_path / "search" / "b")
    assert_same_runs(tmp_path / "training" / "a", tmp_path / "training" / "b")
