"""What every run has in common: counting steps, the clock, the log, checkpoints, and going on from them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sgenas.data import ImageData
from sgenas.engine import deterministic, parts
from sgenas.engine.meter import Meter
from sgenas.engine.parallel import ALONE, Processes
from sgenas.engine.run_folder import Config, Recorder, RunFolder
from sgenas.engine.settings import first_difference, flag
from sgenas.errors import CheckpointError, DataError, DivergenceError, OutOfMemoryError
from sgenas.memory import ran_out
from sgenas.spaces import Genotype
from sgenas.trees import Tree

LOG_EVERY = 10
MOST_ROWS = 10_000
"""Steps between two logged ones where `--log-every` does not say; more of them, so that a run logs at most
MOST_ROWS steps besides the last of each epoch."""


class Observer(Protocol):
    """Whoever watches a run, a display for example. Called from the run's own thread."""

    def begin(self, run: "Run") -> None:
        """Once, before the first step of this process."""

    def advance(self) -> None:
        """After every step."""

    def row(self, row: dict[str, Any], genotype: Genotype) -> None:
        """For every row of metrics.jsonl, with the cell of the moment."""


class Silent:
    """The observer that shows nothing."""

    def begin(self, run: "Run") -> None: ...

    def advance(self) -> None: ...

    def row(self, row: dict[str, Any], genotype: Genotype) -> None: ...


class Run(ABC):
    """A run in the middle of its work: epochs of steps, rows of metrics.jsonl and checkpoints on the way.

    Nothing is written before `_loop`. What a step does, what an epoch ends with and what a checkpoint holds
    besides the counters is the subclass's. images: in place of those that `--data` names. On several
    `processes` each one takes every step and holds the whole state; `folder` is one that all but the first
    leave unwritten.
    """

    noun: ClassVar[str]
    """What it is called in messages."""
    remedy: ClassVar[str]
    """What to try when it diverges."""
    smaller: ClassVar[str]
    """What to try when there is too little memory."""
    summed: ClassVar[tuple[str, ...]]
    """The values of a step whose mean over an epoch is logged."""

    config: Config
    steps_per_epoch: int

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        *,
        test: bool,
        processes: Processes = ALONE,
        images: ImageData | None = None,
    ) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.epoch = self.step_in_epoch = self.step = 0
        self.device = processes.device(config.device)
        self.meter = Meter(self.device)
        self.images = parts.load_images(config, test=test, given=images)
        self._source = "those handed over"
        if images is None:
            self._source = f"--data {config.data.data} holds now"
        self._digest = "".join(
            parts.digest_of(part) for part in (self.images.train, self.images.test) if part is not None
        )
        self._metrics_bytes = 0
        self._notes: dict[str, Any] = {}
        self._zero_sums()

    # -- what a subclass says ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether there is nothing left to do."""

    @property
    @abstractmethod
    def genotype(self) -> Genotype:
        """The cell of the moment."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the run was given: classes, images in each part, sizes; plain data."""

    @abstractmethod
    def learning_rate(self) -> float:
        """Of the weights, in the step that comes next."""

    @abstractmethod
    def _take_step(self) -> dict[str, Tensor]:
        """One step; what there is to log of it, as tensors of one number. `_notes` are logged in any case."""

    @abstractmethod
    def _end_epoch(self, recorder: Recorder, observer: Observer) -> dict[str, Any]:
        """Measures and logs what the epoch came to, and goes to the next; its row."""

    @abstractmethod
    def _norms(self) -> dict[str, float]:
        """Numbers that are finite as long as the run has not diverged."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """What the next step depends on besides the counters, as plain data and tensors."""

    @abstractmethod
    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Goes to where `_own_state` was taken; raises any of the usual errors when it does not fit."""

    def check_environment(self) -> None:
        """Raises ConfigError where `--deterministic` asks for more than the environment grants."""
        if self.config.deterministic:
            deterministic.check(self.device)

    @contextmanager
    def numerics(self) -> Iterator[None]:
        """How numbers are computed while the run goes on."""
        self.check_environment()
        with deterministic.algorithms(self.config.deterministic, flag("deterministic")), self.convolutions():
            yield

    def convolutions(self) -> AbstractContextManager[None]:
        """How convolutions are computed while the run goes on."""
        return parts.exact_convolutions(self.device)

    # -- progress ------------------------------------------------------------------------------------------

    @property
    def work_done(self) -> float:
        """How much of `work_total` is done."""
        return self.step

    @property
    def work_total(self) -> float:
        """The whole run's work; in steps, unless some cost more than others."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def log_every(self) -> int:
        """Steps between two rows of metrics.jsonl."""
        steps = self.config.epochs * self.steps_per_epoch
        return self.config.log_every or max(LOG_EVERY, math.ceil(steps / MOST_ROWS))

    # -- the loop ------------------------------------------------------------------------------------------

    def _loop(self, observer: Observer, stop: Callable[[], bool]) -> tuple[dict[str, Any], ...]:
        """Steps until the run is finished or `stop` says so; the epoch rows that it wrote."""
        rows: list[dict[str, Any]] = []
        if self.finished:
            return ()
        with (
            self.meter,
            self.folder.recorder(keep_bytes=self._metrics_bytes) as recorder,
            self.numerics(),
        ):
            self._compare_processes("at the start")
            if self.step == 0:
                self._save(recorder)
            observer.begin(self)
            while not self.finished:
                self._step_and_record(recorder, observer)
                if self.step_in_epoch == self.steps_per_epoch:
                    rows.append(self._end_epoch(recorder, observer))
                    self._compare_processes(f"after epoch {self.epoch}")
                    self._save(recorder)
                elif self.step % self.config.checkpoint_every == 0:
                    self._save(recorder)
                if self.processes.any(stop()) and not self.finished:
                    self._save(recorder)
                    break
        return tuple(rows)

    def _compare_processes(self, when: str) -> None:
        """Each process computes the same numbers by itself: a machine that rounds otherwise is found out."""
        if self.processes.size > 1:
            given = {
                "settings": self.config.to_dict(),
                "kind of device": self.device.type,
                "images": self._digest,
            }
            self.processes.require_same(given | self._own_state(), when)

    def _step_and_record(self, recorder: Recorder, observer: Observer) -> None:
        lr = self.learning_rate()
        try:
            values = self._take_step()
        except DivergenceError as error:
            raise self._diverged(str(error), self.step + 1) from None
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            # (Python's own MemoryError says nothing)
            said = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(": .")
            raise OutOfMemoryError(
                f"memory ran out at step {self.step + 1} (epoch {self.epoch + 1}):"
                f" {said}; try {self.smaller}, or go on from"
                f" {self.folder.checkpoint_path} where there is more memory"
            ) from None
        self._count_step()
        for name in self._sums:
            if name in values:
                self._sums[name] = self._sums[name] + torch.stack(
                    [values[name], torch.ones_like(values[name])]
                )
        observer.advance()
        notes, self._notes = self._notes, {}
        # reading a value waits for the device, so it is done only for the rows that are kept
        if notes or self.step % self.log_every == 0 or self.step_in_epoch == self.steps_per_epoch:
            row = {"kind": "step", "epoch": self.epoch, "step": self.step, "lr": lr}
            row |= notes | {name: value.item() for name, value in values.items()}
            row["seconds"] = self.meter.seconds
            self._require_finite(row)
            recorder.write(row)
            observer.row(row, self.genotype)

    def _count_step(self) -> None:
        self.step += 1
        self.step_in_epoch += 1

    def _next_epoch(self) -> None:
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self._zero_sums()

    def _zero_sums(self) -> None:
        # of each value its sum, and of how many steps
        self._sums = dict.fromkeys(self.summed, torch.zeros(2, device=self.device))

    def _mean(self, name: str) -> float | None:
        """Of a value over the steps of the epoch that had it; None where none had."""
        total, count = self._sums[name].tolist()
        return total / count if count else None

    def _require_finite(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self._diverged(f"{name} is {value}", self.step)

    def _diverged(self, what: str, step: int) -> DivergenceError:
        return DivergenceError(
            f"{what} at step {step} (epoch {self.epoch + 1}): the {self.noun} diverged; try {self.remedy};"
            f" {self.folder.checkpoint_path} is from before that"
        )

    # -- checkpoints ---------------------------------------------------------------------------------------

    def _save(self, recorder: Recorder) -> None:
        # steps between two logged rows are not looked at, so a run may have diverged unseen
        self._require_finite(self._norms())
        self._metrics_bytes = recorder.flush()
        self.folder.write_checkpoint(self.state_dict())
        self._saved()

    def _saved(self) -> None:  # noqa: B027
        """Called after every checkpoint; nothing needs to be done."""

    def logged(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl up to the checkpoint; RunFolderError where they cannot be read."""
        return self.folder.rows(self._metrics_bytes)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, as plain data and tensors."""
        return {
            "config": self.config.to_dict(),
            "images_digest": self._digest,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "measured": self.meter.read(),
            "metrics_bytes": self._metrics_bytes,
            "sums": self._sums,
            **self._own_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was taken. Raises CheckpointError when it does not fit."""
        try:
            if state["images_digest"] != self._digest:
                raise CheckpointError(
                    f"checkpoint {self.folder.checkpoint_path} was made with other images than {self._source}"
                )
            place = [whole_number(state, name) for name in ("epoch", "step_in_epoch", "step")]
            self.epoch, self.step_in_epoch, self.step = place
            if self.epoch > self.config.epochs:
                raise ValueError(f"epoch must be at most {self.config.epochs}, got {self.epoch}")
            self.meter.go_on_from(state["measured"])
            self._metrics_bytes = state["metrics_bytes"]
            self._sums = same_shapes(self._sums, parts.to_device(state["sums"], self.device))
            self._load_own_state(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, DataError) as error:
            raise CheckpointError(
                f"checkpoint {self.folder.checkpoint_path} does not fit this {self.noun}: {error!r:.300}"
            ) from None


def load_checkpoint(folder: RunFolder, config: Config) -> dict[str, Any]:
    """The state in the run folder's checkpoint; CheckpointError when it is another configuration's."""
    state = folder.read_checkpoint()
    difference = first_difference(config.to_dict(), state.get("config"), "in config.json")
    if difference:
        raise CheckpointError(
            f"checkpoint {folder.checkpoint_path} is from another configuration: {difference}"
        )
    return state


def whole_number(state: dict[str, Any], name: str) -> int:
    """That entry of a state; ValueError where it is no whole number from 0 on."""
    value = state[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} must be a whole number from 0 on, got {value!r:.40}")
    return value


def same_shapes(expected: Tree, tree: Tree) -> Tree:
    """`tree`, once its names and shapes are those of `expected`; ValueError otherwise."""
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    if {name: tensor.shape for name, tensor in tree.items()} != shapes:
        raise ValueError("tensors of other names or shapes")
    return {name: tree[name] for name in expected}
