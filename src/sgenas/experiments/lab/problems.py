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
from sgenas.errors import DivergenceError
from sgenas.files import replacing
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
    problem: LabProblem, walk: Walk, wanted: Sequence[int], folder: Path, advance: Callable[[float], None]
) -> Iterator[tuple[int, Moment]]:
    """(steps, moment) for each of the `wanted` numbers of steps, ascending.

    Each is kept in `folder` and read from there the next time: two calls measure in the very same weights,
    even if they compute with another number of threads. On the way to a moment it makes no difference which
    others were wanted. `advance` is told the passes of every step. Raises DivergenceError when a loss stops
    being finite.
    """
    search = _Search(problem, walk)
    for target in sorted(wanted):
        file = folder / "moments" / f"{target}.pt"
        done = search.steps
        if file.exists():
            search.load(file)
            advance(walk_passes(problem) * (target - done))
        else:
            search.run(target, advance)
            file.parent.mkdir(parents=True, exist_ok=True)
            search.save(file)
        yield target, Moment(search.state, trees.clone(search.alphas))


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

    def run(self, target: int, advance: Callable[[float], None]) -> None:
        walk, problem = self._walk, self._problem
        for step in range(self.steps, target):
            inner = next(problem.inner_stream(generator(walk.seed, f"walk inner {step}"), walk.batch_size))
            outer = next(problem.outer_stream(generator(walk.seed, f"walk outer {step}"), walk.batch_size))
            result = problem.trainer(self._bilevel, self.state, self.alphas, [inner], outer)
            if not torch.isfinite(result.outer_loss):
                raise DivergenceError(
                    f"outer loss must stay finite, got {float(result.outer_loss)} at training step {step}"
                    " before the moment: try a lower --walk-lr or --alpha-lr"
                )
            self.state = result.state
            for name, alpha in self.alphas.items():
                alpha.grad = result.grad[name]
            self._adam.step()
            advance(walk_passes(problem))
        self.steps = target

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
        kept = torch.load(file, weights_only=True, map_location=_device(self.alphas))
        self.steps = kept["steps"]
        self.state = InnerState(kept["weights"], kept["buffers"], self.steps)
        with torch.no_grad():
            for name, alpha in self.alphas.items():
                alpha.copy_(kept["alphas"][name])
        self._adam.load_state_dict(kept["adam"])


def _device(tree: Tree) -> torch.device:
    return next(iter(tree.values())).device
