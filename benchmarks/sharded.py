"""One SGE step with its directions on several processes against one process, each with one thread.

    python benchmarks/sharded.py [--directions 10] [--inner-steps 1 5] [--processes 2] [--repeats 5]

Starts itself under torchrun. In turn, the first process takes the step alone while the others wait, and all take it
together; both must give the same estimate. `passes` is the speed-up that the count of passes allows: every process
computes the unperturbed trajectory and the outer loss, (Q + 1) N + 1 passes against N + 1 + N Q / processes.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from record import add_result, flags, time_in_turn
from sge_step import Steps

from sgenas import tree
from sgenas.bilevel import SGE
from sgenas.run.distributed import Processes, joined, launched

ALONE, TOGETHER = "one process", "all processes"


def main() -> None:
    given = flags(
        __doc__,
        channels=8,
        layers=5,
        batch_size=16,
        size=32,
        directions=10,
        inner_steps=[1, 5],
        processes=2,
        threads=1,
        repeats=5,
        device="cpu",
    )
    if not launched():
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(given.processes)]
        subprocess.run([sys.executable, "-m", *launcher, __file__, *sys.argv[1:]], check=True)
        return
    with joined() as processes:
        alone, together = Steps(given), Steps(given, processes.layout(1).share)
        rows = [measure(given, processes, alone, together, steps) for steps in given.inner_steps]
        if processes.first:
            add_result("sharded", {**vars(given), "rows": rows})


def measure(
    given: argparse.Namespace, processes: Processes, alone: Steps, together: Steps, inner_steps: int
) -> dict[str, Any]:
    """The row of one N; the first process's times count."""
    sge = SGE(given.directions, computation="sequential")
    one, all_of_them = alone.step(sge, inner_steps), together.step(sge, inner_steps)
    first, second = tree.flatten(one().grad), tree.flatten(all_of_them().grad)
    difference = float((first - second).abs().max() / first.abs().max())

    def at_once(call: Callable[[], Any]) -> Callable[[], Any]:
        # all begin together; a process that waits takes no processor time
        return lambda: (processes.any(False), call())

    sides = {ALONE: at_once(one if processes.first else lambda: None), TOGETHER: at_once(all_of_them)}
    seconds = time_in_turn(sides, repeats=given.repeats)
    faster = seconds[ALONE]["median"] / seconds[TOGETHER]["median"]
    share = inner_steps * math.ceil(given.directions / processes.size)
    passes = (inner_steps * (given.directions + 1) + 1) / (inner_steps + 1 + share)
    if processes.first:
        print(f"\nQ = {given.directions}, N = {inner_steps}")
        for name, times in seconds.items():
            print(f"{name:20}{times['median']:9.3f} s   ({times['min']:.3f} to {times['max']:.3f})")
        print(f"speed-up {faster:.2f}, by passes {passes:.2f}; estimates differ by {difference:.1e}", flush=True)
    return {
        "inner_steps": inner_steps,
        "seconds": seconds,
        "speed_up": faster,
        "passes": passes,
        "largest_difference": difference,
    }


if __name__ == "__main__":
    main()
