"""Mistakes put into the code on purpose, each of which the checks of this folder notice.

A mistake is a change of one function's text; a row whose text is gone has to be written again.
"""

import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from black_box_trainings import ALPHAS, ridge
from gpu_runs import assert_one_wait, assert_same_steps, config, last_step, pictures
from pretended_gpu import CUDA, gpu_machine
from stopping import stop_after

from sgenas import SGE, tree
from sgenas.bilevel import BlackBoxProblem, EvolutionStrategies, trainings
from sgenas.bilevel.estimators.sge import estimator as sge
from sgenas.data import batches
from sgenas.data.augmentation import Augmentation
from sgenas.searching import loop, results
from sgenas.searching.alpha_noise import AlphaNoise
from sgenas.searching.arch import PureOptimizer
from sgenas.searching.callbacks import Evaluation, HessianEigenvalue
from sgenas.spaces.darts_space import network
from sgenas.spaces.genotype import Cell, Edge, Genotype
from sgenas.spaces.relaxations import GumbelSoftmax
from sgenas.training import TrainConfig

DEVICES = "(two|2) devices"


def step(**changes: Any) -> None:
    assert_same_steps(**changes)


def whole_search(**changes: Any) -> None:
    with gpu_machine():
        config("cuda", data={"train_images": 8}, **changes).run(images=pictures(), progress=False)


def written_search(path: Path) -> None:
    with gpu_machine():
        config("cuda").run(path, images=pictures(), progress=False)


def resumed_search(path: Path) -> None:
    settings: dict[str, Any] = {"images": pictures(), "progress": False}
    with gpu_machine():
        for stop in (stop_after(1), lambda: False):
            config("cuda", checkpoint_every=1).run(path, stop=stop, **settings)


def training() -> None:
    edges = (Edge(0, 2, "sep_conv_3x3"), Edge(1, 2, "dil_conv_3x3"))
    cell = Cell(edges, (2,), nodes=1)
    whole = TrainConfig(Genotype("darts", (("normal", cell), ("reduce", cell)))).to_dict()
    small = {"epochs": 2, "channels": 2, "layers": 3, "drop_path": 0.5, "auxiliary_weight": 0.0, "device": "cuda"}
    data = whole["data"] | {"data": "pictures", "batch_size": 8, "cutout": 0}
    with gpu_machine():
        TrainConfig.from_dict(whole | small | {"data": data}).run(images=pictures(), progress=False)


def black_box() -> None:
    with gpu_machine():
        problem = BlackBoxProblem(ridge, lambda weights, alphas, _: weights["w"] @ tree.flatten(alphas))
        alphas = tree.map(lambda tensor: tensor.to(CUDA), ALPHAS)
        problem.hypergradient(alphas, estimator=EvolutionStrategies(1))


def counts() -> None:
    with gpu_machine() as machine:
        last_step(machine, 2, graphs=False)
        assert_one_wait(machine)


def launches() -> None:
    with gpu_machine() as machine:
        last_step(machine, 2, graphs=False)
        assert machine.launches <= 600, f"{machine.launches} launches"


class Mistake(NamedTuple):
    """``owner.name`` with ``new`` in place of ``old``; ``check``, which may take a folder, fails with ``words``."""

    owner: Any
    name: str
    old: str
    new: str
    check: Callable[..., None]
    words: str = DEVICES

    def make(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(self.owner, self.name)
        text = textwrap.dedent(inspect.getsource(right))
        assert self.old in text, f"{self.name} has changed"
        text = text.replace(self.old, self.new).replace("super()", f"super({self.owner.__name__}, self)")
        made: dict[str, Any] = {}
        exec(compile("from __future__ import annotations\n" + text, "<mistake>", "exec"), right.__globals__, made)
        monkeypatch.setattr(self.owner, self.name, made[self.name])


DRAWN = "moved(DIRECTIONS[kind](count, size, normal), first.device)"
WEIGHTS = 'space.initial_weights(generator(seed, "weights"))'
ONE_HOT = "run.space.one_hot(run.architecture)"
MISTAKES = {
    "directions left on the CPU": Mistake(sge, "draw", DRAWN, DRAWN[6:-15], partial(step, estimator=SGE(2))),
    "a CPU generator draws on the GPU": Mistake(
        sge, "draw", "device=generator.device", "device=first.device", partial(step, estimator=SGE(2)), "generator"
    ),
    "augmentation left on the CPU": Mistake(
        Augmentation, "__call__", "moved(torch.cat(places, dim=1), images.device)", "torch.cat(places, dim=1)", step
    ),
    "weights left on the CPU": Mistake(loop.Search, "__init__", f"tree.to({WEIGHTS}, self.device)", WEIGHTS, step),
    "class weights left on the CPU": Mistake(
        batches.BatchStream,
        "__init__",
        "class_weights.to(self._device)",
        "class_weights.cpu()",
        partial(step, data={"class_weights": "balanced"}),
    ),
    "derived cell left on the CPU": Mistake(
        Evaluation, "_measure_derived", f"tree.to({ONE_HOT}, run.device)", ONE_HOT, whole_search
    ),
    "start of the eigenvalue left on the CPU": Mistake(
        HessianEigenvalue,
        "on_epoch_end",
        "start.to(tree.flatten(run.alphas))",
        "start",
        partial(whole_search, eigenvalue_every=1),
    ),
    "loaded state left on the CPU": Mistake(loop, "matching", "tree.to(found, device)", "found", resumed_search),
    "loaded slots left on the CPU": Mistake(
        PureOptimizer,
        "load_state_dict",
        'tree.to(state["slots"], next(iter(self._alphas.values())).device)',
        'state["slots"]',
        resumed_search,
    ),
    "drop path left on the CPU": Mistake(
        network, "path_scales", "moved((uniform < keep) / keep, device)", "(uniform < keep) / keep", training
    ),
    "noise of the relaxation left on the CPU": Mistake(
        GumbelSoftmax,
        "draw_noise",
        "moved(gumbel.to(table.dtype), table.device)",
        "gumbel.to(table.dtype)",
        partial(step, relaxation=GumbelSoftmax(hard=False)),
    ),
    "noise of the alphas left on the CPU": Mistake(
        AlphaNoise, "draw", "tree.to(shift, like.device)", "shift", partial(step, alpha_noise=0.3)
    ),
    "black box left on the CPU": Mistake(
        trainings.Ledger,
        "weights",
        "tree.to(unpack(packed), tree.tensors(alphas)[0].device)",
        "unpack(packed)",
        black_box,
    ),
    "alphas to numpy": Mistake(results, "alpha_arrays", "alphas[name].cpu()", "alphas[name]", written_search, "numpy"),
    "a number read in every step": Mistake(
        loop.Search,
        "_gradient_norm",
        '"weight_grad_norm": self.state.grad_norm',
        '"weight_grad_norm": self.state.grad_norm * self.state.grad_norm.item()',
        counts,
        "item|scalar",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_can_still_be_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[name].make(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    mistake.make(monkeypatch)
    folder = [tmp_path / "run"] if "path" in inspect.signature(mistake.check).parameters else []
    with pytest.raises(Exception, match=mistake.words):
        mistake.check(*folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_check_passes_without_the_mistake(name: str, tmp_path: Path) -> None:
    check = MISTAKES[name].check
    check(*[tmp_path / "run"] if "path" in inspect.signature(check).parameters else [])
