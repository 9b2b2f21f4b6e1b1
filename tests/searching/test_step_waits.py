"""On a GPU a step of a search waits once, and one that only trains weights never, unless a row is due."""

from typing import Any

import pytest
import torch
from gpu_runs import config, in_double, pictures, stepped
from pretended_gpu import Machine, gpu_machine
from tiny_searches import steps, unstarted
from torch.utils.data import TensorDataset

import sgenas
from sgenas import SGE, Budget
from sgenas.run.callbacks import Callback
from sgenas.spaces import BetaDecay, ConcentrationAnchor, Dirichlet, GumbelSoftmax, ZeroOne, darts

STEPS: dict[str, tuple[dict[str, Any], int]] = {
    "first order": ({}, 1),
    "warm-up": ({"warmup_epochs": 1, "epochs": 2}, 0),
    "sge": ({"estimator": SGE(2)}, 1),
    "control variate": ({"estimator": SGE(2, control_variate="finite-difference"), "trajectory_lr": 0.1}, 1),
    "penalty": ({"budget": Budget(penalty="params"), "regularizer": BetaDecay()}, 1),
    "noise": ({"alpha_noise": 0.3, "relaxation": GumbelSoftmax(), "regularizer": ZeroOne()}, 1),
    # the concentrations are read, since the draws are a CPU's
    "Dirichlet": ({"relaxation": Dirichlet(), "regularizer": ConcentrationAnchor()}, 2),
    "weights of classes": ({"data": {"class_weights": "balanced"}}, 1),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("penalty", "control variate") else name for name in STEPS],
)
def test_a_step_of_a_search_waits_once(name: str) -> None:
    settings, waits = STEPS[name]
    if "budget" in settings:
        # counted on the meta device, which the pretended GPU needs for itself
        stepped("cpu", **settings)
    with gpu_machine() as machine, in_double():
        run = unstarted(lambda: config("cuda", **settings).run(images=pictures(), progress=False))
        taken = steps(run, 2)
        next(taken)
        machine.reset()
        next(taken)
        assert sum(machine.waits.values()) == waits, machine.waits


class Waits(Callback):
    """Notes the waits of each step of a training without its row, and of each row."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self.steps, self.rows = machine, list[int](), list[int]()

    def on_step_start(self, run: Any) -> None:
        self._machine.reset()

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        self.steps.append(sum(self._machine.waits.values()))
        self._machine.reset()

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if row["kind"] == "step":
            self.rows.append(sum(self._machine.waits.values()))


def test_a_step_of_a_training_never_waits_and_a_row_does_once() -> None:
    space = darts(channels=2, layers=3, nodes=1)
    genotype = space.derive(space.random_alphas(torch.Generator().manual_seed(0)))
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(12, 3, 8, 8, generator=draw), torch.arange(12) % 10
    with gpu_machine() as machine:
        waits = Waits(machine)
        sgenas.train(
            space.build(genotype, channels=2, layers=3),
            TensorDataset(images, labels),
            epochs=2,
            batch_size=4,
            class_weights=torch.ones(10),
            drop_path=0.3,
            ema=0.9,
            callbacks=[waits],
            device="cuda",
            precision="tf32",
            channels_last=True,
            log_every=1,
            progress=False,
        )
    assert waits.steps == [0] * 6
    assert waits.rows == [1] * 6
