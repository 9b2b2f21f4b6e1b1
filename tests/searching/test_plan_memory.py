"""The planned memory of batched directions against the peak of all tensors, as the CPU's allocator reports it."""

from typing import Any

import pytest
import torch
from pretended_gpu import gpu_machine
from torch.autograd.profiler import profile

from sgenas import SGE, tree
from sgenas.bilevel.estimators.sge.batched import trajectory_bytes
from sgenas.bilevel.saved_memory import SavedMemory
from sgenas.optim import InnerState
from sgenas.random import generator
from sgenas.run.callbacks import Callback
from sgenas.searching.config import SearchConfig

MEMBERS = 4


class _Measured(Exception):
    """Leaves a search before its first step."""


class Measure(Callback):
    def on_start(self, run: Any) -> None:
        inner, outer = next(run._train), next(run._val)
        objectives = run.objectives()
        noise = objectives.space.draw_noise(run.alphas, generator(0, "plan"))
        problem, state = objectives.problem(run.weight_optimizer(), run.penalties(), noise), run.state
        with SavedMemory() as saved:
            problem.run(state, run.alphas, [inner])
        estimator = SGE(MEMBERS, smoothing=0.1, computation="batched")
        with profile(profile_memory=True) as seen:
            estimator(problem, state, run.alphas, [inner], outer, generator=generator(0, "directions"))
        found = [each for each in seen.kineto_results.events() if each.name() == "[memory]"]
        taken = torch.tensor([each.nbytes() for each in sorted(found, key=lambda each: each.start_ns())])
        peak = taken.cumsum(0).max().item()
        on_cpu = MEMBERS * trajectory_bytes(state, saved.peak)
        with gpu_machine():
            there = InnerState(tree.to(state.weights, torch.device("cuda")), state.slots, state.step)
            on_gpu = MEMBERS * trajectory_bytes(there, saved.peak)
        self.ratios = on_gpu / peak, on_cpu / peak
        raise _Measured


def test_planned_memory_is_that_of_the_tensors() -> None:
    settings: dict[str, Any] = {"data.data": "digits", "data.train_images": 160, "data.batch_size": 64, "epochs": 1}
    settings |= {"space.channels": 4, "space.layers": 3, "space.nodes": 1, "device": "cpu", "threads": 1}
    config = SearchConfig.of_method("darts", settings | {"derived_every": 0, "estimator.name": "sge"})
    measure = Measure()
    with pytest.raises(_Measured):
        config.run(callbacks=[measure], progress=False)
    on_gpu, on_cpu = measure.ratios
    assert 0.85 < on_gpu < 1.15
    # the libraries' own memory is no tensor's
    assert 1.1 < on_cpu / on_gpu < 1.25
