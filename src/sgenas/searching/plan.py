"""What a search will cost, before it runs: passes counted exactly, seconds and memory from a few timed passes."""

import copy
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from sgenas.bilevel import SGE, Estimator, FiniteDifference, FirstOrder
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.bilevel.estimators.sge.batched import members_that_fit, trajectory_bytes
from sgenas.bilevel.estimators.sge.estimator import MOST_DIRECTIONS
from sgenas.bilevel.saved_memory import SavedMemory
from sgenas.data import ImageData
from sgenas.device import peak_memory, time_calls
from sgenas.random import generator
from sgenas.run.run_dir import environment
from sgenas.searching.config import SearchConfig, before_first_step
from sgenas.searching.loop import Search
from sgenas.searching.results import alpha_steps
from sgenas.searching.selection import AlphaSelection
from sgenas.spaces.relaxations import Softmax

COMPARED = ((10, None, 1), (4, None, 1), (10, None, 5), (10, None, 10), (10, 5, 1))
"""(Q, N, alpha_every) of SGE that are compared with the requested settings; N None: the same."""
EIGENVALUE_PASSES = 100
"""What one measurement of the eigenvalue is taken to cost; 224 alphas take 83."""
REPEATS, ENOUGH_SECONDS, MAX_REPEATS = 2, 1.0, 20
"""A call is timed at least twice, then until its timings add up to a second or are 20."""


@dataclass(frozen=True)
class Constants:
    """Medians in seconds, and memory in bytes, measured here for one supernet and batch size.

    Attributes:
        weights_pass: A step of the weights: batch, forward and backward pass, optimizer.
        alphas_pass: A batch, forward and backward pass for the alphas alone.
        indirect_pass: A pass of an estimator besides the N steps and the outer gradients, by estimator.
        evaluation_pass: A forward pass over a batch.
        room: Trajectories of SGE that are batched if there are enough of them; 1 if none are.
        saved_bytes: What a forward pass saves for its backward pass.
        trajectory_bytes: Memory of a batched trajectory.
        resting_bytes: Memory of the process (on a GPU of its tensors) before any pass.
        working_bytes: Peak memory of passes that are not batched.
    """

    weights_pass: float
    alphas_pass: float
    indirect_pass: dict[str, float]
    evaluation_pass: float
    room: int
    saved_bytes: int
    trajectory_bytes: int
    resting_bytes: int
    working_bytes: int


@dataclass(frozen=True)
class Forecast:
    """A search: its settings, its passes (as its last row of metrics.jsonl will have them), seconds and bytes.

    Estimators that may stop early (conjugate gradients) take at most these passes. ``seconds`` are those of the
    loop, evaluations included. ``directions`` is None for estimators without, and ``"auto"`` where the search
    chooses them; passes, seconds and bytes are then those of the most that it may choose.
    """

    estimator: str
    directions: int | str | None
    inner_steps: int
    alpha_every: int
    steps: int
    alpha_steps: int
    forward: float
    backward: float
    seconds: float
    peak_memory_bytes: int

    @property
    def name(self) -> str:
        """The settings in words."""
        most = f"{self.directions} (at most {MOST_DIRECTIONS})" if self.directions == "auto" else self.directions
        directions = "" if self.directions is None else f", Q = {most}"
        every = "" if self.alpha_every == 1 else f", alphas every {self.alpha_every}"
        return f"{self.estimator}{directions}, N = {self.inner_steps}{every}"


@dataclass(frozen=True)
class Plan:
    """Forecasts of a requested search, the first of ``rows``, and of others with the same weights and data.

    Attributes:
        environment: The machine, and the size of the supernet, as in config.json.
        constants: What was measured.
        rows: The forecasts.
        break_even: For each other estimator the smallest ``alpha_every`` with which SGE (as requested, else
            with Q = 10) takes no more passes per step than that one takes with 1.
    """

    environment: dict[str, Any]
    constants: Constants
    rows: tuple[Forecast, ...]
    break_even: dict[str, int]

    @property
    def first_order(self) -> Forecast:
        """The row of first order with alphas that move at every step."""
        return next(row for row in self.rows[::-1] if (row.estimator, row.alpha_every) == ("first-order", 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)


def plan_search(config: SearchConfig, *, images: ImageData | None = None) -> Plan:
    """Predicts what the search of ``config`` will cost, from some passes on its own images and device.

    Takes seconds for small supernets, minutes if a pass takes seconds; writes nothing.

    Args:
        config: The search.
        images: Images from Python, as in `SearchConfig.run`.

    Raises:
        SgenasError: Whatever the search raises before its first step.
    """

    def planned(run: Search) -> Plan:
        constants, searches = measure(run), [run, *compared(run)]
        facts = environment(run.device) | run.facts()
        rows = tuple(forecast(each, constants, config) for each in searches)
        return Plan(facts, constants, rows, break_even(searches))

    return before_first_step(config, planned, images=images)


# -- what is compared ---------------------------------------------------------------------------------------


def variant(run: Search, estimator: Estimator, inner_steps: int, alpha_every: int) -> Search:
    """The same search with other settings; only its costs are asked for."""
    found = copy.copy(run)
    found.estimator, found.inner_steps, found._alpha_every = estimator, inner_steps, alpha_every
    return found


def compared(run: Search) -> Iterator[Search]:
    """Searches to compare with the requested one, except those that its other settings exclude."""
    if not run.space.relaxation.learns:
        found = variant(run, run.estimator, 1, 1)
        found.space, found.selection = run.space.with_parts(relaxation=Softmax()), AlphaSelection()
        found._warmup_epochs = 0
        yield found
        return
    sge = run.estimator if isinstance(run.estimator, SGE) else SGE()
    others: list[tuple[Estimator, int, int]] = [
        (FirstOrder(), run.inner_steps, 1),
        (FiniteDifference(), run.inner_steps, 1),
    ]
    for directions, inner_steps, every in COMPARED:
        others.append((dataclasses.replace(sge, num_directions=directions), inner_steps or run.inner_steps, every))
    seen = [(run.estimator, run.inner_steps, run._alpha_every)]
    exact = run._objectives.precision == "ieee"
    batches = run._train.length or 0
    for other in others:
        estimator, inner_steps, every = other
        fits = inner_steps <= batches and every <= (run.epochs - run._warmup_epochs) * (batches // inner_steps)
        if other not in seen and fits and (exact or isinstance(estimator, FirstOrder)):
            seen.append(other)
            yield variant(run, *other)


def break_even(searches: list[Search]) -> dict[str, int]:
    """`Plan.break_even`, from the first SGE among the searches and the others with its N.

    With c passes per step that moves the alphas and N per step that does not: N + (c - N) / k on average.
    """
    sge = next((each for each in searches if isinstance(each.estimator, SGE)), None)
    found: dict[str, int] = {}
    for each in searches:
        if sge is not None and each.inner_steps == sge.inner_steps and not isinstance(each.estimator, SGE):
            ours, theirs = (one.alphas_cost().forward - one.inner_steps for one in (sge, each))
            found[_name(each.estimator)] = max(1, math.ceil(ours / theirs))
    return found


def _name(estimator: Estimator) -> str:
    return ESTIMATORS.name_of(type(estimator)) or type(estimator).__name__


def forecast(run: Search, constants: Constants, config: SearchConfig) -> Forecast:
    """What a search takes with these constants."""
    total, steps = run.predicted_cost(), run.epochs * (run.steps_per_epoch or 0)
    batches, inner_steps = run._train.length or 0, run.inner_steps
    chosen = run.selection.cost(run, run._val.length or 0)
    moves = alpha_steps(batches, inner_steps, run.epochs, run._warmup_epochs, run._alpha_every)
    training = run.epochs * batches - moves * inner_steps
    if run._trajectory_optimizer is not None:
        training += moves * inner_steps
    evaluations = run.epochs + (run.epochs // config.derived_every if config.derived_every else 0)
    seconds = training * constants.weights_pass + moves * _call_seconds(run, constants)
    evaluating = evaluations * (run._val.length or 0) + chosen.forward - chosen.backward
    seconds += evaluating * constants.evaluation_pass + chosen.backward * constants.weights_pass
    if config.eigenvalue_every:
        seconds += run.epochs // config.eigenvalue_every * EIGENVALUE_PASSES * constants.weights_pass
    peak = constants.working_bytes
    if isinstance(run.estimator, SGE):
        members = min(run.estimator.most_directions, constants.room)
        if members > 1:
            peak = max(peak, round(constants.resting_bytes + members * constants.trajectory_bytes))
    name = _name(run.estimator) if run.space.relaxation.learns else config.strategy
    settings = getattr(run.estimator, "num_directions", None), inner_steps, run._alpha_every
    return Forecast(name, *settings, steps, moves, total.forward, total.backward, seconds, peak)


def _call_seconds(run: Search, constants: Constants) -> float:
    """One call of an estimator: N steps, the outer gradients, and the passes of its indirect gradient."""
    estimator, count, weights = run.estimator, run.inner_steps, constants.weights_pass
    if isinstance(estimator, FirstOrder):
        return count * weights + constants.alphas_pass
    return (count + 1) * weights + _indirect_passes(estimator, count) * constants.indirect_pass[_name(estimator)]


def _indirect_passes(estimator: Estimator, inner_steps: int) -> float:
    return max(1.0, estimator.indirect_cost(inner_steps).forward)


# -- measuring ----------------------------------------------------------------------------------------------


def measure(run: Search) -> Constants:
    """Times passes of a search before its first step; takes batches from its data and changes nothing else."""
    device, alphas = run.device, run.alphas
    inner, outer = next(run._train), next(run._val)
    objectives = run.objectives()
    noise = objectives.space.draw_noise(alphas, generator(run.seed, "plan"))
    training = objectives.problem(run.weight_optimizer(), run.penalties(), noise)
    problem, start = training, run.state
    if run._trajectory_optimizer is not None:
        problem = dataclasses.replace(training, inner_optimizer=run._trajectory_optimizer)
        start = run._trajectory_optimizer.init(run.state.weights)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    resting = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    saved = SavedMemory()
    with saved:
        problem.run(start, alphas, [inner])

    def median(call: Callable[[], Any]) -> float:
        return statistics.median(time_calls(call, device, repeats=REPEATS, enough=ENOUGH_SECONDS, most=MAX_REPEATS))

    def called(estimator: Estimator, steps: int = 1) -> float:
        draw = generator(run.seed, "plan")
        return median(lambda: estimator(problem, start, alphas, [inner] * steps, outer, generator=draw))

    def evaluated() -> None:
        with torch.no_grad():
            run.supernet()(inner[0])

    weights_pass = median(lambda: training.run(run.state, alphas, [next(run._train)]))
    first_order = called(FirstOrder())
    exact = objectives.precision == "ieee" and objectives.space.relaxation.learns
    sge = run.estimator if isinstance(run.estimator, SGE) else SGE()
    mu = 0.01 if sge.smoothing == "auto" else sge.smoothing
    indirect: dict[str, float] = {}

    def time_indirect(estimator: Estimator, steps: int = 1) -> None:
        beyond = called(estimator, steps) - (steps + 1) * weights_pass
        indirect[_name(estimator)] = max(0.0, beyond / _indirect_passes(estimator, steps))

    if exact:
        time_indirect(FiniteDifference())
    working = peak_memory(device)
    if exact:
        time_indirect(dataclasses.replace(sge, num_directions=sge.most_directions, smoothing=mu))
    if not isinstance(run.estimator, FirstOrder) and _name(run.estimator) not in indirect:
        time_indirect(run.estimator, run.inner_steps)
    room = 1
    if problem.stacked_inner_loss is not None and sge.computation != "sequential":
        always = sge.computation == "batched"
        room = max(1, int(members_that_fit(start, saved.peak, always=always)))
        room = min(room, sge.chunk or room)
    return Constants(
        weights_pass=weights_pass,
        alphas_pass=max(0.0, first_order - weights_pass),
        indirect_pass=indirect,
        evaluation_pass=median(evaluated),
        room=room,
        saved_bytes=saved.peak,
        trajectory_bytes=round(trajectory_bytes(start, saved.peak)),
        resting_bytes=resting,
        working_bytes=working,
    )
