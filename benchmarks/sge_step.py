"""One step of the alphas, weights included: SGE by each way of computing it, first order and finite difference.

    python benchmarks/sge_step.py [--directions 1 2 4 10] [--inner-steps 1 2 5] [--repeats 5] [--memory] ...

For each Q and N every side is timed in turn, and so is the unit, one forward and backward pass with gradients of all
weights. `plain first-order` is a first-order step on the plain definition of the supernet: what published codes cost.
With --memory the peak memory of each side is measured in a process of its own.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from record import add_result, flags, peak_megabytes, time_in_turn
from supernet import Logits, inputs, library, plain
from torch import Tensor

import sgenas
from sgenas.bilevel import SGE, BilevelProblem, Estimator, FiniteDifference, FirstOrder, Loss
from sgenas.optim import SGD
from sgenas.tree import Tree

WAYS = {
    "sequential": {"computation": "sequential"},
    "batched": {"computation": "batched"},
    # without the supernet's own stacked pass
    "vmap": {"computation": "batched"},
    "control variate": {"computation": "sequential", "control_variate": "finite-difference"},
}


def _cross_entropy(logits: Logits) -> Loss:
    return lambda weights, alphas, batch: F.cross_entropy(logits(weights, alphas, batch[0]), batch[1])


class Steps:
    """The sides at one size: functions that take one step, all on the same batch and directions.

    Args:
        given: channels, layers, batch_size, size and device.
        share: The directions of this process.
    """

    def __init__(self, given: argparse.Namespace, share: Any = None) -> None:
        space = sgenas.spaces.darts(channels=given.channels, layers=given.layers)
        images, labels, weights, self.alphas = inputs(space, given.batch_size, given.size, device=given.device)
        self.batch = (images, labels)

        def stacked(weights: Tree, alphas: Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
            outputs = space.bind_members(weights, alphas)
            assert outputs is not None
            return torch.stack([F.cross_entropy(each, batch[1]) for each in outputs(batch[0])])

        optimizer = SGD(0.025, momentum=0.9, weight_decay=3e-4)
        loss, plain_loss = _cross_entropy(library(space)), _cross_entropy(plain(space))
        self.problem = BilevelProblem(loss, loss, optimizer, stacked, share=share)
        self.unstacked = BilevelProblem(loss, loss, optimizer)
        self.plain = BilevelProblem(plain_loss, plain_loss, optimizer)
        self.state = self.problem.init(weights)

    def step(self, estimator: Estimator, inner_steps: int, problem: BilevelProblem | None = None) -> Callable[[], Any]:
        """A function that takes one step with this estimator."""
        batches, chosen = [self.batch] * inner_steps, problem or self.problem
        return lambda: estimator(chosen, self.state, self.alphas, batches, self.batch, seed=0)

    def sides(self, directions: int, inner_steps: int, given: argparse.Namespace) -> dict[str, Callable[[], Any]]:
        """{name: step} for one Q and N; the unit is one pass."""
        found: dict[str, Callable[[], Any]] = {
            "unit": lambda: self.problem.inner_gradient(self.state.weights, self.alphas, self.batch),
            "first-order": self.step(FirstOrder(), inner_steps),
            "finite-difference": self.step(FiniteDifference(), inner_steps),
        }
        for way in given.ways:
            settings: dict[str, Any] = dict(WAYS[way])
            if settings["computation"] == "batched":
                settings["chunk"] = given.chunk
            problem = self.unstacked if way == "vmap" else self.problem
            found[f"sge, {way}"] = self.step(SGE(directions, **settings), inner_steps, problem)
        if inner_steps == 1:
            found["plain first-order"] = self.step(FirstOrder(), 1, self.plain)
        return found


def one_side(given: argparse.Namespace, name: str, directions: int, inner_steps: int) -> Callable[[], Any]:
    """For `peak_megabytes`."""
    return Steps(given).sides(directions, inner_steps, given)[name]


def main() -> None:
    given = flags(
        __doc__,
        channels=16,
        layers=8,
        batch_size=64,
        size=32,
        directions=[1, 2, 4, 10],
        inner_steps=[1, 2, 5],
        ways={"nargs": "+", "default": list(WAYS), "choices": list(WAYS)},
        repeats=5,
        no_warm_up=False,
        memory=False,
        chunk={"type": int, "help": "directions that are batched at a time; as many as fit if not set"},
        device="cpu",
    )
    steps, rows = Steps(given), []
    for inner_steps in given.inner_steps:
        for directions in given.directions:
            sides = steps.sides(directions, inner_steps, given)
            seconds = time_in_turn(sides, repeats=given.repeats, device=given.device, warm_up=not given.no_warm_up)
            print(f"\nQ = {directions}, N = {inner_steps} (SGE: {(directions + 1) * inner_steps + 1} passes)")
            print(f"{'':24}{'seconds':>10}{'min':>9}{'units':>8}{'peak MB':>10}")
            memory = {}
            for name, times in seconds.items():
                shown = "-"
                if given.memory:
                    arguments = (given, name, directions, inner_steps)
                    memory[name] = peak_megabytes(one_side, *arguments, device=given.device)
                    shown = f"{memory[name]:.0f}"
                units = times["median"] / seconds["unit"]["median"]
                print(f"{name:24}{times['median']:10.3f}{times['min']:9.3f}{units:8.2f}{shown:>10}", flush=True)
            row = {"directions": directions, "inner_steps": inner_steps, "seconds": seconds}
            rows.append(row | {"peak_megabytes": memory})
    add_result("sge_step", {**vars(given), "rows": rows}, device=given.device)


if __name__ == "__main__":
    main()
