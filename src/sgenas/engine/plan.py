"""What a search will cost, before it runs: passes counted, seconds and memory from a few that are timed."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch

from sgenas.bilevel import SGE, BilevelProblem, Estimator, FiniteDifference, FirstOrder
from sgenas.bilevel.directions import draw
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.projections import Perturbation
from sgenas.bilevel.sge import COMPUTATIONS
from sgenas.bilevel.sharing import cut
from sgenas.bilevel.smoothing import probes
from sgenas.bilevel.vectorised import SavedMemory, side_by_side, trajectory_bytes
from sgenas.data import ImageData
from sgenas.engine import parts
from sgenas.engine.config import EstimatorSettings, SearchConfig
from sgenas.engine.run_folder import RunFolder, environment
from sgenas.engine.schedule import Schedule
from sgenas.engine.search import Batch, Search
from sgenas.errors import ConfigError
from sgenas.memory import peak_memory
from sgenas.trees import Tree

COMPARED = ((10, None, 1), (4, None, 1), (10, None, 5), (10, None, 10), (10, 5, 1))
"""(Q, N, alphas every so many steps) of sge beside the settings asked for; N None: theirs."""
EIGENVALUE_PASSES = 100
"""What `--eigenvalue-every` costs each time; it ends when the power iteration has settled."""
REPEATS, ENOUGH_SECONDS, FULL_REPEATS = 3, 1.0, 20
"""A pass is timed at least 3 times, then until its timings make a second together or are 20."""


@dataclass(frozen=True)
class Constants:
    """What was measured on this machine of one supernet at one batch size. Seconds are medians.

    weights_pass: a step of the weights: its batch, forward and backward pass, and the optimiser. alphas_pass:
    a batch, forward and backward pass for the alphas alone. perturbed_pass: of sge, a perturbed step in the
    way that `--computation` takes it, on `--batch-fraction` of a batch, with `side_by_side` others; None
    where sge cannot run. evaluation_pass: a forward pass over a batch of validation images.

    room: how many directions would go side by side if there were enough of them, 1 where none do.
    saved_bytes: what a forward pass saves for its backward pass. trajectory_bytes: what a direction beside
    others takes. resting_bytes, working_bytes: memory of the process (or of its tensors on a GPU) before any
    pass, and the most after passes one at a time.
    """

    weights_pass: float
    alphas_pass: float
    perturbed_pass: float | None
    evaluation_pass: float
    side_by_side: int
    room: int
    saved_bytes: int
    trajectory_bytes: int
    resting_bytes: int
    working_bytes: int


@dataclass(frozen=True)
class Forecast:
    """One search: its settings, what it takes exactly, and seconds and bytes as predicted.

    directions: None for an estimator without. steps, forward, backward and images are those that the last
    row of metrics.jsonl will have; an early stop ends before. seconds: of the loop, testing included.
    """

    estimator: str
    directions: int | None
    inner_steps: int
    alpha_every: int
    steps: int
    alpha_steps: int
    forward: float
    backward: float
    images: int
    seconds: float
    peak_memory_bytes: int

    @property
    def name(self) -> str:
        """The settings in words."""
        directions = "" if self.directions is None else f", Q = {self.directions}"
        every = "" if self.alpha_every == 1 else f", alphas every {self.alpha_every}"
        return f"{self.estimator}{directions}, N = {self.inner_steps}{every}"


@dataclass(frozen=True)
class Plan:
    """Forecasts of a search as asked for, the first of `rows`, and of others with the same weights and data.

    environment, facts: the machine, and what the search is given, as in config.json. break_even: for each
    other estimator the least `--alpha-every` with which sge (as asked for, else with Q = 10) takes no
    more passes a step than that one takes with alphas that move at every step; {} where sge cannot run.
    """

    environment: dict[str, Any]
    facts: dict[str, Any]
    constants: Constants
    rows: tuple[Forecast, ...]
    break_even: dict[str, int]

    @property
    def first_order(self) -> Forecast:
        """The row of first order, its alphas moved at every step."""
        return next(row for row in self.rows[::-1] if row.estimator == "first-order" and row.alpha_every == 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)


def plan_search(config: SearchConfig, *, images: ImageData | None = None) -> Plan:
    """Predicts what the search of `config` will cost, from some passes on its own images and device.

    images: as in `run_search`. Takes seconds with small supernets, a minute where a pass takes seconds;
    nothing is written. Raises what `run_search` raises before its first step.
    """
    search = Search(parts.with_absolute_paths(config, images), RunFolder("unused"), images=images)
    search.check_precision()
    constants = measure(search)
    schedules = [search.schedule, *compared(search.schedule)]
    return Plan(
        environment(search.device),
        search.describe(),
        constants,
        tuple(forecast(each, constants, search) for each in schedules),
        break_even(schedules),
    )


def compared(schedule: Schedule) -> Iterator[Schedule]:
    """The searches that stand beside the one asked for, but for those that its other settings exclude."""
    config, asked = schedule.config, schedule.config.estimator
    sge = asked if asked.estimator == "sge" else EstimatorSettings(inner_steps=asked.inner_steps)
    others = [
        (EstimatorSettings(estimator=name, inner_steps=asked.inner_steps), 1)
        for name in ("first-order", "second-order")
    ]
    for directions, inner_steps, every in COMPARED:
        inner_steps = inner_steps or asked.inner_steps
        others.append((dataclasses.replace(sge, directions=directions, inner_steps=inner_steps), every))
    seen = {(asked, config.alphas.alpha_every)}
    for estimator, every in others:
        if (estimator, every) in seen:
            continue
        seen.add((estimator, every))
        if config.precision != "float32" and estimator.estimator not in ("first-order", asked.estimator):
            continue  # nobody has measured what rounding does to it
        alphas = dataclasses.replace(config.alphas, alpha_every=every)
        try:
            changed = dataclasses.replace(config, estimator=estimator, alphas=alphas)
            found = Schedule(changed, schedule.images)
        except ConfigError:
            continue
        yield found


def break_even(schedules: list[Schedule]) -> dict[str, int]:
    """`Plan.break_even`, from the first sge among them and the others of its N.

    With c passes a step that moves the alphas and N one that does not, N + (c - N) / k a step in the mean.
    """
    found: dict[str, int] = {}
    sge = next((each for each in schedules if each.config.estimator.estimator == "sge"), None)
    if sge is None:
        return found
    for each in schedules:
        settings = each.config.estimator
        if settings.estimator == "sge" or settings.inner_steps != sge.config.estimator.inner_steps:
            continue
        ours, theirs = (
            schedule.alpha_cost.forward - schedule.training_cost.forward for schedule in (sge, each)
        )
        # 11 / 1 must stay 11 where a part of a batch made fractions of it
        found[settings.estimator] = max(1, math.ceil(round(ours / theirs, 6)))
    return found


def forecast(schedule: Schedule, constants: Constants, search: Search) -> Forecast:
    """What the search of `schedule` takes where the constants were measured on `search`."""
    config, cost = schedule.config, schedule.cost
    settings, inner_steps = config.estimator, config.estimator.inner_steps
    training = inner_steps * constants.weights_pass
    moving = _estimator_seconds(schedule.estimator, inner_steps, constants)
    if config.weights.weights == "separate":
        moving += training
    steps = (schedule.steps - schedule.alpha_steps) * training + schedule.alpha_steps * moving
    is_sge = isinstance(schedule.estimator, SGE)
    return Forecast(
        estimator=settings.estimator,
        directions=settings.directions if is_sge else None,
        inner_steps=inner_steps,
        alpha_every=config.alphas.alpha_every,
        steps=schedule.steps,
        alpha_steps=schedule.alpha_steps,
        forward=cost.forward,
        backward=cost.backward,
        images=round(cost.forward * config.data.batch_size),
        seconds=steps + _watching_seconds(config, constants, len(search.split["validation"])),
        peak_memory_bytes=_peak_memory(schedule.estimator, constants),
    )


def _estimator_seconds(estimator: Estimator, inner_steps: int, constants: Constants) -> float:
    """One call. An estimator that is not known here takes all its passes at the price of a weights' pass."""
    weights, alphas, perturbed = estimator.cost(inner_steps).forward, 0.0, 0
    if isinstance(estimator, FirstOrder):
        weights, alphas = inner_steps, 1
    elif isinstance(estimator, FiniteDifference):
        weights, alphas = inner_steps + 1, estimator.cost(inner_steps).forward - inner_steps - 1
    elif isinstance(estimator, SGE):
        # on a part of the batch the unperturbed steps are taken again
        again = 1 if estimator.batch_fraction < 1 else 0
        # and to choose the smoothing some directions are followed besides
        probed = probes(central=estimator.directions == "antithetic") if estimator.smoothing == "auto" else 0
        weights, perturbed = inner_steps + 1, (estimator.num_directions + probed + again) * inner_steps
        alphas = estimator.guessing_passes * estimator.batch_fraction
    seconds = weights * constants.weights_pass + alphas * constants.alphas_pass
    return seconds + perturbed * (constants.perturbed_pass or 0.0)


def _watching_seconds(config: SearchConfig, constants: Constants, validation: int) -> float:
    """What is measured at the ends of all epochs."""
    settings = config.watch
    tests = config.epochs + (config.epochs // settings.derived_every if settings.derived_every else 0)
    seconds = tests * validation / config.data.batch_size * constants.evaluation_pass
    if settings.eigenvalue_every:
        times = config.epochs // settings.eigenvalue_every
        seconds += times * EIGENVALUE_PASSES * constants.weights_pass
    return seconds


def _peak_memory(estimator: Estimator, constants: Constants) -> int:
    members = min(estimator.num_directions, constants.room) if isinstance(estimator, SGE) else 1
    if members < 2:
        return constants.working_bytes
    return max(constants.working_bytes, round(constants.resting_bytes + members * constants.trajectory_bytes))


def measure(search: Search) -> Constants:
    """Times passes of `search` where it stands; takes batches from its streams, and changes nothing else."""
    device, weights, alphas = search.device, search.state.weights, search.alphas
    next_inner = partial(search.next_batch, search.inner_stream)
    next_outer = partial(search.next_batch, search.outer_stream)
    with search.numerics():
        problem = search._problem(search._weight_optimizer())
        own, start = search._trajectory(problem)
        inner, outer = next_inner(), next_outer()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            resting = torch.cuda.memory_allocated(device)
        else:
            resting = psutil.Process().memory_info().rss
        saved = SavedMemory()
        with saved:
            own.run(start, alphas, [inner])
        weights_pass = _median(lambda: problem.run(search.state, alphas, [next_inner()]), device)
        alphas_pass = _median(lambda: problem.outer_alpha_gradient(weights, alphas, next_outer()), device)
        with torch.no_grad():
            evaluation_pass = _median(lambda: search._logits(weights, alphas, inner[0]), device)
        _, v, _ = own.outer_gradients(weights, alphas, outer)
        working = peak_memory(device)

        perturbed = _Perturbed(None, 1, 1, 0)
        if search.config.precision == "float32" or isinstance(search.estimator, SGE):
            perturbed = _perturbed(search, own, start, inner, v)
    return Constants(
        weights_pass=weights_pass,
        alphas_pass=alphas_pass,
        perturbed_pass=perturbed.seconds,
        evaluation_pass=evaluation_pass,
        side_by_side=perturbed.side_by_side,
        room=perturbed.room,
        saved_bytes=saved.peak,
        trajectory_bytes=perturbed.bytes,
        resting_bytes=resting,
        working_bytes=working,
    )


class _Perturbed(NamedTuple):
    """Of a direction: seconds, the number that goes side by side and would if there were more, bytes each."""

    seconds: float | None
    side_by_side: int
    room: int
    bytes: int


def _perturbed(
    search: Search, problem: BilevelProblem, start: InnerState, batch: Batch, v: Tree
) -> _Perturbed:
    """Of the perturbed steps of the search's sge, or of sge by default where it has another estimator."""
    sge = search.estimator if isinstance(search.estimator, SGE) else SGE()
    alphas, count = search.alphas, math.ceil(sge.batch_fraction * len(batch[1]))
    part = cut(batch, 0, count)
    saved = SavedMemory()
    with saved:
        trajectory = problem.run(start, alphas, [part])

    def task(members: int) -> Perturbation:
        directions = draw("gaussian", members, alphas, search.directions).trees(alphas)
        return Perturbation(
            problem,
            start,
            alphas,
            directions,
            1.0 if isinstance(sge.smoothing, str) else sge.smoothing,
            [part],
            trajectory,
            v,
            memory_limit=sge.memory_limit,
            saved_bytes=saved.peak,
        )

    room = 1
    if sge.computation in ("auto", "vectorised"):
        room = max(1, int(side_by_side(task(1), always=sge.computation == "vectorised")))
    members = min(sge.num_directions, room)
    made = task(members)
    seconds = _median(lambda: COMPUTATIONS[sge.computation](made), search.device) / members
    return _Perturbed(seconds, members, room, round(trajectory_bytes(made)))


def _median(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, after an untimed one."""

    def timed() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed()
    seconds: list[float] = []
    while len(seconds) < REPEATS or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < FULL_REPEATS):
        seconds.append(timed())
    return statistics.median(seconds)
