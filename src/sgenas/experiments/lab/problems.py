"""What the laboratory measures on: a bilevel problem, where its weights and alphas start, and its batches.

A `LabProblem` is made by one function for each name, from the settings. `moments` takes it through some steps
of a search first: estimators differ between new and trained weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas import trees
from sgenas.bilevel import SGD, BilevelProblem, Estimator, FiniteDifference, InnerState
from sgenas.bilevel.problem import Loss
from sgenas.engine.parts import generator
from sgenas.errors import DivergenceError, RunFolderError, one_line
from sgenas.experiments.lab.store import read_tree
from sgenas.files import naming, replacing, require_inside
from sgenas.trees import Tree

Stream = Callable[[torch.Generator, int], Iterator[Any]]
"""(generator, batch size) -> endless batches of that many examples."""


@dataclass(frozen=True)
class LabProblem:
    """Two losses, the first weights and alphas, endless inner and outer batches, and how a search goes there.

    trainer: the estimator by which `moments` moves the alphas. stacked_loss: as in BilevelProblem.
    dtype: the only one in which it can be computed, None where any will do. most_examples: the largest batch.
    """

    inner_loss: Loss
    outer_loss: Loss
    weights: Tree
    alphas: Tree
    inner_stream: Stream
    outer_stream: Stream
    trainer: Estimator = FiniteDifference()  # noqa: RUF009 (frozen)
    stacked_loss: Loss | None = None
    dtype: torch.dtype | None = None
    most_examples: int | None = None

    def to(self, device: torch.device) -> "LabProblem":
        """The same with everything on `device`."""

        def moved(stream: Stream) -> Stream:
            return lambda draw, size: (_batch_to(batch, device) for batch in stream(draw, size))

        return replace(
            self,
            weights=trees.map_tree(lambda tensor: tensor.to(device), self.weights),
            alphas=trees.map_tree(lambda tensor: tensor.to(device), self.alphas),
            inner_stream=moved(self.inner_stream),
            outer_stream=moved(self.outer_stream),
        )

    def bilevel(self, optimizer: SGD) -> BilevelProblem:
        """With this optimiser of the inner steps."""
        return BilevelProblem(self.inner_loss, self.outer_loss, optimizer, self.stacked_loss)

    def batches(self, draw: int, size: int, steps: int, seed: int) -> tuple[list[Any], Any]:
        """(N inner batches, outer batch) of draw number `draw`, the same for every estimator and every N:
        fewer steps take the first of them."""
        inner = self.inner_stream(generator(seed, f"inner {draw}"), size)
        outer = self.outer_stream(generator(seed, f"outer {draw}"), size)
        return [next(inner) for _ in range(steps)], next(outer)


@dataclass(frozen=True)
class Moment:
    """Where a search stands after some training: inner state and alphas."""

    state: InnerState
    alphas: Tree

    def to(self, dtype: torch.dtype) -> "Moment":
        """The same in another precision."""
        state = InnerState(_to(self.state.weights, dtype), _to(self.state.buffers, dtype), self.state.step)
        return Moment(state, _to(self.alphas, dtype))


def _to(tree: Tree, dtype: torch.dtype) -> Tree:
    return trees.map_tree(lambda tensor: tensor.to(dtype), tree)


def batch_to(batch: Any, dtype: torch.dtype) -> Any:
    """A batch with its floating-point tensors in `dtype`; labels and indices stay as they are."""
    return _convert(batch, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)


def _batch_to(batch: Any, device: torch.device) -> Any:
    return _convert(batch, lambda leaf: leaf.to(device))


def _convert(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, batch)


@dataclass(frozen=True)
class Walk:
    """How `moments` searches: one inner step, then one step of Adam on the alphas, again and again."""

    optimizer: SGD
    alpha_lr: float
    batch_size: int
    seed: int


def moments(
    problem: LabProblem,
    walk: Walk,
    wanted: Sequence[int],
    folder: Path,
    advance: Callable[[float], None],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Moment]]:
    """(steps, moment) for each of the `wanted` numbers of steps, ascending.

    Each is kept in `folder` and read from there the next time: two calls measure in the very same weights,
    even if they compute with another number of threads. On the way to a moment it makes no difference which
    others were wanted, so the way is taken up from the last one that is kept. `advance` is told the passes of
    every step. `stop` is asked after every step; once it answers True, the step is kept and no further moment
    comes. Raises DivergenceError when a loss stops being finite.
    """
    search = _Search(problem, walk)
    place = folder / "moments"
    for target in sorted(wanted):
        kept = [steps for steps in _kept(place) if search.steps <= steps <= target]
        if kept:
            done = search.steps
            search.load(place / f"{max(kept)}.pt")
            advance(walk_passes(problem) * (search.steps - done))
        search.run(target, advance, stop)
        file = place / f"{search.steps}.pt"
        if not file.exists():
            require_inside(folder, place, str(place))
            with naming(place):
                place.mkdir(parents=True, exist_ok=True)
            search.save(file)
        if search.steps < target:
            return
        yield target, Moment(search.state, trees.clone(search.alphas))


def _kept(place: Path) -> list[int]:
    """Numbers of steps after which there is a file."""
    return [int(file.stem) for file in place.glob("*.pt") if file.stem.isdecimal()]


def walk_passes(problem: LabProblem) -> float:
    """Passes of one step of `moments`."""
    cost = problem.trainer.cost(1)
    return (cost.forward + cost.backward) / 2


class _Search:
    """The search of `moments`; its batches depend on the number of the step alone."""

    def __init__(self, problem: LabProblem, walk: Walk) -> None:
        self._problem, self._walk = problem, walk
        self._bilevel = problem.bilevel(walk.optimizer)
        self.steps = 0
        self.state = walk.optimizer.init(problem.weights)
        self.alphas = trees.clone(problem.alphas)
        self._adam = torch.optim.Adam(list(self.alphas.values()), lr=walk.alpha_lr, betas=(0.5, 0.999))

    def run(self, target: int, advance: Callable[[float], None], stop: Callable[[], bool]) -> None:
        """Goes on to step `target`, or less far if it is stopped."""
        walk, problem = self._walk, self._problem
        while self.steps < target:
            step = self.steps
            inner = next(problem.inner_stream(generator(walk.seed, f"walk inner {step}"), walk.batch_size))
            outer = next(problem.outer_stream(generator(walk.seed, f"walk outer {step}"), walk.batch_size))
            try:
                result = problem.trainer(self._bilevel, self.state, self.alphas, [inner], outer)
            except DivergenceError as error:
                raise DivergenceError(
                    f"{error}, at step {step} on the way to a moment: try a lower --walk-lr or --alpha-lr"
                ) from None
            self.state = result.state
            for name, alpha in self.alphas.items():
                alpha.grad = result.grad[name]
            self._adam.step()
            self.steps += 1
            advance(walk_passes(problem))
            if stop():
                return

    def save(self, file: Path) -> None:
        content = {
            "steps": self.steps,
            "weights": self.state.weights,
            "buffers": self.state.buffers,
            "alphas": self.alphas,
            "adam": self._adam.state_dict(),
        }
        with replacing(file) as stream:
            torch.save(content, stream)

    def load(self, file: Path) -> None:
        kept = _batch_to(read_tree(file), _device(self.alphas))
        try:
            self.steps = kept["steps"]
            self.state = InnerState(kept["weights"], kept["buffers"], self.steps)
            with torch.no_grad():
                for name, alpha in self.alphas.items():
                    alpha.copy_(kept["alphas"][name])
            self._adam.load_state_dict(kept["adam"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RunFolderError(f"{file} does not fit this problem: {one_line(error)}") from None


def _device(tree: Tree) -> torch.device:
    return next(iter(tree.values())).device
