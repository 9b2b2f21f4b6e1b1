"""A laboratory run: every estimator in every condition on every draw of batches, against both truths."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from sgenas import trees
from sgenas.engine.parts import exact_convolutions, find_device
from sgenas.errors import ConfigError
from sgenas.experiments.lab.config import DTYPES, LabSettings
from sgenas.experiments.lab.estimators import Spec
from sgenas.experiments.lab.measure import (
    MEMORY_STEPS,
    Task,
    known_truth,
    measure,
    measure_truth,
    truth_vectors,
)
from sgenas.experiments.lab.problems import LabProblem, Moment, Walk, batch_to, moments, walk_passes
from sgenas.experiments.lab.rows import CONDITION, estimator_rows, truth_rows
from sgenas.experiments.lab.store import LabStore
from sgenas.experiments.lab.truth import EXACT, real_passes
from sgenas.files import understood
from sgenas.report.lab_record import FILE, Record

WRITE_SECONDS = 1.0
"""Between two writings of what has been measured: the most that a kill can lose, besides the piece itself."""


class Observer(Protocol):
    """Who watches a run: told the passes in all, then those done, and a line whenever a piece is done."""

    def begin(self, total: float, text: str) -> None: ...
    def advance(self, passes: float) -> None: ...
    def say(self, text: str) -> None: ...


class Silent:
    """Nobody watches."""

    def begin(self, total: float, text: str) -> None: ...
    def advance(self, passes: float) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass(frozen=True)
class LabResult:
    """Where the measurements are, and whether all that was asked for is there."""

    path: Path
    finished: bool


@dataclass(frozen=True)
class Condition:
    """One point of the axes that belong to the problem and not to an estimator."""

    moment: int
    inner_steps: int
    batch_size: int
    inner_lr: float

    def key(self, draw: int) -> Record:
        """What a record of that draw of batches says about its condition."""
        return {name: getattr(self, name) for name in CONDITION} | {"batch": draw}


def run_lab(
    settings: LabSettings,
    out: str | Path,
    *,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> LabResult:
    """Measures into the folder `out` what is not there yet: lab.json, written after every piece (but at most
    once a second).

    Draws of batches are the outermost loop: a run that is cut has all conditions, with fewer draws. `stop`
    is asked after every piece, and every step on the way to a moment; once it answers True, the run returns
    unfinished. Raises ConfigError, DataError or RunFolderError before anything is measured, DivergenceError
    when the way to a moment diverges.
    """
    device = find_device(settings.device)
    lab = Lab(settings, LabStore(out, settings.fixed(), device), device, observer or Silent())
    with exact_convolutions(device):
        return lab.run(stop)


class Lab:
    """A run in the middle of its work."""

    def __init__(
        self, settings: LabSettings, store: LabStore, device: torch.device, observer: Observer
    ) -> None:
        self._settings, self._store, self._device, self._observer = settings, store, device, observer
        problem: LabProblem = settings.defaults.make(settings)
        own = problem.dtype
        if own is not None and device.type != "cpu":
            raise ConfigError(f"--device must be cpu with --problem {settings.problem}, got {device}")
        self._problem = problem.to(device)
        self._dtype = own or DTYPES["float32" if settings.dtype == "auto" else settings.dtype]
        self._truth_dtype = own or DTYPES[settings.truth_dtype]
        self._specs = settings.specs
        self._estimators = {spec: spec.make() for spec in self._specs}
        most = problem.most_examples
        for size in (*settings.axis("batch_sizes"), self._walk.batch_size):
            if most is not None and size > most:
                raise ConfigError(f"--batch-sizes must be at most the {most} examples of a loss, got {size}")

    @property
    def _walk(self) -> Walk:
        settings, defaults = self._settings, self._settings.defaults
        return Walk(
            settings.optimizer(settings.walk_lr or defaults.inner_lr),
            settings.alpha_lr or defaults.alpha_lr,
            settings.walk_batch_size or defaults.batch_size,
            settings.seed,
        )

    @cached_property
    def _facts(self) -> Record:
        """Sizes of the problem, for who reads the results."""
        return {"alphas": trees.size(self._problem.alphas), "weights": trees.size(self._problem.weights)}

    def _conditions(self) -> list[Condition]:
        axes = ("moments", "inner_steps", "batch_sizes", "inner_lrs")
        values = [self._settings.axis(name) for name in axes]
        return [Condition(*point) for point in itertools.product(*values)]

    # -- the work and its size ----------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool]) -> LabResult:
        settings, observer = self._settings, self._observer
        conditions = self._conditions()
        wanted = sorted({condition.moment for condition in conditions})
        walk = walk_passes(self._problem) * max(wanted)
        tasks = [(draw, condition) for draw in range(settings.batches) for condition in conditions]
        total = walk + sum(self._passes(condition, draw) for draw, condition in tasks)
        observer.begin(
            total,
            f"{settings.problem}: {self._facts['alphas']:,} alphas, {self._facts['weights']:,} weights;"
            f" {len(conditions)} conditions, {len(self._specs)} estimators, {settings.batches} draws of"
            " batches",
        )
        written = time.monotonic()
        at = dict(moments(self._problem, self._walk, wanted, self._store.path, observer.advance, stop))
        if len(at) < len(wanted):
            self._write()
            return LabResult(self._store.path, finished=False)
        for draw, condition in tasks:
            for _ in self._pieces(condition, at[condition.moment], draw):
                # small problems have many pieces a second, and each writing waits for the disk
                if time.monotonic() - written > WRITE_SECONDS:
                    self._write()
                    written = time.monotonic()
                if stop():
                    self._write()
                    return LabResult(self._store.path, finished=False)
        self._write()
        return LabResult(self._store.path, finished=True)

    def _missing(self, condition: Condition, draw: int) -> list[Spec]:
        def measured(spec: Spec) -> bool:
            return self._store.find("measurements", self._key(spec, condition, draw)) is not None

        return [spec for spec in self._specs if not measured(spec)]

    def _key(self, spec: Spec, condition: Condition, draw: int) -> Record:
        draws = self._settings.draws if spec.draws else 1
        return condition.key(draw) | {"estimator": str(spec), "draws": draws}

    def _passes(self, condition: Condition, draw: int) -> float:
        """Passes of what is missing in a condition on one draw of batches."""
        missing = self._missing(condition, draw)
        total = sum(self._spec_passes(spec, condition.inner_steps) for spec in missing)
        if self._store.find("truths", condition.key(draw)) is None:
            total += self._truth_passes(condition.inner_steps)
        return total

    def _spec_passes(self, spec: Spec, inner_steps: int) -> float:
        cost = self._estimators[spec].cost(inner_steps)
        count = self._settings.draws if spec.draws else 1
        if spec.remembers:
            count += MEMORY_STEPS
        return count * (cost.forward + cost.backward) / 2

    def _truth_passes(self, inner_steps: int) -> float:
        cost, settings = EXACT.cost(inner_steps), self._settings
        slopes = real_passes(
            inner_steps, self._facts["alphas"], settings.truth_directions, len(settings.truth_steps)
        )
        return (cost.forward + cost.backward) / 2 + slopes

    # -- one condition on one draw of batches -------------------------------------------------------------

    def _pieces(self, condition: Condition, moment: Moment, draw: int) -> Iterator[None]:
        """Measures what is missing, one piece between two yields."""
        missing, key = self._missing(condition, draw), condition.key(draw)
        record = self._store.find("truths", key)
        if record is not None and not missing:
            return
        if record is None:
            task = self._task(condition, moment, draw, self._truth_dtype)
            found, exact, seen = measure_truth(
                task, self._settings.truth_directions, self._settings.truth_steps
            )
            self._store.add("truths", key | found)
            self._store.add_vectors(_name(key), truth_vectors(exact, seen))
            self._observer.advance(self._truth_passes(condition.inner_steps))
            self._observer.say(f"{_words(key)}: truth, |indirect| / |direct| = {_short(found['share'])}")
            yield
        else:
            with understood(self._store.path / FILE):
                exact, seen = known_truth(record, self._store.vectors(_name(key)))
        task = self._task(condition, moment, draw, self._dtype)
        for spec in missing:
            found = measure(spec, task, self._settings.draws, exact, seen)
            self._store.add("measurements", self._key(spec, condition, draw) | found)
            self._observer.advance(self._spec_passes(spec, condition.inner_steps))
            self._observer.say(f"{_words(key)}: {spec}, {_outcome(found)}")
            yield

    def _task(self, condition: Condition, moment: Moment, draw: int, dtype: torch.dtype) -> Task:
        settings, problem = self._settings, self._problem

        def batches(number: int) -> tuple[Sequence[Any], Any]:
            inner, outer = problem.batches(number, condition.batch_size, condition.inner_steps, settings.seed)
            return batch_to(inner, dtype), batch_to(outer, dtype)

        # numbers that no draw has
        earlier = range(-1 - draw * MEMORY_STEPS, -1 - (draw + 1) * MEMORY_STEPS, -1)
        bilevel = problem.bilevel(settings.optimizer(condition.inner_lr))
        return Task(
            bilevel, moment.to(dtype), *batches(draw), lambda: map(batches, earlier), settings.seed, draw
        )

    def _write(self) -> None:
        store = self._store

        def truth_of(record: Record) -> Record | None:
            return store.find("truths", {name: record[name] for name in (*CONDITION, "batch")})

        with understood(store.path / FILE):
            truths = truth_rows(store.records("truths"), lambda record: store.vectors(_name(record)))
            rows = estimator_rows(store.records("measurements"), truth_of)
        store.write(self._facts, {"truth_rows": truths, "rows": rows})


def _name(key: Record) -> str:
    """What the vectors of a truth are kept under."""
    return " ".join(f"{name}={key[name]}" for name in (*CONDITION, "batch"))


def _words(key: Record) -> str:
    return (
        f"after {key['moment']} steps, N = {key['inner_steps']}, {key['batch_size']} examples, lr"
        f" {key['inner_lr']:g}, draw {key['batch']}"
    )


def _outcome(record: Record) -> str:
    if "failed" in record:
        return f"failed: {record['failed']}"
    return f"squared error of the indirect part {_short(record['indirect']['squared_error'])}"


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3g}"
