r"""Measures one reference hypergradient, and one estimator against it.

Of R estimates g_r of one vector g, on the same batches, in units of ||g||^2:

    squared error (relative MSE) = mean_r ||g_r - g||^2
    variance                     = sum_r ||g_r - m||^2 / (R - 1),  m = mean_r g_r
    bias^2                       = ||m - g||^2 - variance / R

The last term removes what the noise in m itself adds, so that bias^2 is unbiased (and may come out a little below
0), and  squared error = bias^2 + variance  holds exactly.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypergradients.reference import (
    PARTS,
    Automatic,
    Real,
    automatic,
    compare,
    flat,
    frame_of,
    real,
)
from hypergradients.specs import Spec
from hypergradients.warmup import Checkpoint
from sgenas import tree
from sgenas.bilevel import BilevelProblem, Estimator, HypergradientResult
from sgenas.errors import SgenasError
from sgenas.random import generator

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One condition on one sample of batches: where every estimator estimates."""

    problem: BilevelProblem
    at: Checkpoint
    inner: Sequence[Any]
    outer: Any
    seed: int
    draw: int


def errors(estimates: Tensor, exact: Tensor) -> dict[str, float | None]:
    """Figures of R estimates (R, p) of a vector (p,), with the formulas of the module's docstring.

    cosine: mean over the estimates, None if one of them is 0. relative_error: mean of ||g_r - g|| / ||g||. R = 1
    stands for a deterministic estimator: variance 0. All are None if the vector is 0.
    """
    norm = exact.norm()
    if norm == 0:
        return dict.fromkeys(("cosine", "relative_error", "squared_error", "bias", "variance"))
    distances, norms, count = (estimates - exact).norm(dim=1) / norm, estimates.norm(dim=1), len(estimates)
    cosine = float((estimates @ exact / (norms * norm)).mean()) if bool((norms > 0).all()) else None
    variance = float(estimates.var(dim=0).sum() / norm.square()) if count > 1 else 0.0
    bias = float(((estimates.mean(dim=0) - exact).norm() / norm).square()) - variance / count
    return {
        "cosine": cosine,
        "relative_error": float(distances.mean()),
        "squared_error": float(distances.square().mean()),
        "bias": bias,
        "variance": variance,
    }


def measure_reference(task: Task, directions: int, steps: Sequence[float]) -> tuple[Record, Automatic, Real | None]:
    """Both references of a task, and a record of them. ``directions`` = 0 leaves the real one out.

    The record: norms of both parts, ``share`` = |indirect| / |direct|, per step size the directional derivatives and
    ``compare``, and the squared changes of the derivatives from one step size to the next.
    """
    exact = automatic(task.problem, task.at, task.inner, task.outer)
    direct, indirect = float(exact.direct.norm()), float(exact.indirect.norm())
    record: Record = {"direct": direct, "indirect": indirect, "share": indirect / direct if direct else None}
    record |= {"real": [], "changes": []}
    if directions == 0:
        return record, exact, None
    rows = frame_of(exact, directions, generator(task.seed, f"frame {task.draw}"))
    seen = real(task.problem, task.at, task.inner, task.outer, rows, steps)
    for index, step in enumerate(steps):
        entry: Record = {"step": step}
        for part in PARTS:
            entry[part] = compare(exact, seen, index, part) | {
                "square": seen.squared_norm(index, part),
                "slopes": getattr(seen, part)[index].tolist(),
            }
        record["real"].append(entry)
    record["changes"] = (seen.whole[1:] - seen.whole[:-1]).square().sum(dim=1).tolist()
    return record, exact, seen


def known_reference(record: Record, vectors: Tensor) -> tuple[Automatic, Real | None]:
    """The references again from a record and the vectors kept with it, see ``reference_vectors``."""
    exact = Automatic(vectors[0], vectors[0] - vectors[1])
    if not record["real"]:
        return exact, None
    whole, indirect = (
        torch.tensor([entry[part]["slopes"] for entry in record["real"]], dtype=torch.float64) for part in PARTS
    )
    steps = tuple(entry["step"] for entry in record["real"])
    return exact, Real(vectors[2:], steps, whole, whole - indirect)


def reference_vectors(exact: Automatic, seen: Real | None) -> Tensor:
    """(2 + rows, p): the automatic hypergradient, its indirect part, and the frame of the real derivatives."""
    vectors = torch.stack([exact.grad, exact.indirect])
    return vectors if seen is None else torch.cat([vectors, seen.rows])


def measure(spec: Spec, task: Task, draws: int, exact: Automatic, seen: Real | None) -> Record:
    """Errors of both parts, passes and seconds of an estimator on a task.

    A random estimator makes ``draws`` estimates, others one. If the estimator refuses, or a figure is NaN or
    infinite, the record says "failed" and why, and a long run continues.
    """
    estimator, count = spec.make(), draws if spec.draws else 1
    record: Record = {"q": spec.value("q"), "mu": spec.value("mu")}
    try:
        results, seconds = zip(*(_timed(estimator, task, draw) for draw in range(count)), strict=True)
    except SgenasError as error:
        return record | {"failed": str(error)}
    cost = results[0].cost
    record |= {"forward": cost.forward, "backward": cost.backward, "passes": (cost.forward + cost.backward) / 2}
    record["seconds"] = list(seconds)
    estimates = {
        "whole": torch.stack([flat(result.grad) for result in results]),
        "indirect": torch.stack([flat(result.indirect) for result in results]),
    }
    if not bool(estimates["whole"].isfinite().all()):
        return record | {"failed": "the estimate is NaN or infinite"}
    record["whole"] = errors(estimates["whole"], exact.grad)
    record["indirect"] = errors(estimates["indirect"], exact.indirect)
    record["indirect"]["own_error"] = _own_error(results, exact)
    record["real"] = []
    for index, step in enumerate(seen.steps if seen is not None else ()):
        assert seen is not None
        distances = {
            part: math.fsum(seen.squared_distance(vector, index, part) for vector in estimates[part]) / count
            for part in PARTS
        }
        record["real"].append({"step": step} | distances)
    return record


def _timed(estimator: Estimator, task: Task, draw: int) -> tuple[HypergradientResult, float]:
    """One estimate and its seconds. Random numbers depend on the draw alone: estimators share directions."""
    directions = generator(task.seed, f"estimate {task.draw} {draw}")
    start, at = _now(task), task.at
    result = estimator(task.problem, at.state, at.alphas, task.inner, task.outer, generator=directions)
    return result, _now(task) - start


def _now(task: Task) -> float:
    """The clock, once a GPU has done what it was asked for."""
    device = tree.tensors(task.at.alphas)[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _own_error(results: Sequence[HypergradientResult], exact: Automatic) -> float | None:
    """The estimator's own estimate of its relative MSE."""
    name, square = "standard_error", float(exact.indirect.square().sum())
    said = [result.diagnostics[name] for result in results if name in result.diagnostics]
    if square == 0 or not said:
        return None
    return float(torch.stack(said).double().square().mean()) / square
