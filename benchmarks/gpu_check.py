"""Checks a GPU in under ten minutes: numbers against the CPU's, speed, memory, whole runs. Any device will do.

    python benchmarks/gpu_check.py [--device cuda] [--minutes 9] [--data parquet:TRAIN,TEST] [--out FILE]
    python benchmarks/gpu_check.py --device cpu

One line per check: ok, FAILED (wrong numbers, or an error), slow (right numbers, but a target of time or memory is
missed) or not run (no time left). Writes a JSON file and a page beside it. The exit code is 1 if a check FAILED.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_parts import memory, numbers, runs, speed
from gpu_parts.check import FAILED, Check, Part, Verdict
from gpu_parts.page import counts, write
from gpu_parts.supervise import LOST, supervise
from record import ROOT, machine

from sgenas.device import find_device, keep_freed_memory, prepare_deterministic_process
from sgenas.errors import InvalidValueError

PARTS = (
    Part("machine", "Machine, versions, flags, cost of a launch", 3, speed.about),
    Part("agreement", "The CPU's numbers in float64: every space, estimator and method", 40, numbers.agreement),
    Part("streams", "The CPU's random numbers, bit for bit", 3, numbers.streams),
    Part("precision", "Errors of float32", 6, numbers.precision),
    Part("graphs", "Replays of CUDA graphs", 40, speed.graphs),
    Part("runs", "Equal and resumed runs, bit for bit", 25, runs.equal_runs),
    Part("waits", "Waits for the GPU", 25, runs.waits),
    Part("cap", "Memory that runs out", 15, memory.cap),
    Part("steps", "Seconds per step", 75, speed.steps),
    Part("plan", "Predicted seconds and memory", 75, memory.plans),
    Part("passes", "Layouts, precisions and profile of a pass", 20, speed.passes),
    Part("training", "Training of a derived network", 20, runs.training),
    Part("processes", "One process of NCCL", 5, runs.process_group),
    Part("search", "A search that is killed and resumed", 60, runs.search),
    Part("compile", "Training with torch.compile", 90, runs.compiled),
)
"""By weight: what the budget leaves out is at the end."""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu [%(default)s]")
    parser.add_argument("--tiny", action="store_true", help="small sizes, which take a minute; always on a CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="budget; other parts are not run [%(default)s]")
    parser.add_argument("--data", help="images of the real search [CIFAR-10 of the shared folder, else digits]")
    parser.add_argument("--parts", nargs="+", default=[], choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--out", type=Path, help="JSON file [benchmarks/results/gpu-check-DEVICE.json]")
    parser.add_argument("--here", action="store_true", help="run the parts in this process, for a debugger")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--events", type=Path, help=argparse.SUPPRESS)
    return parser


def run_parts(check: Check, parts: Sequence[Part]) -> bool:
    """Runs the parts in order; whether the device can still be used."""
    return all(check.run(part) for part in parts)


def child(given: argparse.Namespace, parts: Sequence[Part], device: torch.device) -> int:
    """Runs parts for a process that reads ``given.events``; returns the exit code."""
    keep_freed_memory()
    with given.events.open("a", encoding="utf-8") as file:

        def tell(event: dict[str, Any]) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        check = Check(device, tiny=given.tiny, until=given.until, data=given.data, tell=tell)
        return 0 if run_parts(check, parts) else LOST


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = make_parser().parse_args(arguments)
    # cuBLAS reads its setting once
    prepare_deterministic_process()
    try:
        device = find_device(given.device)
    except InvalidValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    given.tiny = given.tiny or device.type != "cuda"
    parts = [part for part in PARTS if not given.parts or part.name in given.parts]
    if given.events is not None:
        return child(given, parts, device)

    begin = time.time()
    given.until = begin + 60 * given.minutes
    out = given.out or ROOT / "benchmarks" / "results" / f"gpu-check-{device.type}.json"
    head = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(str(device)),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torchvision", "sgenas")},
        "tiny": given.tiny,
        "minutes": given.minutes,
    }
    verdicts: list[Verdict] = []

    def tell(verdict: Verdict) -> None:
        print(verdict.line(), flush=True)
        verdicts.append(verdict)
        write(out, verdicts, head | {"seconds": time.time() - begin}, parts)

    if given.here:

        def heard(event: dict[str, Any]) -> None:
            if "verdict" in event:
                tell(Verdict(**event["verdict"]))

        run_parts(Check(device, tiny=given.tiny, until=given.until, data=given.data, tell=heard), parts)
    else:
        supervise(parts, lambda events, names: command(given, events, names), tell)
    page = write(out, verdicts, head | {"seconds": time.time() - begin}, parts)
    summary = ", ".join(f"{count} {name}" for name, count in counts(verdicts).items())
    print(f"\n{summary} in {time.time() - begin:.0f} s on {head['machine']['device']}\n{out}\n{page}")
    return int(any(verdict.verdict == FAILED for verdict in verdicts))


def command(given: argparse.Namespace, events: Path, names: list[str]) -> list[str]:
    """The command line of a process that runs these parts."""
    words = [sys.executable, __file__, "--device", given.device, "--until", given.until, "--events", events]
    words += [*(["--tiny"] if given.tiny else []), *(["--data", given.data] if given.data else []), "--parts", *names]
    return list(map(str, words))


if __name__ == "__main__":
    sys.exit(main())
