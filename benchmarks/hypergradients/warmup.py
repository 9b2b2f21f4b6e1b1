"""Warm-up checkpoints: where a search stands after some steps. Estimators differ at initialization and later."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hypergradients.problems import Problem, to_device, to_dtype
from sgenas import tree
from sgenas.errors import DivergenceError, RunDirError
from sgenas.optim import SGD, Adam, InnerState
from sgenas.random import generator
from sgenas.run.checkpoint import load_checkpoint, save_checkpoint
from sgenas.tree import TensorDict


@dataclass(frozen=True)
class Checkpoint:
    """State of the inner optimization and alphas."""

    state: InnerState
    alphas: TensorDict

    def to(self, dtype: torch.dtype) -> "Checkpoint":
        """The same in another precision."""
        state = InnerState(to_dtype(self.state.weights, dtype), to_dtype(self.state.slots, dtype), self.state.step)
        return Checkpoint(state, to_dtype(self.alphas, dtype))


@dataclass(frozen=True)
class Warmup:
    """One inner step, then one step of Adam on the alphas, again and again.

    Args:
        optimizer: Of the inner steps.
        alpha_lr: Learning rate of Adam.
        batch_size: Batch size, inner and outer.
        seed: Seed of the batches.
    """

    optimizer: SGD
    alpha_lr: float
    batch_size: int
    seed: int


def step_passes(problem: Problem) -> float:
    """Passes per warm-up step."""
    cost = problem.warmup_estimator.cost(1)
    return (cost.forward + cost.backward) / 2


def checkpoints(
    problem: Problem,
    warmup: Warmup,
    wanted: Sequence[int],
    path: Path,
    advance: Callable[[float], None] = lambda passes: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Checkpoint]]:
    """(steps, checkpoint) for each wanted number of steps, ascending.

    Each is kept in ``path`` and read from there the next time, so that two calls measure at the very same weights.
    A checkpoint does not depend on which others were wanted. ``advance`` gets the passes of every step. Once
    ``stop()`` is true the step is kept, and no checkpoint follows.

    Raises:
        DivergenceError: If a loss becomes NaN or infinite.
    """
    bilevel, adam = problem.bilevel(warmup.optimizer), Adam(warmup.alpha_lr, betas=(0.5, 0.999))
    state, outer_state, passes = warmup.optimizer.init(problem.weights), adam.init(problem.alphas), step_passes(problem)
    device, done = tree.tensors(problem.alphas)[0].device, 0
    path.mkdir(parents=True, exist_ok=True)
    for target in sorted(wanted):
        kept = [int(file.stem) for file in path.glob("*.safetensors") if file.stem.isdecimal()]
        newest = max((steps for steps in kept if done <= steps <= target), default=None)
        if newest is not None:
            state, outer_state = _load(path / f"{newest}.safetensors", problem, device)
            advance(passes * (newest - done))
            done = newest
        stopped = False
        while done < target and not stopped:
            inner, outer = (
                next(stream(generator(warmup.seed, f"walk {name} {done}"), warmup.batch_size))
                for name, stream in (("inner", problem.inner_stream), ("outer", problem.outer_stream))
            )
            try:
                result = problem.warmup_estimator(bilevel, state, outer_state.weights, [inner], outer)
            except DivergenceError as error:
                raise DivergenceError(
                    f"{error}, at step {done} of the warm-up: try a lower warmup_lr or alpha_lr"
                ) from None
            state, outer_state, done = result.state, adam.step(outer_state, result.grad), done + 1
            advance(passes)
            stopped = stop()
        file = path / f"{done}.safetensors"
        if not file.exists():
            both = {"inner": state, "outer": outer_state}
            save_checkpoint(file, {name: _plain(each) for name, each in both.items()})
        if done < target:
            return
        yield target, Checkpoint(state, tree.clone(outer_state.weights))


def _plain(state: InnerState) -> dict[str, object]:
    return {"weights": state.weights, "slots": state.slots, "step": state.step}


def _load(file: Path, problem: Problem, device: torch.device) -> tuple[InnerState, InnerState]:
    kept = to_device(load_checkpoint(file), device)
    fits = tree.same_structure(kept["inner"]["weights"], problem.weights)
    if not fits or not tree.same_structure(kept["outer"]["weights"], problem.alphas):
        raise RunDirError(f"{file} does not fit this problem")
    return InnerState(**kept["inner"]), InnerState(**kept["outer"])
