"""Memory: what `sgenas plan` predicts for SGE against what it takes, and what happens when memory runs out."""

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from record import StepTimes
from supernet import inputs

import sgenas
from gpu_parts.check import Check, median
from gpu_parts.numbers import difference
from gpu_parts.speed import OPTIMIZER, config, supernet_settings
from sgenas import losses
from sgenas.bilevel import SGE, BilevelProblem, HypergradientResult
from sgenas.device import arithmetic
from sgenas.errors import MemoryWarning
from sgenas.searching.objectives import Objectives
from sgenas.searching.plan import plan_search

OFF = 0.25
"""Largest error of a prediction."""
ROUNDING = 1e-3
"""Largest difference of SGE's estimates in chunks of other sizes, in float32, relative to the largest entry."""


def plans(check: Check) -> None:
    """SGE sequential and in chunks, seconds per step and peak memory: predicted and measured."""
    sizes = check.sizes
    batches = sizes.steps + sizes.skip + 1
    images = check.images(2 * batches)
    base = {"estimator.name": "sge", "estimator.num_directions": sizes.directions, "estimator.smoothing": 0.1}
    ways: dict[str, dict[str, Any]] = {"sequential": {"estimator.computation": "sequential"}}
    for chunk in sizes.chunks:
        ways[f"chunks of {chunk}"] = {"estimator.computation": "batched", "estimator.chunk": chunk}
    for name, way in ways.items():
        settings = config(check, base | way)
        with check.peak():
            plan = plan_search(settings, images=images)
        row, times = plan.rows[0], StepTimes(sizes.skip)
        # one evaluation of the supernet at the end of the epoch
        predicted = (row.seconds - batches * plan.constants.evaluation_pass) / row.steps
        with check.peak() as memory, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            result = settings.run(images=images, callbacks=[times], progress=False)
        taken, peak = median(times.seconds), result.history[-1]["peak_memory_bytes"]
        errors = {"seconds": predicted / taken - 1, "memory": row.peak_memory_bytes / peak - 1}
        figures = {"seconds": taken, "predicted_seconds": predicted, "seconds_error_percent": 100 * errors["seconds"]}
        figures |= {"gib": peak / 2**30, "predicted_gib": row.peak_memory_bytes / 2**30, **memory}
        figures |= {"memory_error_percent": 100 * errors["memory"]}
        note = "; ".join(str(each.message) for each in told if issubclass(each.category, MemoryWarning))
        # on a CPU both are peaks of the process, which has run other parts before
        good = check.tiny or all(abs(error) <= OFF for error in errors.values())
        check.target(f"plan of SGE, Q = {sizes.directions}, {name}", good, note, **figures)


# -- memory that runs out -----------------------------------------------------------------------------------


class Call:
    """A call of SGE with batched directions in the paper's supernet, with a quarter of its batch."""

    def __init__(self, check: Check) -> None:
        sizes, self._device = check.sizes, check.device
        space = sgenas.spaces.darts(**supernet_settings(check), activation="silu")
        drawn = inputs(space, max(4, sizes.batch // 4), sizes.side, device=str(check.device))
        self.batch, (self.weights, self.alphas) = drawn[:2], drawn[2:]
        objectives = Objectives(space, losses.cross_entropy, "ieee", check.device)
        self.problem: BilevelProblem = objectives.problem(OPTIMIZER, [], None)
        self._state, self._directions = self.problem.init(self.weights), sizes.directions

    def __call__(self, chunk: int) -> HypergradientResult:
        estimator = SGE(self._directions, smoothing=0.1, computation="batched", chunk=chunk)
        with arithmetic(self._device, "ieee"):
            return estimator(self.problem, self._state, self.alphas, [self.batch], self.batch, seed=0)


@contextmanager
def capped(check: Check, call: Call, limit: float) -> Iterator[None]:
    """Inside ``with``, a GPU has ``limit`` bytes; a CPU acts as if it had memory for a third of the directions."""
    if check.cuda:
        total = torch.cuda.get_device_properties(check.device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit / total, check.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, check.device)
        return
    whole, stacked = call.problem, call.problem.stacked_inner_loss
    assert stacked is not None

    def small(weights: Any, alphas: Any, batch: Any) -> torch.Tensor:
        if len(next(iter(weights.values()))) > max(1, check.sizes.directions // 3):
            raise MemoryError("not enough memory")
        return stacked(weights, alphas, batch)

    call.problem = dataclasses.replace(whole, stacked_inner_loss=small)
    try:
        yield
    finally:
        call.problem = whole


def cap(check: Check) -> None:
    """A memory limit between what all directions need and what a few need halves the chunk, and changes no number."""
    call, directions = Call(check), check.sizes.directions
    call(directions)
    with check.peak() as whole:
        expected = call(directions)
    with check.peak() as few:
        call(max(1, directions // 5))
    limit = (whole.get("reserved", 0) + few.get("reserved", 0)) / 2
    with capped(check, call, limit), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = call(directions)
    chunk = int(found.diagnostics.get("chunk", torch.tensor(directions)).item())
    warned = sum(issubclass(each.category, MemoryWarning) for each in told)
    figures: dict[str, Any] = {"chunk": chunk, "warnings": warned, "limit_gib": limit / 2**30}
    check.correct("out of memory halves the chunk", chunk < directions and warned > 0, **figures)
    error = difference(found.grad, expected.grad)
    check.correct("smaller chunks give the same estimate", error <= ROUNDING, difference=error)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        again = call(directions)
    untold = not any(issubclass(each.category, MemoryWarning) for each in told)
    check.correct("the limit is gone afterwards", untold and "chunk" not in again.diagnostics)
