"""Searches with recorded passes: every number is that of the same search without them."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import gpu_machine
from pretended_graphs import PretendedRecorder
from stopping import stop_after
from tiny_searches import cells, module_search, net, squared_error, steps, unstarted
from torch import Tensor, nn

from sgenas import SGE, ModuleSpace, SearchResult, tree
from sgenas.bilevel import BilevelProblem, Estimator, FiniteDifference, FirstOrder
from sgenas.bilevel.cuda_graphs import Replays, replays_on
from sgenas.errors import GraphWarning, MemoryWarning
from sgenas.methods import METHODS
from sgenas.run.callbacks import Callback
from sgenas.searching import api
from sgenas.spaces import SPACES, BetaDecay, GumbelSoftmax


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> PretendedRecorder:
    """Records the passes of searches on the CPU."""
    found = PretendedRecorder()
    monkeypatch.setattr(api, "replays_on", lambda device, wanted: Replays(found) if wanted else None)
    return found


def numbers(result: SearchResult) -> list[Tensor]:
    found = tree.tensors([result.alphas, result.weights])
    measured = [row[name] for row in result.history for name in sorted(row) if "loss" in name or "norm" in name]
    return [*(getattr(tensor, "on_cpu", tensor) for tensor in found), torch.tensor(measured, dtype=torch.float64)]


def same(search: Callable[..., SearchResult]) -> None:
    recorded, usual = numbers(search(graphs=True)), numbers(search(graphs=False))
    assert all(torch.equal(a, b) for a, b in zip(recorded, usual, strict=True))


def of_cells(**changes: Any) -> Callable[..., SearchResult]:
    """Six steps in an epoch."""
    changes = {"epochs": 1, **changes, "data": {"batch_size": 4} | changes.get("data", {})}
    return lambda graphs: cells(graphs=graphs, **changes).run(progress=False)


def test_search_is_recorded_on_a_gpu_if_it_is_wanted() -> None:
    assert isinstance(replays_on(torch.device("cuda", 0), True), Replays)
    assert replays_on(torch.device("cuda", 0), False) is None
    assert replays_on(torch.device("cpu"), True) is None


ESTIMATORS: list[Estimator] = [
    FirstOrder(),
    FiniteDifference(),
    SGE(3, computation="sequential"),
    SGE(3, computation="batched", chunk=2),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inner_steps": 2, "shards": 2},
        pytest.param({"alpha_noise": 0.3}, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_search_in_a_module(recorder: PretendedRecorder, estimator: Estimator, changes: dict[str, Any]) -> None:
    same(partial(module_search, estimator=estimator, regularizer=BetaDecay(), batch_size=8, **changes))
    assert recorder.replayed > recorder.recorded > 0
    # at the end of each epoch, and of the search
    assert recorder.forgotten == 2


@pytest.mark.slow
def test_search_in_cells_with_everything_that_changes_from_step_to_step() -> None:
    """A regularizer that rises, noise of the relaxation and of the architecture, batched directions, shards.

    On a GPU, since a CPU leaves out operations whose mixing weights the noise makes 0.
    """
    changes = {"method": "drnas", "regularizer": BetaDecay(), "alpha_noise": 0.3, "data": {"data_parallel": 2}}
    with gpu_machine() as machine:
        same(of_cells(**changes, estimator=SGE(2, computation="batched"), device="cuda"))
        assert machine.replays


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "gdas"])
@pytest.mark.parametrize("estimator", [FirstOrder(), *ESTIMATORS[2:]], ids=repr)
def test_every_method(recorder: PretendedRecorder, method: str, estimator: Estimator) -> None:
    space = {"channels": 8} if method == "pc-darts" else {}
    same(of_cells(method=method, estimator=estimator, space=space, budget={"penalty": "macs"}))
    assert recorder.replayed > recorder.recorded > 0


@pytest.mark.slow
@pytest.mark.parametrize("space", list(SPACES))
def test_every_space_of_cells_on_a_gpu(space: str) -> None:
    kind: Any = SPACES.get(space)
    sizes = {"darts": {"layers": 3, "nodes": 1}, "nasbench201": {"layers": 1}}
    settings = kind(channels=2, **sizes.get(space, {}))
    with gpu_machine() as machine:
        same(lambda graphs: replace(cells(epochs=1), space=settings, graphs=graphs, device="cuda").run(progress=False))
        assert machine.replays


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_search_on_a_gpu(estimator: Estimator) -> None:
    """The recorder of CUDA; sampled architectures (GDAS), whose zeros a CPU would leave out."""
    with gpu_machine() as machine:
        same(of_cells(method="gdas", estimator=estimator, device="cuda"))
        assert machine.replays


def test_search_in_a_module_on_a_gpu() -> None:
    with gpu_machine() as machine:
        same(partial(module_search, device="cuda", estimator=SGE(3), epochs=1, batch_size=8))
        assert machine.replays


def test_bfloat16(recorder: PretendedRecorder) -> None:
    same(partial(module_search, precision="bf16", batch_size=8))
    assert recorder.replayed > 0


def test_temperature_of_an_epoch_is_that_of_its_recordings(recorder: PretendedRecorder) -> None:
    same(partial(module_search, relaxation=GumbelSoftmax(hard=False), epochs=3, batch_size=8))
    assert recorder.forgotten == 3
    assert recorder.replayed > 0


class Scaled:
    """A loss with a property that callbacks change."""

    factor = 1.0

    def __call__(self, model: Callable[..., Any], batch: Any) -> Tensor:
        return squared_error(model, batch) * self.factor


class Changes(Callback):
    def __init__(self, loss: Scaled, *, each_step: bool) -> None:
        self._loss, self._each_step = loss, each_step

    def on_step_start(self, run: Any) -> None:
        self._loss.factor = 1.0 + (run.step if self._each_step else run.epoch)


@pytest.mark.parametrize("each_step", [False, True])
def test_loss_that_a_callback_changes(recorder: PretendedRecorder, each_step: bool) -> None:
    def search(graphs: bool) -> SearchResult:
        loss = Scaled()
        changes = [Changes(loss, each_step=each_step)]
        return module_search(loss=loss, callbacks=changes, graphs=graphs, batch_size=8, epochs=2)

    if each_step:
        with pytest.warns(GraphWarning, match="mul changes from call to call"):
            same(search)
        assert recorder.recorded == 0
    else:
        same(search)
        assert recorder.recorded > 0


def test_layer_that_draws_is_not_recorded_and_named_in_one_line(recorder: PretendedRecorder) -> None:
    def search(graphs: bool) -> SearchResult:
        space: Any = ModuleSpace(net(nn.Dropout(0.3)), dropout=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sgenas.ModuleSpace", lambda model: space)
            return module_search(graphs=graphs)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same(search)
    told = [str(each.message) for each in caught if each.category is GraphWarning]
    assert len(told) == 1
    assert "draws random numbers" in told[0]
    assert "Dropout" in told[0]
    assert recorder.recorded == 0


def test_stopped_search_resumes_with_the_same_numbers(recorder: PretendedRecorder, tmp_path: Path) -> None:
    settings = {"estimator": SGE(2), "batch_size": 8, "run_dir": tmp_path / "run"}
    module_search(**settings, stop=stop_after(5))
    resumed = numbers(module_search(**settings, resume=True))
    usual = numbers(module_search(**settings | {"run_dir": None}, graphs=False))
    assert all(torch.equal(a, b) for a, b in zip(resumed[:-1], usual[:-1], strict=True))


def test_search_resumes_without_graphs(tmp_path: Path) -> None:
    config = cells(epochs=1)
    config.run(tmp_path, progress=False, stop=stop_after(1))
    assert replace(config, graphs=False).run(tmp_path, progress=False, resume=True).finished


def test_recordings_give_their_memory_back_before_fewer_directions(
    recorder: PretendedRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, most = BilevelProblem._stacked, 2

    def limited(self: Any, loss: Any, weights: Any, alphas: Any, batch: Any, members: int) -> Any:
        if members > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, loss, weights, alphas, batch, members)

    monkeypatch.setattr(BilevelProblem, "_stacked", limited)
    with pytest.warns(MemoryWarning):
        same(partial(module_search, estimator=SGE(4, computation="batched"), batch_size=8))
    assert recorder.replayed > 0


@pytest.mark.parametrize(
    ("estimator", "replays"),
    [
        (FirstOrder(), 2),
        (FiniteDifference(), 4),
        (SGE(10, computation="sequential"), 12),
        (SGE(10, computation="batched"), 3),
    ],
    ids=repr,
)
def test_replays_per_step(recorder: PretendedRecorder, estimator: Estimator, replays: int) -> None:
    run = unstarted(partial(module_search, estimator=estimator, batch_size=8, epochs=1))
    counts = [recorder.replayed for _ in steps(run, 6)]
    assert counts[5] - counts[4] == replays
