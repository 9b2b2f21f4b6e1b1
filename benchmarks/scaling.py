"""How the cost of an SGE step grows with Q, with N and with the side of the images.

    python benchmarks/scaling.py [--channels 8] [--layers 5] [--batch-size 16] [--computation sequential]

One of the three varies while the others keep their defaults. For Q and N a line seconds = a + b x is fitted, for the
side a power seconds = a x^b; the largest relative residual says how well the law holds.
"""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from record import add_result, flags, time_in_turn
from sge_step import Steps

from sgenas.bilevel import SGE


def fit(name: str, values: Sequence[int], seconds: Sequence[float]) -> tuple[dict[str, float], str]:
    """The law of growth, and how it reads."""
    x, y = np.array(values, dtype=float), np.array(seconds)
    if name == "side":
        power, level = np.polyfit(np.log(x), np.log(y), 1)
        error = float(np.abs(np.exp(level) * x**power / y - 1).max())
        return {"power": float(power), "largest_error": error}, f"seconds ~ side^{power:.2f} within {error:.0%}"
    # each point counts by its relative error
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    error = float(np.abs((start + slope * x) / y - 1).max())
    law = {"start": float(start), "slope": float(slope), "largest_error": error}
    return law, f"seconds = {start:.3f} + {slope:.3f} {name} within {error:.0%}"


def main() -> None:
    given = flags(
        __doc__,
        channels=8,
        layers=5,
        batch_size=16,
        size=16,
        directions=[1, 2, 4, 8, 16],
        inner_steps=[1, 2, 4, 8],
        sizes=[8, 16, 32, 64],
        computation="sequential",
        repeats=5,
        device="cpu",
    )

    def step(directions: int, inner_steps: int, steps: Steps) -> Callable[[], Any]:
        return steps.step(SGE(directions, computation=given.computation), inner_steps)

    usual = Steps(given)
    series = {
        "Q": {q: step(q, 1, usual) for q in given.directions},
        "N": {n: step(2, n, usual) for n in given.inner_steps},
        "side": {size: step(2, 1, Steps(Namespace(**{**vars(given), "size": size}))) for size in given.sizes},
    }
    rows = {}
    for name, sides in series.items():
        named = {f"{name} = {value}": side for value, side in sides.items()}
        seconds = time_in_turn(named, repeats=given.repeats, device=given.device)
        law, text = fit(name, list(sides), [times["median"] for times in seconds.values()])
        print(f"\n{name} varies ({'Q = 2, ' if name != 'Q' else ''}{'N = 1' if name != 'N' else ''}): {text}")
        for label, times in seconds.items():
            print(f"  {label:>12}{times['median']:9.3f} s", flush=True)
        rows[name] = {"seconds": seconds, "law": law}
    add_result("scaling", vars(given) | {"rows": rows}, device=given.device)


if __name__ == "__main__":
    main()
