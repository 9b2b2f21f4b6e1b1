"""How the cost of an SGE step grows: with Q, with N, with the side of the images.

    python benchmarks/scaling.py [--channels 8] [--layers 5] [--batch-size 16] [--way streamed] [--repeats 5]

One of the three moves while the others stand at their defaults. For Q and N a line seconds = a + b x is
fitted, for the side a power seconds = a x^b; the residual says how well the law holds. Prints tables and adds
a JSON line to benchmarks/results/scaling.jsonl.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from record import add_result, time_in_turn
from sge_step import Steps

from sgenas.bilevel import SGE


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="growth of an SGE step")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="side of the images where it does not move")
    parser.add_argument("--directions", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--way", default="streamed", choices=["loop", "streamed", "vectorised", "auto"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    def step(directions: int, inner_steps: int, steps: Steps) -> Callable[[], Any]:
        return steps.estimate(SGE(directions, computation=arguments.way), inner_steps)

    usual = Steps(arguments)
    series: dict[str, dict[int, Callable[[], Any]]] = {
        "Q": {q: step(q, 1, usual) for q in arguments.directions},
        "N": {n: step(2, n, usual) for n in arguments.inner_steps},
        "side": {},
    }
    for size in arguments.sizes:
        arguments.size = size
        series["side"][size] = step(2, 1, Steps(arguments))
    rows = {}
    for name, sides in series.items():
        named = {f"{name} = {value}": side for value, side in sides.items()}
        seconds = time_in_turn(named, repeats=arguments.repeats, device=arguments.device)
        medians = [times["median"] for times in seconds.values()]
        law, text = fit(name, list(sides), medians)
        print(f"\n{name} moves ({'Q = 2, ' if name != 'Q' else ''}{'N = 1' if name != 'N' else ''}): {text}")
        for value, median in zip(sides, medians, strict=True):
            print(f"  {name:>4} = {value:<4}{median:9.3f} s", flush=True)
        rows[name] = {"seconds": seconds, "law": law}
    add_result("scaling", vars(arguments) | {"rows": rows}, device=arguments.device)


def fit(name: str, values: Sequence[int], seconds: Sequence[float]) -> tuple[dict[str, float], str]:
    """The law of growth and how it reads: a line for Q and N, a power for the side."""
    x, y = np.array(values, dtype=float), np.array(seconds)
    if name == "side":
        power, level = np.polyfit(np.log(x), np.log(y), 1)
        error = float(np.abs(np.exp(level) * x**power / y - 1).max())
        return (
            {"power": float(power), "largest_error": error},
            f"seconds ~ side^{power:.2f}, off by at most {100 * error:.0f} %",
        )
    # every point counts by its relative error
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    error = float(np.abs((start + slope * x) / y - 1).max())
    return (
        {"start": float(start), "slope": float(slope), "largest_error": error},
        f"seconds = {start:.3f} + {slope:.3f} {name}, off by at most {100 * error:.0f} %",
    )


if __name__ == "__main__":
    main()
