"""Whole runs: equal ones, resumed ones, trainings, one process of NCCL, a search that is killed."""

import collections
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from record import CIFAR10, SHARED_DATA, StepTimes
from same_runs import assert_same_runs  # type: ignore[import-not-found]
from torch import nn

import sgenas
from gpu_parts.check import Check, median
from gpu_parts.memory import Call
from gpu_parts.speed import estimators, run, space
from sgenas import tree
from sgenas.data import ImageData
from sgenas.device import PRECISIONS, arithmetic
from sgenas.run.callbacks import Callback
from sgenas.spaces.darts_space.published import published

CLOSE = 0.1
"""Largest relative difference of the losses of two precisions after a few steps."""


# -- equal runs ---------------------------------------------------------------------------------------------


def equal_runs(check: Check) -> None:
    """Two deterministic searches, and one that was stopped and resumed, are equal bit for bit."""
    for estimator in ("first-order", "sge"):
        settings: dict[str, Any] = {"epochs": 2, "device": str(check.device), "deterministic": True, "log_every": 1}
        settings |= {"data.data": "digits", "data.train_images": 40, "data.batch_size": 8, "warmup_epochs": 0}
        settings |= {"estimator.name": estimator, "threads": torch.get_num_threads()}
        settings |= {"space.channels": 4, "space.layers": 3, "space.nodes": 2} if not check.tiny else space(check)
        settings |= {"estimator.num_directions": 3} if estimator == "sge" else {}
        config = sgenas.SearchConfig.of_method("darts", settings)
        with tempfile.TemporaryDirectory() as folder:
            whole, again, parted = (Path(folder) / name for name in ("whole", "again", "parted"))
            config.run(whole, progress=False)
            config.run(again, progress=False)
            asked = iter(range(100))
            config.run(parted, stop=lambda asked=asked: next(asked) == 2, progress=False)
            config.run(parted, resume=True, progress=False)
            for name, other in (("two deterministic runs", again), ("a resumed run", parted)):
                try:
                    assert_same_runs(whole, other)
                except AssertionError as error:
                    check.correct(f"{name}, {estimator}", False, str(error).splitlines()[0])
                else:
                    check.correct(f"{name}, {estimator}", True)


# -- waiting ------------------------------------------------------------------------------------------------


@contextmanager
def waiting(check: Check, mode: str) -> Iterator[None]:
    """Inside ``with``, what PyTorch does when the program waits for the GPU: ``"warn"`` or ``"error"``."""
    if not check.cuda:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def waits(check: Check) -> None:
    """No pass waits for the GPU, and a step at most once."""
    call = Call(check)
    problem, weights, alphas, batch = call.problem, call.weights, call.alphas, call.batch
    two_weights, two_alphas = (tree.stack([values] * 2) for values in (weights, alphas))
    passes: dict[str, Callable[[], Any]] = {
        "inner loss": lambda: problem.inner_gradient(weights, alphas, batch),
        "outer loss": lambda: problem.outer_gradients(weights, alphas, batch),
        "two members": lambda: problem.stacked_inner_gradient(two_weights, two_alphas, batch),
    }
    for name, one in passes.items():
        with arithmetic(check.device, "ieee"):
            one()
            try:
                with waiting(check, "error"):
                    one()
            except RuntimeError as error:
                check.correct(f"a pass of the {name} waits for nothing", False, str(error).splitlines()[0])
            else:
                check.correct(f"a pass of the {name} waits for nothing", True)
    for name, settings in estimators(check).items():
        counter = Waits(check)
        run(check, settings, 2, 3, counter)
        most = max(counter.steps[3:], default=0)
        check.target(f"a step waits at most once, {name}", most <= 1, waits=most, where=dict(counter.where))


class Waits(Callback):
    """Counts how often each step waits for the GPU, and where."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self.steps: list[int] = []
        self.where: collections.Counter[str] = collections.Counter()

    def on_step_start(self, run: Any) -> None:
        self._inside = waiting(self._check, "warn")
        self._told = warnings.catch_warnings(record=True)
        self._rows = self._told.__enter__()
        warnings.simplefilter("always")
        self._inside.__enter__()

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        self._inside.__exit__(None, None, None)
        self._told.__exit__(None, None, None)
        found = [row for row in self._rows or () if "called a synchronizing" in str(row.message)]
        self.steps.append(len(found))
        self.where.update(f"{Path(row.filename).name}:{row.lineno}" for row in found)


# -- training -----------------------------------------------------------------------------------------------


def _train(
    check: Check, precision: str, images: ImageData, *, compiled: bool = False
) -> tuple[list[float], list[float]]:
    """(losses of the steps, seconds of the timed ones) of a training of a published cell's network."""
    channels, layers, batch = check.sizes.network
    settings = {"epochs": 2, "device": str(check.device), "precision": precision, "drop_path": 0.0}
    settings |= {
        "auxiliary_weight": 0.0,
        "channels": channels,
        "layers": layers,
        "data.batch_size": batch,
        "data.cutout": 0,
    }
    settings |= {"log_every": 1, "threads": torch.get_num_threads()}
    config = sgenas.TrainConfig.of_recipe("source", published("darts-v2"), settings)

    class Compiled(type(config)):  # type: ignore[misc]
        """The same training of the compiled network."""

        def build(self, images: ImageData) -> nn.Module:
            network: nn.Module = super().build(images)
            network.compile()
            return network

    if compiled:
        config = Compiled(**{field.name: getattr(config, field.name) for field in fields(config)})
    times, rows = StepTimes(check.sizes.skip), Rows()
    stop = lambda: len(times.seconds) >= check.sizes.steps  # noqa: E731
    config.run(images=images, callbacks=[times, rows], stop=stop, progress=False)
    return rows.losses, times.seconds


class Rows(Callback):
    """The training loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_row(self, run: Any, row: dict[str, Any]) -> None:
        if row["kind"] == "step":
            self.losses.append(next(value for name, value in row.items() if name.endswith("loss")))


def _training_images(check: Check) -> ImageData:
    steps = check.sizes.steps + check.sizes.skip + 2
    return check.images(steps, batch=check.sizes.network[2])


def training(check: Check) -> None:
    """A derived network trains in every precision, to about the same losses."""
    images = _training_images(check)
    found = {precision: _train(check, precision, images) for precision in PRECISIONS}
    losses, base = found["ieee"][0], median(found["ieee"][1])
    for precision, (values, seconds) in found.items():
        error = max(abs(ours - theirs) / theirs for ours, theirs in zip(values, losses, strict=True))
        good = all(map(math.isfinite, values)) and error <= CLOSE
        figures: dict[str, Any] = {
            "seconds": median(seconds),
            "times_as_fast": base / median(seconds),
            "difference": error,
        }
        check.correct(f"training step, {precision}", good, **figures, losses=values)
    for precision in PRECISIONS[1:]:
        ratio = base / median(found[precision][1])
        check.target(f"training is no slower, {precision}", check.tiny or ratio >= 0.95, times_as_fast=ratio)


def compiled(check: Check) -> None:
    """The same training with `torch.compile`."""
    images = _training_images(check)
    plain, seconds = _train(check, "tf32", images)
    start = time.perf_counter()
    ours, faster = _train(check, "tf32", images, compiled=True)
    whole = time.perf_counter() - start
    error = max(abs(a - b) / b for a, b in zip(ours, plain, strict=True))
    figures: dict[str, Any] = {
        "seconds": median(faster),
        "times_as_fast": median(seconds) / median(faster),
        "difference": error,
    }
    check.correct("training step, compiled", error <= CLOSE, **figures, seconds_with_compilation=whole)


# -- processes ----------------------------------------------------------------------------------------------


def process_group(check: Check) -> None:
    """One process of NCCL (gloo on a CPU): a sum and a gather give back what went in."""
    backend = "cpu:gloo,cuda:nccl" if check.cuda else "gloo"
    dist.init_process_group(
        backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60)
    )
    try:
        for device in dict.fromkeys((check.device, torch.device("cpu"))):
            mine = torch.randn(2**10 if check.tiny else 2**22, device=device)
            total, gathered = mine.clone(), [torch.empty_like(mine)]
            dist.all_reduce(total)
            dist.all_gather(gathered, mine)
            good = torch.equal(total, mine) and torch.equal(gathered[0], mine)
            start = time.perf_counter()
            dist.all_reduce(total)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
            check.correct(f"one process of {'NCCL' if device.type == 'cuda' else 'gloo'}", good, seconds=seconds)
    finally:
        dist.destroy_process_group()


# -- a real search ------------------------------------------------------------------------------------------


def search(check: Check) -> None:
    """A search from the command line on real images, killed in the middle and resumed."""
    sizes, data = check.sizes, check.data
    if data is None:
        data = CIFAR10 if SHARED_DATA.exists() and not check.tiny else "digits"
    steps = 6 if check.tiny else _affordable_steps(check)
    arguments = ["--data", data, "--method", "darts", "--estimator", "sge", "--directions", sizes.directions]
    arguments += ["--channels", sizes.channels, "--layers", sizes.layers, "--nodes", sizes.nodes]
    arguments += ["--batch-size", sizes.batch, "--train-images", steps * sizes.batch, "--epochs", 2]
    arguments += ["--log-every", 1, "--checkpoint-every", max(1, steps // 4), "--device", check.device]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.perf_counter()
        first = _killed([*arguments, "--out", out], out, max(1, steps // 4) + 1, check.left)
        second = _command(["resume", out]).wait(timeout=max(60.0, check.left))
        seconds = time.perf_counter() - start
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        taken = [row["step"] for row in rows if row["kind"] == "step"]
        good = first == -signal.SIGKILL and second == 0 and taken == list(range(1, len(taken) + 1))
        note = f"killed: {first}, resumed: {second}"
        check.correct("a killed search resumes", good, note, steps=len(taken), seconds=seconds)
        last = [row for row in rows if row["kind"] == "epoch"][-1]
        names = ("val_accuracy", "val_loss", "derived_accuracy", "seconds", "peak_memory_bytes")
        figures = {name: last[name] for name in names if name in last}
        cells = json.loads((out / "genotype.json").read_text(encoding="utf-8"))
        check.report("what the search found", data=data, **figures, train_images=steps * sizes.batch, genotype=cells)


def _affordable_steps(check: Check) -> int:
    """Steps of SGE for about a third of the time that is left, at most those of an epoch of CIFAR-10."""
    timed = [
        verdict.figures["seconds"]
        for verdict in check.verdicts
        if verdict.name.startswith("step, SGE") and verdict.name.endswith("with graphs")
    ]
    return int(max(8, min(390, check.left / 3 / min(timed, default=1.0))))


def _command(arguments: list[Any]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "sgenas", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def _killed(arguments: list[Any], out: Path, step: int, timeout: float) -> int:
    """Starts a search, kills it once it has logged ``step``, and returns its exit code."""
    process, end = _command(["search", *arguments]), time.monotonic() + max(60.0, timeout)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < end:
        if metrics.exists() and f'"step": {step},' in metrics.read_text(encoding="utf-8"):
            break
        time.sleep(0.02)
    process.kill()
    return process.wait()
