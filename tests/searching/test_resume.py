"""A search that was stopped, killed or damaged ends as if nothing had happened, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from same_runs import assert_same_runs
from stopping import stop_after
from tiny_searches import Flip, cells, module_search, net, rows
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

import sgenas
from sgenas import SGE, Unrolled, tree
from sgenas.errors import CheckpointError, DivergenceError, RunDirError
from sgenas.optim import SGD, Adam, InnerState
from sgenas.run.checkpoint import CheckpointWarning, load_checkpoint, save_checkpoint
from sgenas.searching.callbacks import EarlyStopping, Evaluation, HessianEigenvalue
from sgenas.searching.callbacks.evaluation import Measure
from sgenas.spaces.darts_space.published import find_genotype
from sgenas.training import TrainConfig


@dataclass
class Lazy:
    """Makes its momentum in the first step, as torch's SGD does."""

    lr: float = 0.1

    def init(self, weights: Any) -> InnerState:
        return InnerState(tree.clone(weights))

    def step(self, state: InnerState, grad: Any) -> InnerState:
        momentum = tree.add(grad, state.slots["momentum"], 0.9) if state.slots else grad
        return InnerState(tree.add(state.weights, momentum, -self.lr), {"momentum": momentum}, state.step + 1)


class Plain(Lazy):
    """Not as a dataclass."""

    def __init__(self, lr: float) -> None:
        self.lr = lr


# a search from Python and cells by configuration, each with every part that has a state
SGE_ = SGE(num_directions=2, smoothing=0.1)
MODULES: dict[str, Any] = {
    "first order": {},
    "sge": {"estimator": SGE_, "method": "beta-darts"},
    "leftovers": {"estimator": Unrolled(), "inner_steps": 3, "alpha_every": 2, "epochs": 4},
    "gumbel": {"method": "gdas", "inner_steps": 2, "alpha_every": 2, "epochs": 4},
    "dirichlet": {"method": "drnas", "estimator": SGE_, "warmup_epochs": 1},
    "lazy slots": {"weight_optimizer": Lazy(), "arch_optimizer": Lazy()},
    "no dataclass": {"weight_optimizer": Plain(0.1), "selection": "training"},
    "adam": {"weight_optimizer": Adam(lr=0.01), "trajectory_optimizer": SGD(0.1)},
    "torch optimizer": {"arch_optimizer": lambda alphas: torch.optim.AdamW(alphas, lr=0.1, amsgrad=True)},
    "orthogonal": {"estimator": SGE(num_directions=4, smoothing="auto", directions="orthogonal")},
}
CELLS: dict[str, Any] = {
    "first order": {},
    "sge": {"estimator": SGE(num_directions=2, control_variate="finite-difference"), "inner_steps": 2},
    "gumbel": {"method": "gdas", "data": {"cutout": 2}},
    "eigenvalues": {"eigenvalue_every": 1, "alpha_every": 2, "on_nonfinite": "skip"},
}


@pytest.mark.parametrize("name", MODULES)
def test_resumed_module_search_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """4 training and 3 validation batches: a stop falls into the middle of a pass of both."""
    settings = {"epochs": 3, "log_every": 1} | MODULES[name]
    whole = module_search(run_dir=tmp_path / "whole", **settings)
    for steps in (1, 3):
        path = tmp_path / f"stopped-{steps}"
        assert not module_search(run_dir=path, stop=stop_after(steps), **settings).finished
        assert not module_search(run_dir=path, stop=stop_after(2), **settings).finished
        result = module_search(run_dir=path, resume=True, **settings)
        assert result.finished
        assert (result.choices, result.cost) == (whole.choices, whole.cost)
        assert_same_runs(tmp_path / "whole", path)
    again = module_search(run_dir=tmp_path / "whole", **settings)
    assert again.finished, "a finished search returns what it has"
    assert len(again.history) == len(whole.history)
    for name, alpha in whole.alphas.items():
        assert torch.equal(again.alphas[name], alpha)


@pytest.mark.parametrize("name", CELLS)
def test_resumed_cell_search_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    config = cells(**CELLS[name])
    whole = config.run(tmp_path / "whole", progress=False)
    assert not config.run(tmp_path / "run", stop=stop_after(1), progress=False).finished
    # after the last step of an epoch, or in the middle of one
    assert not config.run(tmp_path / "run", stop=stop_after(2), progress=False).finished
    result = config.run(tmp_path / "run", progress=False)
    assert result.finished
    assert result.genotype == whole.genotype
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


class Rows(IterableDataset[Any]):
    """Rows without a number."""

    def __iter__(self) -> Any:
        return iter(rows(40))


def shared_generator() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(5)
    train = DataLoader(rows(48), 16, shuffle=True, generator=draw)
    val = DataLoader(rows(48, 1), 16, sampler=RandomSampler(rows(48, 1), generator=draw))
    return {"train_data": train, "val_data": val}


SOURCES: dict[str, Callable[[], dict[str, Any]]] = {
    "loaders that share a generator": shared_generator,
    "rows without a number": lambda: {"train_data": Rows(), "val_data": Rows()},
    "lists": lambda: {"train_data": [rows(16)[:], rows(8, 1)[:]], "val_data": [rows(16, 2)[:]] * 3},
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("steps", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 3, 5))])
def test_data_continues_where_it_stood(name: str, steps: int, tmp_path: Path) -> None:
    settings = {"epochs": 3, "estimator": SGE_, "inner_steps": 1 if name == "lists" else 2}
    module_search(run_dir=tmp_path / "whole", **SOURCES[name](), **settings)
    module_search(run_dir=tmp_path / "run", stop=stop_after(steps), **SOURCES[name](), **settings)
    module_search(run_dir=tmp_path / "run", **SOURCES[name](), **settings)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_resumed_search_knows_what_it_found_out_about_the_loss(tmp_path: Path) -> None:
    """The memory of a pass is that of its first batch, and decides whether directions are batched."""
    wide = [nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8)]

    def search(path: Path, steps: int = 100) -> Any:
        torch.manual_seed(0)
        batches = [rows(count, 1)[:] for count in (32, 4096, 32, 4096)]
        given: dict[str, Any] = {"estimator": SGE(4, smoothing=0.05), "epochs": 1, "stop": stop_after(steps)}
        return module_search(net(*wide), train_data=batches, val_data=batches, run_dir=path, **given)

    search(tmp_path / "whole")
    search(tmp_path / "run", 1)
    kept = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["local"]["findings"]
    assert kept["saved_bytes"] > 0
    search(tmp_path / "run")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_search_leaves_the_number_of_threads_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training after it in the same process, as in `table1`, has its own."""
    during: list[int] = []

    def stop() -> bool:
        during.append(torch.get_num_threads())
        return True

    monkeypatch.setattr("sgenas.searching.config.fastest_threads", lambda step: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cells().run(stop=stop, progress=False)
        cells(threads=3).run(stop=stop, progress=False)
        assert (during, torch.get_num_threads()) == ([1, 3], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["search", "training"])
def test_scripts_that_torchrun_starts_share_their_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(Exception): ...

    def fail() -> None:
        raise Shared

    monkeypatch.setattr("sgenas.run.distributed.launched", fail)
    config = cells() if kind == "search" else TrainConfig(find_genotype("darts-v2"))
    with pytest.raises(Shared):
        config.run(progress=False)


def test_class_weights_without_a_number_of_threads() -> None:
    """The passes that choose it have batches with the factors of the classes."""
    config = cells(epochs=1, data={"class_weights": "balanced"})
    assert config.threads is None
    assert config.run(progress=False).finished


@pytest.mark.slow
def test_shards_and_class_weights_resume_exactly(tmp_path: Path) -> None:
    config = cells(data={"data_parallel": 2, "class_weights": "balanced"}, estimator=SGE(num_directions=2))
    config.run(tmp_path / "whole", progress=False)
    config.run(tmp_path / "run", stop=stop_after(4), progress=False)
    config.run(tmp_path / "run", progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_damaged_checkpoint_is_replaced_by_the_previous_one(tmp_path: Path) -> None:
    module_search(run_dir=tmp_path / "whole", log_every=1, checkpoint_every=2)
    path = tmp_path / "cut"
    module_search(run_dir=path, log_every=1, checkpoint_every=2, stop=stop_after(7))
    newest = path / "checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:-50])
    with pytest.warns(CheckpointWarning, match="step 6"):
        assert module_search(run_dir=path, log_every=1, checkpoint_every=2).finished
    assert_same_runs(tmp_path / "whole", path)


DEATH = """
import os, signal, sys
from tiny_searches import module_search
from sgenas import SGE
from sgenas.run.callbacks import Callback

class Death(Callback):
    def on_step_start(self, run):
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

module_search(
    run_dir=sys.argv[1], epochs=3, log_every=1, checkpoint_every=5, callbacks=[Death()],
    estimator=SGE(num_directions=2, smoothing=0.1),
)
"""


@pytest.mark.slow
def test_search_that_was_killed_resumes_exactly(tmp_path: Path) -> None:
    settings = {"epochs": 3, "log_every": 1, "checkpoint_every": 5, "estimator": SGE_}
    module_search(run_dir=tmp_path / "whole", **settings)
    support = str(Path(__file__).parents[1] / "support")
    environment = os.environ | {"PYTHONPATH": support, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", DEATH, str(tmp_path / "run")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")["step"] == 5
    module_search(run_dir=tmp_path / "run", **settings)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_search_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    module_search(run_dir=tmp_path / "whole")
    module_search(run_dir=tmp_path / "run", stop=stop_after(1))
    for path in (tmp_path / "run").glob("*.safetensors"):
        path.unlink()
    module_search(run_dir=tmp_path / "run")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


# -- what does not match ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 3}, "epochs is 3 here, 2 there"),
        ({"estimator": SGE_}, "estimator"),
        ({"seed": 4}, "seed"),
        ({"method": "beta-darts"}, "method"),
        ({"weight_optimizer": SGD(0.3)}, "weight_optimizer"),
    ],
)
def test_run_directory_with_other_settings_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    module_search(run_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunDirError, match=said):
        module_search(run_dir=tmp_path, **changes)
    with pytest.raises(RunDirError, match="already"):
        module_search(run_dir=tmp_path, resume=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert module_search(run_dir=tmp_path, overwrite=True, **changes).finished


def test_other_model_is_refused(tmp_path: Path) -> None:
    module_search(run_dir=tmp_path)
    other = sgenas.Choice({"flipped": Flip(), "own": nn.Identity()}, name="whose")
    with pytest.raises(RunDirError, match="whose"):
        module_search(nn.Sequential(nn.Linear(1, 8), nn.ReLU(), other, nn.Linear(8, 1)), run_dir=tmp_path)
    with pytest.raises(RunDirError, match=r"model.parameters is 97 here, 25 there"):
        module_search(net(nn.Linear(8, 8)), run_dir=tmp_path)


@pytest.mark.parametrize(
    "field", ["weights", "slots", "alphas", "arch_optimizer", "streams", "rounds", "alpha_history", "fingerprint"]
)
def test_checkpoint_with_other_parts_is_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    module_search(run_dir=tmp_path, stop=stop_after(2))
    state = load_checkpoint(path)
    state["own"][field] = {"other": torch.zeros(2)}
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="does not match"):
        module_search(run_dir=tmp_path)
    del state["own"][field]
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match=field):
        module_search(run_dir=tmp_path)


def test_checkpoint_of_other_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    cells().run(tmp_path, stop=stop_after(1), progress=False)
    state = load_checkpoint(path)
    assert len(state["own"]["fingerprint"]) > 8
    state["own"]["fingerprint"] = "0"
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="data"):
        cells().run(tmp_path, progress=False)


def test_diverging_search_keeps_a_finite_checkpoint(tmp_path: Path) -> None:
    lr = SGD(lr=1e38)
    for path, settings in (
        ("seen", {"log_every": 1}),
        # in a warm-up no estimator looks at the losses
        ("unseen", {"log_every": 100, "warmup_epochs": 1}),
    ):
        with pytest.raises(DivergenceError, match=r"at step \d+ \(epoch 1\).*learning rate") as caught:
            module_search(run_dir=tmp_path / path, weight_optimizer=lr, checkpoint_every=1, **settings)
        assert "\n" not in str(caught.value)
        state = load_checkpoint(tmp_path / path / "checkpoint.safetensors")
        assert all(tensor.isfinite().all() for tensor in state["own"]["weights"].values())


def test_old_config_with_missing_settings_resumes(tmp_path: Path) -> None:
    """A setting that is added later takes its default, and the run goes on."""
    cells().run(tmp_path / "whole", progress=False)
    path = tmp_path / "run"
    cells().run(path, stop=stop_after(2), progress=False)
    head = json.loads((path / "config.json").read_text())
    del head["config"]["precision"], head["config"]["space"]["pooling"]
    (path / "config.json").write_text(json.dumps(head))
    again = sgenas.SearchConfig.from_dict(head["config"])
    assert again == cells()
    assert again.run(path, progress=False).finished
    assert_same_runs(tmp_path / "whole", path)


def test_callback_that_was_added_starts_fresh(tmp_path: Path) -> None:
    measure: Measure = lambda model, batch: {"count": torch.ones(()), "loss": model(batch[0]).sum()}  # noqa: E731
    module_search(run_dir=tmp_path, epochs=4, stop=stop_after(5), callbacks=[Evaluation([rows(8)[:]], measure)])
    more = [Evaluation([rows(8)[:]], measure), HessianEigenvalue([rows(8)[:]]), EarlyStopping()]
    result = module_search(run_dir=tmp_path, epochs=4, callbacks=more)
    assert "eigenvalue" in result.history[-1]
    assert "eigenvalue" not in result.history[0]
