"""Measuring one truth, and one estimator against it: the records that the tables are made of."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sgenas.bilevel import BilevelProblem, Estimator, HypergradientResult
from sgenas.engine.parts import generator
from sgenas.errors import SgenasError
from sgenas.experiments.lab.estimators import Spec
from sgenas.experiments.lab.problems import Moment
from sgenas.experiments.lab.statistics import errors
from sgenas.experiments.lab.truth import (
    Automatic,
    Real,
    automatic,
    compare,
    flat,
    real,
    rows_for,
    squared_distance,
    squared_length,
)
from sgenas.report.lab_record import Record
from sgenas.trees import Tree

MEMORY_STEPS = 5
"""Estimates on other batches before an estimator that remembers is measured. The weights stand still
meanwhile, so that this is the best that a memory can do."""


@dataclass(frozen=True)
class Task:
    """One condition on one draw of batches: where everyone estimates."""

    problem: BilevelProblem
    moment: Moment
    inner: Sequence[Any]
    outer: Any
    earlier: Callable[[], Iterable[tuple[Sequence[Any], Any]]]
    """Inner and outer batches of the estimates before, MEMORY_STEPS of them; made when they are needed."""
    seed: int
    draw: int


def measure_truth(
    task: Task, directions: int, steps: Sequence[float]
) -> tuple[Record, Automatic, Real | None]:
    """Both truths of a task, and what a record says about them. `directions` = 0 leaves the real one out.

    The record: lengths of the parts, `share` = |indirect| / |direct|, for each step size the slopes and
    `truth.compare`, and the squared changes of the slopes from one step size to the next.
    """
    exact = automatic(task.problem, task.moment, task.inner, task.outer)
    direct, indirect = float(exact.direct.norm()), float(exact.indirect.norm())
    record: Record = {
        "direct": direct,
        "indirect": indirect,
        "share": indirect / direct if direct else None,
        "real": [],
        "changes": [],
    }
    if directions == 0:
        return record, exact, None
    rows = rows_for(exact, directions, generator(task.seed, f"frame {task.draw}"))
    seen = real(task.problem, task.moment, task.inner, task.outer, rows, steps)
    for index, step in enumerate(steps):
        entry: Record = {"step": step}
        for part in ("whole", "indirect"):
            slopes = getattr(seen, part)[index].tolist()
            entry[part] = compare(exact, seen, index, part) | {
                "square": squared_length(seen, index, part),
                "slopes": slopes,
            }
        record["real"].append(entry)
    record["changes"] = (seen.whole[1:] - seen.whole[:-1]).square().sum(dim=1).tolist()
    return record, exact, seen


def known_truth(record: Record, vectors: Tensor) -> tuple[Automatic, Real | None]:
    """The truths again from a record and the vectors kept with it, see `truth_vectors`."""
    exact = Automatic(vectors[0], vectors[0] - vectors[1])
    if not record["real"]:
        return exact, None
    whole, indirect = (
        torch.tensor([entry[part]["slopes"] for entry in record["real"]], dtype=torch.float64)
        for part in ("whole", "indirect")
    )
    steps = tuple(entry["step"] for entry in record["real"])
    return exact, Real(vectors[2:], steps, whole, whole - indirect)


def truth_vectors(exact: Automatic, seen: Real | None) -> Tensor:
    """(2 + rows, p): the whole automatic derivative, its indirect part, and the frame of the real slopes."""
    vectors = torch.stack([exact.grad, exact.indirect])
    return vectors if seen is None else torch.cat([vectors, seen.rows])


def measure(spec: Spec, task: Task, draws: int, exact: Automatic, seen: Real | None) -> Record:
    """What an estimator comes to on a task: errors of both parts, passes, seconds of each estimate.

    A random estimator makes `draws` estimates, others one. A refusal by the estimator, or a figure that is
    not finite, makes a record that says "failed" and why: a long run goes on.
    """
    estimator, count = spec.make(), draws if spec.draws else 1
    record: Record = {"q": spec.value("q"), "mu": spec.value("mu")}
    try:
        memory = _memory(estimator, task) if spec.remembers else None
        results, seconds = [], []
        for draw in range(count):
            result, taken = _timed(estimator, task, draw, memory)
            results.append(result)
            seconds.append(taken)
    except SgenasError as error:
        return record | {"failed": str(error)}
    cost = results[0].cost
    record |= {
        "forward": cost.forward,
        "backward": cost.backward,
        "passes": (cost.forward + cost.backward) / 2,
        "seconds": seconds,
    }
    whole = torch.stack([flat(result.grad) for result in results])
    indirect = torch.stack([flat(result.indirect) for result in results])
    if not bool(whole.isfinite().all()):
        return record | {"failed": "the estimate is not finite"}
    record["whole"] = errors(whole, exact.grad)
    record["indirect"] = errors(indirect, exact.indirect)
    record["indirect"]["own_error"] = _own_error(results, exact)
    record["real"] = []
    if seen is not None:
        for index, step in enumerate(seen.steps):
            record["real"].append(
                {"step": step}
                | {
                    part: math.fsum(squared_distance(vector, seen, index, part) for vector in found) / count
                    for part, found in (("whole", whole), ("indirect", indirect))
                }
            )
    return record


def _timed(
    estimator: Estimator, task: Task, draw: int, memory: Tree | None
) -> tuple[HypergradientResult, float]:
    """One estimate and its seconds. Random numbers depend on the draw alone: estimators share directions."""
    directions = generator(task.seed, f"estimate {task.draw} {draw}")
    start = _now(task)
    result = estimator(
        task.problem,
        task.moment.state,
        task.moment.alphas,
        task.inner,
        task.outer,
        generator=directions,
        memory=memory,
    )
    return result, _now(task) - start


def _now(task: Task) -> float:
    """The clock, once what was asked of a GPU is done."""
    device = next(iter(task.moment.alphas.values())).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(estimator: Estimator, task: Task) -> Tree | None:
    """The indirect part of the last of some estimates in a row, each with the one before as its memory."""
    memory = None
    for number, (inner, outer) in enumerate(task.earlier()):
        earlier = replace(task, inner=inner, outer=outer)
        result, _ = _timed(estimator, earlier, -1 - number, memory)
        memory = result.indirect
    return memory


def _own_error(results: Sequence[HypergradientResult], exact: Automatic) -> float | None:
    """What the estimator says of its error, squared, in units of the indirect part's squared length."""
    name = "standard_error"
    said = [result.diagnostics[name] for result in results if name in result.diagnostics]
    square = float(exact.indirect.square().sum())
    if square == 0 or not said:
        return None
    return float(torch.stack(said).double().square().mean()) / square
