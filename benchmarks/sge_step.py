"""One step of the alphas, weights included: SGE by each way of computing it, beside first and second order.

    python benchmarks/sge_step.py [--directions 1 2 4 10] [--inner-steps 1 2 5] [--repeats 5] ...

For each Q and N every side is timed in turn; the unit is one forward and backward pass of the supernet with
gradients of all weights, timed in the same turns. The sides marked ~ are approximations, all others give the
same numbers. `plain first order` is a first-order step on the plain definition of the supernet, the reference
codes' cost. Peak memory is measured in a process of its own for each side. Prints tables and adds a JSON line
to benchmarks/results/sge_step.jsonl.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plain_darts import plain_logits
from record import add_result, time_in_turn
from supernet import inputs
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, Estimator, FiniteDifference, FirstOrder
from sgenas.memory import peak_memory
from sgenas.spaces import space, stacked_cross_entropy

WAYS = ("loop", "streamed", "stacked", "vmap", "directional", "~difference", "variate", "one-sided")
"""`stacked` and `vmap` are computation="vectorised" with the supernet's own stacked pass and without it;
`variate` is streamed with second order's term as control variate: another estimate, with less noise;
`one-sided` with half of that term's difference."""
VARIATES = {"variate": "finite-difference", "one-sided": "one-sided"}


class Steps:
    """The sides: functions that take one step, over one supernet, one batch and fixed directions."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        made = space("darts", channels=arguments.channels, layers=arguments.layers)
        images, labels, weights, alphas = inputs(
            made, arguments.batch_size, arguments.size, torch.float32, arguments.device
        )
        self.batch = (images, labels)
        self.alphas = alphas

        def loss(w: trees.Tree, a: trees.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(made.logits(w, a, batch[0]), batch[1])

        def plain_loss(w: trees.Tree, a: trees.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(plain_logits(made, w, a, batch[0], arguments.layers), batch[1])

        def stacked(w: trees.Tree, a: trees.Tree, batch: tuple[Tensor, Tensor]) -> Tensor:
            return stacked_cross_entropy(made.stacked_logits(w, a, batch[0]), batch[1])

        # no clipping: the directional ways cannot have it, and all sides are to do the same
        optimizer = SGD(0.025, momentum=0.9, weight_decay=3e-4)
        self.problem = BilevelProblem(loss, loss, optimizer, stacked)
        self.unstacked = BilevelProblem(loss, loss, optimizer)
        self.plain = BilevelProblem(plain_loss, plain_loss, optimizer)
        self.state = self.problem.init(weights)

    def estimate(
        self, estimator: Estimator, inner_steps: int, problem: BilevelProblem | None = None
    ) -> Callable[[], Any]:
        """A function that takes one step of this estimator."""
        problem = problem or self.problem
        generator = torch.Generator().manual_seed(0)
        batches = [self.batch] * inner_steps
        return lambda: estimator(problem, self.state, self.alphas, batches, self.batch, generator=generator)

    def unit(self) -> None:
        """One forward and backward pass."""
        self.problem.inner_gradient(self.state.weights, self.alphas, self.batch)

    def sides(
        self, directions: int, inner_steps: int, arguments: argparse.Namespace
    ) -> dict[str, Callable[[], Any]]:
        """{name: step} for one Q and N; of the arguments: ways, memory_limit, alone."""
        found: dict[str, Callable[[], Any]] = {"unit": self.unit}
        if not arguments.alone:
            found["first order"] = self.estimate(FirstOrder(), inner_steps)
            found["second order"] = self.estimate(FiniteDifference(), inner_steps)
        for way in arguments.ways:
            if way in VARIATES:
                found[way] = self.estimate(SGE(directions, control_variate=(VARIATES[way],)), inner_steps)
                continue
            beside = way in ("stacked", "vmap")
            computation = "vectorised" if beside else way.removeprefix("~")
            sge = SGE(
                directions, computation=computation, memory_limit=arguments.memory_limit if beside else None
            )
            found[way] = self.estimate(sge, inner_steps, self.unstacked if way == "vmap" else self.problem)
        if inner_steps == 1 and not arguments.alone:
            found["plain first order"] = self.estimate(FirstOrder(), 1, self.plain)
        return found


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="seconds of one step of the alphas")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--directions", type=int, nargs="+", default=[1, 2, 4, 10])
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 2, 5])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-warm-up", action="store_true", help="leave the untimed first round out")
    parser.add_argument("--alone", action="store_true", help="leave first and second order out")
    parser.add_argument("--memory-limit", type=float, default=8, help="GiB for directions side by side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "Q", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        name, directions, inner_steps = arguments.one[0], int(arguments.one[1]), int(arguments.one[2])
        side = Steps(arguments).sides(directions, inner_steps, arguments)[name]
        before = peak(arguments.device)
        side()
        print(json.dumps(peak(arguments.device) - before))
        return

    steps, rows = Steps(arguments), []
    for inner_steps in arguments.inner_steps:
        for directions in arguments.directions:
            sides = steps.sides(directions, inner_steps, arguments)
            seconds = time_in_turn(
                sides, repeats=arguments.repeats, device=arguments.device, warm_up=not arguments.no_warm_up
            )
            memory = {name: measured(arguments, name, directions, inner_steps) for name in sides}
            show(directions, inner_steps, seconds, memory)
            row = {"directions": directions, "inner_steps": inner_steps, "seconds": seconds}
            rows.append(row | ({"peak_megabytes": memory} if arguments.memory else {}))
    figures = {**vars(arguments), "rows": rows}
    add_result("sge_step", figures, device=arguments.device)


def show(directions: int, inner_steps: int, seconds: dict[str, Any], memory: dict[str, float | None]) -> None:
    """Prints the table of one Q and N."""
    unit = seconds["unit"]["median"]
    expected = (directions + 1) * inner_steps + 1
    print(f"\nQ = {directions}, N = {inner_steps} (SGE: {expected} passes)")
    print(f"{'':20}{'seconds':>10}{'min':>9}{'units':>8}{'peak MB':>10}")
    for name, times in seconds.items():
        megabytes = memory[name]
        print(
            f"{name:20}{times['median']:10.3f}{times['min']:9.3f}{times['median'] / unit:8.2f}"
            f"{'-' if megabytes is None else f'{megabytes:.0f}':>10}",
            flush=True,
        )


def measured(arguments: argparse.Namespace, name: str, directions: int, inner_steps: int) -> float | None:
    """Peak memory of one side in megabytes, in a process of its own; None unless asked for.

    What the process takes for itself, torch and all, is taken off.
    """
    if not arguments.memory:
        return None
    same = ("channels", "layers", "batch_size", "size", "threads", "device", "memory_limit")
    flags = [text for key in same for text in (f"--{key.replace('_', '-')}", str(getattr(arguments, key)))]
    command = [sys.executable, __file__, *flags, "--one", name, str(directions), str(inner_steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(device: str) -> float:
    """Megabytes: the process's largest resident set, or on a GPU the largest allocation."""
    return peak_memory(torch.device(device)) / 2**20


if __name__ == "__main__":
    main()
