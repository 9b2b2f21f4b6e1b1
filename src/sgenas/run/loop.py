"""The loop that every run shares: epochs of steps, metrics, callbacks, checkpoints, exact resume."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgenas import tree
from sgenas.device import arithmetic, ran_out
from sgenas.errors import CheckpointError, DivergenceError, OutOfMemoryError, one_line
from sgenas.run.batches import Stream
from sgenas.run.callbacks import Callback, ProgressBar, load_states, states_of
from sgenas.run.distributed import ALONE, Processes
from sgenas.run.loggers import LOGGERS, JsonLines, Logger, opened
from sgenas.run.meter import Meter
from sgenas.run.run_dir import RunDir

LOG_EVERY, MAX_ROWS = 10, 10_000
"""Default steps between two logged ones; more, so that a run logs at most MAX_ROWS steps."""


class Stopped(Exception):
    """What `Loop.go_on` raises when the run is asked to stop."""


class Loop(ABC):
    """A run in the middle of its work. Subclasses say what a step and an epoch do and what a checkpoint holds.

    Args:
        epochs: Number of epochs.
        run_dir: Where files go; ``RunDir(None)`` for none.
        device: Device of all tensors.
        callbacks: Called in this order.
        loggers: Get every row, in addition to metrics.jsonl; names or objects.
        progress: Show progress, unless one of the callbacks does.
        processes: The processes of this run; each takes every step, the first one writes.
        log_every: Steps between two rows; None for 10, or more in long runs.
        checkpoint_every: Steps between two checkpoints; there is one after each epoch too. None: only there.
        deterministic: Use deterministic algorithms only.
        precision: One of `PRECISIONS`.
    """

    noun: ClassVar[str] = "run"
    lower: ClassVar[str] = "a lower lr"
    """What to try when it diverges."""
    smaller: ClassVar[str] = "a lower batch_size"
    """What to try when memory runs out."""
    summed: ClassVar[tuple[str, ...]] = ()
    """Values of a step whose mean over the epoch is logged."""
    mean_prefix: ClassVar[str] = ""
    """In front of their names in the epoch's row."""

    def __init__(
        self,
        *,
        epochs: int,
        run_dir: RunDir,
        device: torch.device,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[str | Logger] = (),
        progress: bool = False,
        processes: Processes = ALONE,
        log_every: int | None = None,
        checkpoint_every: int | None = None,
        deterministic: bool = False,
        precision: str = "ieee",
    ) -> None:
        self.epochs, self.run_dir, self.device, self.processes = epochs, run_dir, device, processes
        self.callbacks = list(callbacks)
        if progress and processes.first and not any(isinstance(each, ProgressBar) for each in callbacks):
            self.callbacks.append(ProgressBar())
        self._loggers = [LOGGERS.get(each)() if isinstance(each, str) else each for each in loggers]
        self._log_every, self._checkpoint_every = log_every, checkpoint_every
        self._deterministic, self._precision = deterministic, precision
        self.epoch = self.step_in_epoch = self.step = 0
        self.history: list[dict[str, Any]] = []
        self.meter = Meter(device)
        self.notes: dict[str, Any] = {}
        self.streams: tuple[Stream, ...] = ()
        self._log: JsonLines | None = None
        self._log_bytes = 0
        self._stop_requested = False
        self._stop: Callable[[], bool] = lambda: False
        self._zero_sums()

    # -- what a subclass says -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch; None if only the end of the data tells."""

    @abstractmethod
    def take_step(self) -> dict[str, Tensor]:
        """One step; the values to log, as 0-d tensors."""

    @abstractmethod
    def end_epoch(self) -> dict[str, Any]:
        """What the epoch measured, as entries of its row."""

    def end_early(self) -> dict[str, Any]:
        """What the end of the run by a callback changes, as entries of the epoch's row."""
        return {}

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What the next step depends on besides the counters, equal on all processes."""

    @abstractmethod
    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restores ``own_state``."""

    @abstractmethod
    def learning_rate(self) -> float | None:
        """Of the weights, in the next step."""

    def finite_norms(self) -> dict[str, Tensor]:
        """Numbers that are finite as long as the run has not diverged; read before each checkpoint."""
        return {}

    def arithmetic(self) -> AbstractContextManager[None]:
        """How numbers are computed while the run goes on."""
        return arithmetic(self.device, self._precision, deterministic=self._deterministic)

    def epoch_is_over(self) -> bool:
        """Whether the last step was the last of its epoch."""
        return self.streams[0].at_end

    def local_state(self) -> dict[str, Any]:
        """What a checkpoint holds that may differ between processes."""
        return {}

    # -- progress -------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.epoch >= self.epochs or (self._stop_requested and self.step_in_epoch == 0)

    @property
    def work_done(self) -> float:
        """How much of ``work_total`` is done."""
        return self.step

    @property
    def work_total(self) -> float | None:
        """The work of the whole run, in steps unless steps differ in cost; None if unknown."""
        return None if self.steps_per_epoch is None else self.epochs * self.steps_per_epoch

    @property
    def log_every(self) -> int:
        """Steps between two rows of kind ``step``."""
        steps = self.epochs * (self.steps_per_epoch or 0)
        return self._log_every or max(LOG_EVERY, math.ceil(steps / MAX_ROWS))

    def request_stop(self) -> None:
        """Ends the run after this epoch, as finished. For callbacks; in ``on_row`` too late to say so in the row."""
        self._stop_requested = True

    # -- the loop -------------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Steps until the run is finished, or until ``stop()`` is true after a step (asked on every process)."""
        if self.finished:
            return
        self._stop = stop
        with ExitStack() as stack, suppress(Stopped):
            stack.enter_context(self.meter)
            stack.enter_context(self.arithmetic())
            if self.device.type == "cuda":
                # numbers that C++ makes without saying on which GPU belong on this one
                stack.enter_context(torch.cuda.device(self.device))
            if self.run_dir.writes:
                self._log = opened(self.run_dir.metrics_path, self._log_bytes, self._loggers, stack)
            self._compare_processes("at the start")
            if self.step == 0:
                self.save_checkpoint()
            for callback in self.callbacks:
                stack.callback(callback.on_end, self)
                callback.on_start(self)
            while not self.finished:
                # (a run that was stopped in the selection resumes after the last step of the epoch)
                if not (self.step_in_epoch and self.epoch_is_over()):
                    self._step()
                if self.epoch_is_over():
                    # before the results of the epoch are written
                    self.require_finite()
                    self._end_epoch()
                    self._compare_processes(f"after epoch {self.epoch}")
                    self.save_checkpoint()
                elif self._checkpoint_every and self.step % self._checkpoint_every == 0:
                    self.save_checkpoint()
                if not self.finished and self.processes.any(stop()):
                    self.save_checkpoint()
                    break

    def go_on(self) -> None:
        """Leaves the run if it is asked to stop; for long work at the end of an epoch, before which it was saved."""
        if self.processes.any(self._stop()):
            raise Stopped

    def _step(self) -> None:
        for callback in self.callbacks:
            callback.on_step_start(self)
        lr = self.learning_rate()
        try:
            values = self.take_step()
            for callback in self.callbacks:
                callback.on_step_end(self, values)
        except DivergenceError as error:
            values = {}
            handled = [callback.on_divergence(self, error) for callback in self.callbacks]
            if not any(handled):
                raise self.diverged(str(error), self.step + 1) from None
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            said = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(": .")
            where = f", or resume from {self.run_dir.checkpoint_path} with more memory" if self._log else ""
            raise OutOfMemoryError(
                f"out of memory at step {self.step + 1} (epoch {self.epoch + 1}): {said}; try {self.smaller}{where}"
            ) from None
        self.step, self.step_in_epoch = self.step + 1, self.step_in_epoch + 1
        for name in self._sums:
            if name in values:
                value = values[name].detach()
                self._sums[name] = self._sums[name] + torch.stack([value, torch.ones_like(value)])
        notes, self.notes = self.notes, {}
        # reading a value waits for the device, so only rows that are kept are read
        if notes or self.step % self.log_every == 0 or self.epoch_is_over():
            row: dict[str, Any] = {"kind": "step", "epoch": self.epoch, "step": self.step}
            row |= {} if lr is None else {"lr": lr}
            row |= notes | dict(zip(values, tree.numbers(list(values.values())), strict=True))
            self._write(row | {"seconds": self.meter.seconds})

    def _end_epoch(self) -> None:
        row: dict[str, Any] = {"kind": "epoch", "epoch": self.epoch, "step": self.step}
        row |= {self.mean_prefix + name: self._mean(name) for name in self.summed}
        row |= self.end_epoch()
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)
        if self._stop_requested:
            row |= {"ended_early": True} | self.end_early()
            for callback in self.callbacks:
                callback.on_early_end(self, row)
        row |= self.meter.read()
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self._zero_sums()
        self.history.append(row)
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self.diverged(f"{name} is {value}", self.step)
        if self._log is not None:
            self._log.write(row)
            for logger in self._loggers:
                logger.write(row)
        for callback in self.callbacks:
            callback.on_row(self, row)

    def diverged(self, what: str, step: int) -> DivergenceError:
        """The error for ``what`` (a value that is NaN or infinite) at ``step``."""
        why = next((f"{found}; correct the data" for stream in self.streams if (found := stream.faults.describe())), "")
        if not why:
            why = f"the {self.noun} diverged; try {self.lower}"
            # nothing has moved yet
            why += ", and check the loss at the initial weights" if step == 1 else ""
        before = f"; {self.run_dir.checkpoint_path} is from before that" if self._log else ""
        return DivergenceError(f"{what} at step {step} (epoch {self.epoch + 1}): {why}{before}")

    def require_finite(self) -> None:
        """Raises DivergenceError if ``finite_norms`` are not; steps between two logged rows are not read."""
        norms = self.finite_norms()
        for name, value in zip(norms, tree.numbers(list(norms.values())), strict=True):
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}", self.step)

    def _zero_sums(self) -> None:
        # per value its sum and the number of steps that had it
        self._sums = dict.fromkeys(self.summed, torch.zeros(2, device=self.device))

    def _mean(self, name: str) -> float | None:
        total, count = self._sums[name].tolist()
        return total / count if count else None

    def _compare_processes(self, when: str) -> None:
        # each process computes the same numbers; a machine that rounds differently is found here
        if self.processes.size > 1:
            self.processes.require_same({"kind of device": self.device.type} | self.own_state(), when)

    # -- checkpoints ----------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Writes a checkpoint from which the run resumes exactly; refuses a state that has diverged."""
        self.require_finite()
        for stream in self.streams:
            stream.faults.forgive()
        if self._log is not None:
            for logger in self._loggers:
                logger.flush()
            self._log_bytes = self._log.flush()
            self.run_dir.write_checkpoint(self.state_dict())
        for callback in self.callbacks:
            callback.on_checkpoint(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "stopped": self._stop_requested,
            "measured": self.meter.read(),
            "log_bytes": self._log_bytes,
            "sums": self._sums,
            "history": self.history,
            "callbacks": states_of(self.callbacks),
            "local": self.local_state(),
            "own": self.own_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``.

        Raises:
            CheckpointError: If it does not match this run.
        """
        try:
            self.epoch, self.step_in_epoch, self.step = state["epoch"], state["step_in_epoch"], state["step"]
            self._stop_requested, self._log_bytes = state["stopped"], state["log_bytes"]
            self.meter.resume_from(state["measured"])
            self._sums = tree.to({name: state["sums"][name] for name in self._sums}, self.device)
            self.history = list(state["history"])
            load_states(self.callbacks, state["callbacks"])
            self.load_own_state(state["own"] | {"local": state["local"]})
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            why = f"missing {error}" if isinstance(error, KeyError) else one_line(error)
            raise CheckpointError(
                f"checkpoint {self.run_dir.checkpoint_path} does not match this {self.noun} ({why}); use the"
                " settings it was saved with, or a new run directory"
            ) from None
