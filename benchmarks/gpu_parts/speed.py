"""Speed: launches, a pass in every layout and precision, steps with and without graphs, against a plain supernet."""

import platform
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from record import StepTimes, machine
from supernet import inputs, plain
from torch.profiler import profile, supported_activities

import sgenas
from gpu_parts.check import Check, median
from gpu_parts.numbers import difference, flags
from sgenas import losses
from sgenas.bilevel import BilevelProblem, FirstOrder
from sgenas.device import CHANNELS_LAST, PRECISIONS, arithmetic
from sgenas.errors import GraphWarning
from sgenas.optim import SGD
from sgenas.run.callbacks import Callback
from sgenas.searching.objectives import Objectives

OPTIMIZER = SGD(0.025, momentum=0.9, weight_decay=3e-4)
TOP = 10
TOLERANCE = 1.05
"""A choice may be slower than another by this factor before it counts as the wrong one: timings vary."""


# -- the machine --------------------------------------------------------------------------------------------


def about(check: Check) -> None:
    """Versions, device, driver, flags, and what a launch costs."""
    facts = machine(str(check.device))
    facts |= {"python": platform.python_version(), "torch": torch.__version__, "sgenas": version("sgenas")}
    facts |= {"torchvision": version("torchvision"), "channels_last": CHANNELS_LAST.get(check.device.type)}
    if check.cuda:
        properties = torch.cuda.get_device_properties(check.device)
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts |= {"cuda": torch.version.cuda, "cudnn": cudnn, "driver": _driver()}
        facts |= {"capability": f"{properties.major}.{properties.minor}"}
        facts |= {"memory_gib": properties.total_memory / 2**30, "gpus": torch.cuda.device_count()}
    check.report("machine", **facts)
    check.report("flags", **flags())

    x = torch.ones(1, device=check.device)
    count = 200 if check.tiny else 5000
    for _ in range(10):
        x.add_(1)
    _wait(check)
    start = time.perf_counter()
    for _ in range(count):
        x.add_(1)
    queued = time.perf_counter() - start
    _wait(check)
    whole = time.perf_counter() - start
    check.report("a launch", microseconds=1e6 * whole / count, microseconds_queued=1e6 * queued / count)


def _driver() -> str:
    """The version of the driver, if its tool is there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return (found.stdout.splitlines() or ["unknown"])[0].strip()


def _wait(check: Check) -> None:
    if check.cuda:
        torch.cuda.synchronize(check.device)


# -- a pass -------------------------------------------------------------------------------------------------


@contextmanager
def layout(check: Check, channels_last: bool) -> Iterator[None]:
    """Inside ``with``, whether images are channels-last in the memory of the device."""
    kind = check.device.type
    before, CHANNELS_LAST[kind] = CHANNELS_LAST[kind], channels_last
    try:
        yield
    finally:
        CHANNELS_LAST[kind] = before


def supernet_settings(check: Check) -> dict[str, Any]:
    """Settings of the paper's supernet."""
    sizes = check.sizes
    return {"channels": sizes.channels, "layers": sizes.layers, "nodes": sizes.nodes, "operations": sizes.operations}


def space(check: Check) -> dict[str, Any]:
    """The same by path of a search's configuration."""
    return {f"space.{name}": value for name, value in supernet_settings(check).items() if value is not None}


def one_pass(check: Check, precision: str, channels_last: bool, *, fastest: bool = False) -> Callable[[], Any]:
    """A function that takes one pass of the paper's supernet: loss and gradients of the weights."""
    sizes = check.sizes
    supernet = sgenas.spaces.darts(**supernet_settings(check))
    images, labels, weights, alphas = inputs(supernet, sizes.batch, sizes.side, device=str(check.device))
    problem = Objectives(supernet, losses.cross_entropy, precision, check.device).problem(OPTIMIZER, [], None)

    def call() -> Any:
        with layout(check, channels_last), arithmetic(check.device, precision, fastest=fastest):
            return problem.inner_gradient(weights, alphas, (images, labels))

    return call


def passes(check: Check) -> None:
    """Seconds of a pass in both memory layouts and every precision, in turn; where the time of one goes."""
    names = {True: "channels-last", False: "NCHW"}
    sides = {
        f"{names[last]}, {precision}": one_pass(check, precision, last)
        for last in (True, False)
        for precision in PRECISIONS
    }
    chosen = CHANNELS_LAST[check.device.type]
    sides[f"{names[chosen]}, ieee, fastest algorithms"] = one_pass(check, "ieee", chosen, fastest=True)
    seconds = check.seconds(sides)
    base = seconds[f"{names[chosen]}, ieee"]
    for name, value in seconds.items():
        check.report(f"a pass, {name}", seconds=value, times_as_fast=base / value)
    for precision in PRECISIONS:
        ours, other = (seconds[f"{names[last]}, {precision}"] for last in (chosen, not chosen))
        note = f"CHANNELS_LAST is {chosen}"
        check.target(
            f"the faster layout, {precision}", check.tiny or ours <= TOLERANCE * other, note, chosen=ours, other=other
        )
    _profile(check, sides[f"{names[chosen]}, ieee"])


def _profile(check: Check, call: Callable[[], Any]) -> None:
    """The operations that take most time of a pass."""
    with profile(activities=list(supported_activities())) as found:  # type: ignore[no-untyped-call]
        call()
        _wait(check)
    rows = found.key_averages()

    def own_time(row: Any) -> float:
        return float(row.self_device_time_total if check.cuda else row.self_cpu_time_total)

    top = sorted(rows, key=own_time, reverse=True)[:TOP]
    table = [{"name": row.key, "milliseconds": own_time(row) / 1000, "calls": row.count} for row in top]
    launches = sum(row.count for row in rows if "LaunchKernel" in row.key)
    check.report("operations of a pass", f"most time: {table[0]['name'][:60]}", launches=launches, top=table)


# -- steps --------------------------------------------------------------------------------------------------


def estimators(check: Check) -> dict[str, dict[str, Any]]:
    """Settings of the estimators whose steps are timed."""
    sge = {"estimator.name": "sge", "estimator.num_directions": check.sizes.directions, "estimator.smoothing": 0.1}
    label = f"SGE, Q = {check.sizes.directions}"
    return {
        "first order": {"estimator.name": "first-order"},
        "finite difference": {"estimator.name": "finite-difference"},
        f"{label}, sequential": sge | {"estimator.computation": "sequential"},
        f"{label}, batched": sge | {"estimator.computation": "batched"},
    }


def config(check: Check, changes: dict[str, Any]) -> sgenas.SearchConfig:
    """A search in the paper's supernet."""
    sizes = check.sizes
    settings = {"epochs": 1, "device": str(check.device), "threads": torch.get_num_threads(), "derived_every": 0}
    settings |= {"log_every": 10**6, "checkpoint_every": 10**6, "space.activation": "relu"}
    settings |= space(check) | {"data.batch_size": sizes.batch, "warmup_epochs": 0}
    return sgenas.SearchConfig.of_method("darts", settings | changes)


def run(
    check: Check, changes: dict[str, Any], steps: int, skip: int, *callbacks: Callback
) -> tuple[list[float], Any, dict[str, int]]:
    """Seconds of ``steps`` steps of such a search after ``skip`` others, its result and its peak memory."""
    times, images = StepTimes(skip), check.images(2 * (steps + skip + 1))
    with check.peak() as memory:
        result = config(check, changes).run(
            images=images,
            callbacks=[*callbacks, times],
            stop=lambda: len(times.seconds) >= steps,
            progress=False,
        )
    return times.seconds, result, memory


def steps(check: Check) -> None:
    """Seconds per step of each estimator with and without graphs, against a first-order step of a plain supernet."""
    sizes = check.sizes
    reference = _plain_step(check)
    base = check.seconds({"plain": reference}, repeats=min(3, sizes.steps))["plain"]
    check.report("first-order step of the plain supernet", seconds=base)
    del reference
    for name, settings in estimators(check).items():
        found: dict[bool, float] = {}
        for graphs in (False, True):
            seconds, _, memory = run(check, settings | {"graphs": graphs}, sizes.steps, sizes.skip)
            found[graphs] = median(seconds)
            figures: dict[str, Any] = {
                "seconds": found[graphs],
                "of_plain": found[graphs] / base,
                "fastest": min(seconds),
                **memory,
            }
            check.report(f"step, {name}, {'with' if graphs else 'without'} graphs", **figures)
        ratio = found[False] / found[True]
        # tiny sizes say nothing, and on a CPU there are no graphs
        check.target(f"graphs are no slower, {name}", check.tiny or ratio * TOLERANCE >= 1, times_as_fast=ratio)
        if name == "first order":
            good = found[True] <= base or check.tiny
            check.target("first order is faster than the plain supernet", good, times_as_fast=base / found[True])


def _plain_step(check: Check) -> Callable[[], Any]:
    """A first-order step on the plain definition of the supernet: what published codes cost."""
    sizes = check.sizes
    supernet = sgenas.spaces.darts(**supernet_settings(check))
    images, labels, weights, alphas = inputs(supernet, sizes.batch, sizes.side, device=str(check.device))
    logits = plain(supernet)

    def loss(weights: Any, alphas: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(logits(weights, alphas, batch[0]), batch[1])

    problem = BilevelProblem(loss, loss, OPTIMIZER)
    state = problem.init(weights)

    def step() -> Any:
        with arithmetic(check.device, "ieee"):
            return FirstOrder()(problem, state, alphas, [(images, labels)], (images, labels))

    return step


def graphs(check: Check) -> None:
    """A search that replays graphs takes the steps of one that does not, and all its passes can be recorded."""
    for name, settings in estimators(check).items():
        found = []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for wanted in (False, True):
                _, result, _ = run(check, settings | {"graphs": wanted, "deterministic": True}, 3, 2)
                found.append((result.weights, result.alphas))
        error = difference(found[1], found[0])
        check.correct(f"graphs change no number, {name}", error <= 1e-6, difference=error, equal=error == 0)
        refused = [str(each.message) for each in told if issubclass(each.category, GraphWarning)]
        check.correct(f"every pass is recorded, {name}", not refused, "; ".join(refused))
