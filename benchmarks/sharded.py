"""One SGE step with its directions on two processes against one process, each with one thread.

    python benchmarks/sharded.py [--directions 10] [--inner-steps 1 5] [--processes 2] [--repeats 5] ...

Starts itself under torchrun. In turn, the first process takes the step alone while the others wait, and all
take it together; before that, both are shown to give the same estimate, bit for bit with `streamed`. `passes`
is the speed-up that the count of passes allows: the unperturbed trajectory and the outer loss are computed by
everyone, (Q + 1) N + 1 passes against N + 1 + N Q / processes. Prints a table and adds a JSON line to
benchmarks/results/sharded.jsonl.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from record import add_result, time_in_turn
from sge_step import Steps

from sgenas.bilevel import SGE, HypergradientResult
from sgenas.engine import Processes, joined
from sgenas.engine.parallel import launched

ALONE, TOGETHER = "one process", "all processes"


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="speed-up of an SGE step by more processes")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--directions", type=int, default=10)
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--ways", nargs="+", default=["streamed"], choices=["streamed", "vectorised"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-limit", type=float, default=2, help="GiB for directions side by side")
    arguments = parser.parse_args()
    if not launched():
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
        subprocess.run([sys.executable, "-m", *launcher, __file__, *sys.argv[1:]], check=True)
        return
    arguments.device = "cpu"
    torch.set_num_threads(arguments.threads)
    with joined() as processes:
        rows = measure(arguments, processes)
        if processes.first:
            add_result("sharded", {**vars(arguments), "processes": processes.size, "rows": rows})


def measure(arguments: argparse.Namespace, processes: Processes) -> list[dict[str, Any]]:
    """A row for each N and way; what the first process timed counts."""
    steps, rows = Steps(arguments), []
    share = processes.layout(1).share
    for inner_steps in arguments.inner_steps:
        for way in arguments.ways:
            limit = arguments.memory_limit if way == "vectorised" else None
            alone, together = (
                steps.estimate(
                    SGE(arguments.directions, computation=way, memory_limit=limit, share=part), inner_steps
                )
                for part in (None, share)
            )
            difference = largest_difference(alone(), together())
            sides: dict[str, Callable[[], Any]] = {
                ALONE: in_step(processes, alone if processes.first else lambda: None),
                TOGETHER: in_step(processes, together),
            }
            seconds = time_in_turn(sides, repeats=arguments.repeats)
            row = {
                "inner_steps": inner_steps,
                "way": way,
                "seconds": seconds,
                "speed_up": seconds[ALONE]["median"] / seconds[TOGETHER]["median"],
                "passes": passes(arguments.directions, inner_steps, processes.size),
                "largest_difference": difference,
            }
            rows.append(row)
            if processes.first:
                show(arguments.directions, row)
    return rows


def in_step(processes: Processes, call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, begun by all processes at the same time; one that waits takes no processor time."""

    def begin() -> Any:
        processes.any(False)
        return call()

    return begin


def largest_difference(first: HypergradientResult, second: HypergradientResult) -> float:
    """The largest difference in the hypergradient, as a share of the largest entry."""
    pairs = [(first.grad[name], second.grad[name]) for name in first.grad]
    largest = max(one.abs().max().item() for one, _ in pairs)
    return max((one - other).abs().max().item() for one, other in pairs) / largest


def passes(directions: int, inner_steps: int, processes: int) -> float:
    """The speed-up if a step took exactly its passes."""
    everyone = inner_steps + 1
    share = inner_steps * math.ceil(directions / processes)
    return (everyone + inner_steps * directions) / (everyone + share)


def show(directions: int, row: dict[str, Any]) -> None:
    """Prints one row."""
    print(f"\nQ = {directions}, N = {row['inner_steps']}, {row['way']}")
    for name, times in row["seconds"].items():
        print(f"{name:20}{times['median']:9.3f} s   ({times['min']:.3f} to {times['max']:.3f})")
    print(
        f"speed-up {row['speed_up']:.2f}, by the count of passes {row['passes']:.2f};"
        f" estimates differ by {row['largest_difference']:.1e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
