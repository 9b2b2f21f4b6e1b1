"""A bilevel problem: min over alphas of outer_loss(w*(alphas), alphas), w* = argmin over w of inner_loss.

Losses are pure: they take every tensor that they depend on, change nothing, and return a 0-d tensor. A batch
may be anything, since only the losses look into it. Randomness that a loss needs belongs into its batch.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import complex_weights
from sgenas.bilevel.cuda_graphs import Replays
from sgenas.bilevel.findings import Findings
from sgenas.bilevel.gradients import GradientGraph, gradient, scalar
from sgenas.bilevel.recordable import Identity, without_keywords
from sgenas.bilevel.sharding import Shards, Share
from sgenas.errors import InvalidValueError, require
from sgenas.functional import ExactAttention, Functional
from sgenas.optim import InnerOptimizer, InnerState
from sgenas.tree import Tree

Loss = Callable[[Tree, Tree, Any], Tensor]
"""loss(weights, alphas, batch) -> 0-d tensor."""
Penalty = Callable[[Tree], Tensor]
"""alphas -> 0-d tensor."""
ModuleLoss = Callable[[Callable[..., Any], Tree, Any], Tensor]
"""loss(model, alphas, batch) -> 0-d tensor."""


@dataclass(frozen=True)
class Cost:
    """Passes through a loss: evaluations of one loss on one batch.

    Attributes:
        forward: Forward passes. A pass in forward mode, which also propagates a derivative, counts twice.
        backward: Backward passes, counted alike.
        inner_steps: Gradients of the inner loss with respect to the weights, one per inner step.
    """

    forward: float = 0
    backward: float = 0
    inner_steps: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward, self.inner_steps + other.inner_steps)


@dataclass
class Counter:
    """Adds up what a problem has spent; ``total`` is the sum."""

    total: Cost = Cost()

    def add(self, forward: float, backward: float = 0, inner_steps: int = 0) -> None:
        self.total += Cost(forward, backward, inner_steps)


@dataclass(frozen=True)
class Step:
    """One inner step: the state before it, d L_train / d weights there (and its graph), the state after it."""

    before: InnerState
    grad: Tree
    after: InnerState
    graph: GradientGraph | None = None


@dataclass(frozen=True)
class Trajectory:
    """N inner steps.

    Attributes:
        end: The state after the last step.
        losses: L_train before each step, N 0-d tensors.
        steps: The last of the steps, as many as were asked for.
    """

    end: InnerState
    losses: tuple[Tensor, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class BilevelProblem:
    """Eq. 2 of the paper with the optimizer that solves its inner problem.

    Args:
        inner_loss: L_train(weights, alphas, batch), 0-d. Tensors that are no argument may be keywords of a
            `functools.partial`.
        outer_loss: L_val(weights, alphas, batch), 0-d, without the penalties; it may be such a partial too.
        inner_optimizer: Takes the inner steps.
        stacked_inner_loss: L_train of M pairs (weights, alphas) on one batch: every tensor of both trees is
            (M, ...), the result (M,). None: torch.func.vmap of ``inner_loss``, if it is needed.
        shards: How batches are cut. Both losses are then the mean over the shards. None: not at all.
        share: The part of SGE's directions that this process follows. None: all.
        penalties: Added to L_val: functions of the alphas alone.
        replays: Records passes as CUDA graphs and replays them. The losses must depend on nothing but tensors that
            they are given, and on what never changes. None: passes run as usual.
        initial_weights: Weights of ``init()`` without an argument.
        known: What is found out about the inner loss. Pass the same object to problems whose losses are made anew
            from the same model; None for findings of each loss.

    Example:
        >>> problem = BilevelProblem(inner_loss, outer_loss, SGD(lr=0.1))
        >>> result = SGE()(problem, problem.init(weights), alphas, [inner_batch], outer_batch, seed=0)
    """

    inner_loss: Loss
    outer_loss: Loss
    inner_optimizer: InnerOptimizer
    stacked_inner_loss: Loss | None = None
    shards: Shards | None = None
    share: Share | None = None
    penalties: Sequence[Penalty] = ()
    replays: Replays | None = field(default=None, repr=False, compare=False)
    initial_weights: Tree | None = field(default=None, repr=False, compare=False)
    known: Findings | None = field(default=None, repr=False, compare=False)
    counter: Counter = field(default_factory=Counter, repr=False, compare=False)
    found: dict[Identity, Findings] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_modules(
        cls,
        model: torch.nn.Module,
        inner_loss: ModuleLoss,
        outer_loss: ModuleLoss,
        optimizer: InnerOptimizer,
    ) -> Self:
        """A problem whose inner variables are the parameters of a module that require a gradient.

        Args:
            model: The module. Its parameters and buffers are never changed.
            inner_loss: L_train as ``loss(model, alphas, batch)``; ``model`` is called like the module.
            outer_loss: L_val in the same form.
            optimizer: Takes the inner steps.

        A pass that draws (active dropout) raises InvalidValueError, since perturbed passes would draw other masks.

        Example:
            >>> problem = BilevelProblem.from_modules(model, inner_loss, outer_loss, SGD(lr=0.1))
            >>> state = problem.init()
        """
        pure = Functional(model, copy_buffers=True)

        def bound(loss: ModuleLoss) -> Loss:
            def function(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
                return loss(lambda *inputs, **named: pure(weights, inputs, named), alphas, batch)

            return function

        weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        return cls(bound(inner_loss), bound(outer_loss), optimizer, initial_weights=weights)

    def init(self, weights: Tree | None = None) -> InnerState:
        """The first state of the inner optimization, from copies of ``weights`` or ``initial_weights``."""
        weights = self.initial_weights if weights is None else weights
        require(weights is not None, "weights", "passed to init (this problem has no initial ones)", None)
        return self.inner_optimizer.init(weights)

    def counted(self) -> Self:
        """The same problem with a counter of its own at zero."""
        return replace(self, counter=Counter())

    @property
    def findings(self) -> Findings:
        """What estimators found out about ``inner_loss``; they write into it."""
        loss, _ = without_keywords(self.inner_loss)
        return self.known or self.found.setdefault(Identity(loss), Findings())

    def over_shards(self, compute: Callable[[Any], list[Tensor]], batch: Any) -> list[Tensor]:
        """The detached tensors that ``compute`` makes of a batch; with ``shards``, their mean over them.

        Everything that is computed from a batch goes through here, so that estimators ignore shards.
        """
        return compute(batch) if self.shards is None else self.shards.mean(compute, batch)

    def inner_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_train, d L_train / d weights), detached. One pass."""
        loss, w, _ = self._gradients("inner_loss", weights, alphas, batch, "w", inner_steps=1)
        return loss, w

    def inner_gradients(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree, Tree]:
        """(L_train, d L_train / d weights, d L_train / d alphas), detached. One pass."""
        return self._gradients("inner_loss", weights, alphas, batch, "wa")

    def inner_alpha_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_train, d L_train / d alphas), detached. One pass."""
        loss, _, a = self._gradients("inner_loss", weights, alphas, batch, "a")
        return loss, a

    def outer_alpha_gradient(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree]:
        """(L_val, d L_val / d alphas at fixed weights), detached. One pass."""
        loss, _, a = self._gradients("outer_loss", weights, alphas, batch, "a")
        return loss, a

    def outer_gradients(self, weights: Tree, alphas: Tree, batch: Any) -> tuple[Tensor, Tree, Tree]:
        """(L_val, d L_val / d weights, d L_val / d alphas), detached. One pass."""
        return self._gradients("outer_loss", weights, alphas, batch, "wa")

    def outer_objective(self, weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        """L_val with its penalties, differentiable."""
        return sum((penalty(alphas) for penalty in self.penalties), self.outer_loss(weights, alphas, batch))

    def outer_value(self, weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        """L_val, detached. One forward pass."""
        loss, values = without_keywords(self.outer_loss)

        def value(weights: Tree, alphas: Tree, part: Any, values: Any) -> list[Tensor]:
            # (a loss may take gradients itself)
            with torch.enable_grad():
                found = loss(tree.detach(weights), tree.detach(alphas), part, **values)
            return [scalar(found, "outer_loss").detach()]

        key = ("outer_loss", "value", Identity(loss))
        (found,) = self.over_shards(lambda part: self._pass(key, value, weights, alphas, part, values), batch)
        self.counter.add(1)
        with torch.no_grad():
            return sum((penalty(alphas) for penalty in self.penalties), found)

    def _pass(self, key: tuple[Any, ...], function: Callable[..., list[Tensor]], *inputs: Any) -> list[Tensor]:
        with ExactAttention():
            return function(*inputs) if self.replays is None else self.replays(key, function, *inputs)

    def _gradients(
        self, name: str, weights: Tree, alphas: Tree, batch: Any, of: str, inner_steps: int = 0
    ) -> tuple[Tensor, Tree, Tree]:
        """(loss, its gradients), detached; ``of``: "w" for the weights, "a" for the alphas, "wa" for both."""
        function, values = without_keywords(getattr(self, name))

        def differentiated(weights: Tree, alphas: Tree, part: Any, values: Any) -> list[Tensor]:
            w = tree.leaves(weights) if "w" in of else tree.detach(weights)
            a = tree.leaves(alphas) if "a" in of else tree.detach(alphas)
            with torch.enable_grad():
                loss = scalar(function(w, a, part, **values), name)
            if name == "outer_loss" and "w" in of and not loss.requires_grad:
                remedy = "in weights or alphas for this estimator; use EvolutionStrategies"
                raise InvalidValueError(f"outer_loss must be differentiable {remedy}", field="outer_loss")
            leaves = [*(tree.tensors(w) if "w" in of else []), *(tree.tensors(a) if "a" in of else [])]
            return [loss.detach(), *gradient(loss, leaves)]

        key = (name, of, Identity(function))
        loss, *found = self.over_shards(
            lambda part: self._pass(key, differentiated, weights, alphas, part, values), batch
        )
        self.counter.add(1, 1, inner_steps)
        split = len(tree.tensors(weights)) if "w" in of else 0
        if name == "outer_loss" and self.penalties:
            loss, found[split:] = self._penalized(loss, found[split:], alphas)
        w = tree.rebuild(weights, found[:split]) if "w" in of else None
        return loss, w, tree.rebuild(alphas, found[split:]) if "a" in of else None

    def _penalized(self, loss: Tensor, found: list[Tensor], alphas: Tree) -> tuple[Tensor, list[Tensor]]:
        """L_val and its gradient in the alphas, with the penalties."""
        leaves = tree.leaves(alphas)
        with torch.enable_grad():
            added = [scalar(penalty(leaves), "penalty") for penalty in self.penalties]
            own = gradient(sum(added[1:], added[0]), tree.tensors(leaves))
        loss = sum((each.detach() for each in added), loss)
        return loss, list(torch._foreach_add(found, own))

    def stacked_inner_gradient(self, weights: Tree, alphas: Tree, batch: Any, like: Tree | None = None) -> Tree:
        """d L_train / d weights of M pairs (weights, alphas), every tensor (M, ...), detached. M passes.

        With the weights ``like`` of one member, ``weights`` and the result are matrices as of `tree.flatten_rows`.
        """
        members = tree.tensors(weights)[0].shape[0]
        loss, values = without_keywords(self.inner_loss if self.stacked_inner_loss is None else self.stacked_inner_loss)

        def gradients(weights: Tree, alphas: Tree, part: Any, values: Any) -> list[Tensor]:
            apart = weights if like is None else tree.unflatten_rows(weights, like)
            found = self._stacked(partial(loss, **values), apart, alphas, part, members)
            return found if like is None else [tree.flatten_rows(tree.rebuild(apart, found))]

        shapes = None if like is None else (tuple(tree.paths(like)), tuple(value.shape for value in tree.tensors(like)))
        key = ("stacked_inner_loss", Identity(loss), shapes)
        found = self.over_shards(lambda part: self._pass(key, gradients, weights, alphas, part, values), batch)
        self.counter.add(members, members, members)
        return tree.rebuild(weights, found)

    def _stacked(self, loss: Loss, weights: Tree, alphas: Tree, batch: Any, members: int) -> list[Tensor]:
        if self.stacked_inner_loss is None:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                # torch.func.grad, since vmap cannot enter autograd.grad
                every = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0, None), randomness="same")
                return tree.tensors(every(weights, alphas, batch))
        leaves = tree.leaves(weights)
        with torch.enable_grad():
            losses = loss(leaves, tree.detach(alphas), batch)
        require(losses.shape == (members,), "stacked_inner_loss", f"of shape ({members},)", tuple(losses.shape))
        # members share nothing, so the gradient of the sum holds the gradient of each
        return gradient(losses.sum(), tree.tensors(leaves))

    def check(self, state: InnerState, alphas: Tree, batches: Sequence[Any]) -> None:
        """Raises InvalidValueError unless there are batches, floating-point alphas and fitting slots."""
        require(not torch.is_inference_mode_enabled(), "torch.inference_mode", "off for derivatives", "on")
        require(len(batches) >= 1, "inner_batches", "at least 1 batch (N >= 1)", len(batches))
        for name, values in (("alphas", alphas), ("weights", state.weights)):
            leaves = tree.tensors(values)
            require(len(leaves) >= 1, name, "at least one tensor", values)
            kinds = "floating-point or complex tensors" if name == "weights" else "floating-point tensors"
            for index, leaf in enumerate(leaves):
                if not (leaf.is_floating_point() or (leaf.is_complex() and name == "weights")):
                    require(False, name, kinds, f"{tree.paths(values)[index]!r} of {leaf.dtype}")
        if hasattr(self.inner_optimizer, "check"):
            self.inner_optimizer.check(state)

    def run(
        self, state: InnerState, alphas: Tree, batches: Sequence[Any], *, keep: int = 0, graphs: bool = False
    ) -> Trajectory:
        """Takes one inner step per batch.

        Args:
            state: Where to start.
            alphas: The outer variables, held fixed.
            batches: N inner batches.
            keep: Number of steps, the last ones, that the trajectory holds.
            graphs: Whether these steps hold the graphs of their gradients; not with ``shards``.

        Raises:
            InvalidValueError: See ``check``.
        """
        self.check(state, alphas, batches)
        if complex_weights.occur(state):
            return complex_weights.run(self, state, alphas, batches, keep=keep, graphs=graphs)
        losses: list[Tensor] = []
        steps: list[Step] = []
        for index, batch in enumerate(batches):
            kept, graph = index >= len(batches) - keep, None
            if kept and graphs:
                graph = GradientGraph(self.inner_loss, state.weights, alphas, batch)
                loss, grad = graph.loss, graph.grad
                self.counter.add(1, 1, 1)
            else:
                loss, grad = self.inner_gradient(state.weights, alphas, batch)
            with torch.no_grad():
                after = self.inner_optimizer.step(state, grad)
            if kept:
                steps.append(Step(state, grad, after, graph))
            losses.append(loss)
            state = after
            del grad
        return Trajectory(state, tuple(losses), tuple(steps))
