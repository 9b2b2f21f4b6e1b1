"""The bilevel problem of one step of a search, made from its space, its loss and its penalties."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas.bilevel import BilevelProblem, Estimator, FirstOrder, Shards, Share
from sgenas.bilevel.cuda_graphs import Replays
from sgenas.bilevel.findings import Findings
from sgenas.bilevel.problem import Penalty
from sgenas.device import PRECISIONS, rounded
from sgenas.errors import require, require_choice
from sgenas.losses import Loss
from sgenas.optim import InnerOptimizer
from sgenas.random import Seed
from sgenas.searching.alpha_noise import Shift
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.modules import ModuleSpace
from sgenas.tree import Tree


def require_precision(precision: str, estimator: Estimator) -> None:
    """Raises InvalidValueError for a precision in which the estimator's differences drown."""
    require_choice("precision", precision, PRECISIONS)
    exact = precision == "ieee" or isinstance(estimator, FirstOrder)
    limit = f"ieee with {type(estimator).__name__}, whose differences rounding would drown"
    require(exact, "precision", limit, precision)


class Seeded(NamedTuple):
    """A batch, the seed of what the network draws on it, and the noise of the architecture: for every pass on it."""

    batch: Any
    seed: Seed
    noise: Shift | None = None


@dataclass(frozen=True)
class Objectives:
    """Losses of a search.

    Args:
        space: The search space.
        loss: loss(model, batch), the same for the inner and the outer problem.
        precision: One of `sgenas.device.PRECISIONS`.
        device: Device of the search.
        shards: How batches are cut, see `Shards`.
        share: Which directions this process follows, see `Share`.
        findings: What was found out about the loss, see `BilevelProblem`.
        replays: Records passes as CUDA graphs, see `BilevelProblem`.
    """

    space: SearchSpace
    loss: Loss
    precision: str
    device: torch.device
    shards: Shards | None = None
    share: Share | None = None
    findings: Findings = field(default_factory=Findings, repr=False)
    replays: Replays | None = field(default=None, repr=False)
    _epoch: list[Any] = field(default_factory=list, init=False, repr=False)

    def at_epoch(self, space: SearchSpace, epoch: int, epochs: int) -> "Objectives":
        """The losses in ``space`` with the relaxation of an epoch: one object for the whole epoch.

        Recordings are made anew in each epoch, so that what changes between epochs counts: the relaxation, or a
        property of the loss that a callback sets.
        """
        known = self._epoch
        if not known or known[0] is not space or known[1:3] != [epoch, epochs]:
            if self.replays is not None:
                self.replays.forget()
            there = space.with_parts(relaxation=space.relaxation.at_epoch(epoch, epochs))
            known[:] = [space, epoch, epochs, replace(self, space=there)]
        found: Objectives = known[3]
        return found

    def problem(self, optimizer: InnerOptimizer, penalties: list[Penalty], noise: Tree | None) -> BilevelProblem:
        """L_train = loss, L_val = loss + penalties(alphas), with the relaxation's ``noise`` of this step."""
        loss = partial(self._single, noise=noise)
        can_stack = type(self.space).bind_members is not SearchSpace.bind_members
        # a space that uses seeds in another way may be another function in each pass
        repeats = type(self.space).seeded in (SearchSpace.seeded, ModuleSpace.seeded)
        return BilevelProblem(
            loss,
            loss,
            optimizer,
            partial(self._stacked, noise=noise) if can_stack else None,
            shards=self.shards,
            share=self.share,
            penalties=penalties,
            replays=self.replays if repeats else None,
            known=self.findings,
        )

    def _single(self, weights: Tree, alphas: Tree, batch: Any, *, noise: Tree | None) -> Tensor:
        space, batch = self._unpacked(batch)
        return self.loss(self.model(space.bind(weights, alphas, noise)), batch)

    def _stacked(self, weights: Tree, alphas: Tree, batch: Any, *, noise: Tree | None) -> Tensor:
        space, batch = self._unpacked(batch)
        bound = space.bind_members(weights, alphas, noise)
        assert bound is not None, "only for spaces that can"
        members = len(next(iter(weights.values())))
        functions = _member_functions(self.model(bound), members)
        return torch.stack([self.loss(function, batch) for function in functions])

    def _unpacked(self, batch: Any) -> tuple[SearchSpace, Any]:
        """The space with what belongs to a batch, and the batch itself."""
        if not isinstance(batch, Seeded):
            return self.space, batch
        space = self.space.seeded(batch.seed)
        if batch.noise is not None:
            space = space.with_parts(relaxation=batch.noise.around(space.relaxation))
        return space, batch.batch

    def model(self, bound: Callable[..., Any]) -> Callable[..., Any]:
        """``bound`` in this precision; its outputs are float32."""
        return rounded(bound, self.precision, self.device)


def _member_functions(stacked: Callable[..., Any], members: int) -> list[Callable[..., Any]]:
    """For each of M members a model; all share the stacked passes.

    The k-th call of a member is a slice of the k-th stacked pass, if its arguments are the same. A loss whose
    later calls depend on earlier outputs gives other arguments, and gets a pass of its own.
    """
    passes: list[tuple[Any, Any]] = []

    def member(index: int) -> Callable[..., Any]:
        calls = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            number, calls = calls, calls + 1
            if number == len(passes):
                passes.append(((args, kwargs), stacked(*args, **kwargs)))
            given, outputs = passes[number]
            if not _same(given, (args, kwargs)):
                outputs = stacked(*args, **kwargs)
            return pytree.tree_map_only(Tensor, lambda tensor: tensor[index], outputs)

        return call

    return [member(index) for index in range(members)]


def _same(first: Any, second: Any) -> bool:
    ours, theirs = pytree.tree_leaves(first), pytree.tree_leaves(second)
    if len(ours) != len(theirs):
        return False
    return all(
        a is b
        or (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b))
        or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
        for a, b in zip(ours, theirs, strict=True)
    )
