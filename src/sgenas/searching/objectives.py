"""The bilevel problem of one step of a search, made from its space, its loss and its penalties."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas.bilevel import BilevelProblem, Shards, Share
from sgenas.losses import Loss
from sgenas.optim import InnerOptimizer
from sgenas.searching.alpha_noise import Shift
from sgenas.spaces.base import SearchSpace
from sgenas.tree import Tree

Penalty = Callable[[Tree], Tensor]
"""alphas -> 0-d tensor, added to the outer loss."""


class Seeded(NamedTuple):
    """A batch, the seed of what the network draws on it, and the noise of the architecture: for every pass on it."""

    batch: Any
    seed: int
    noise: Shift | None = None


@dataclass(frozen=True)
class Objectives:
    """Losses of a search.

    Args:
        space: The search space.
        loss: loss(model, batch), the same for the inner and the outer problem.
        precision: ``"float32"``, or ``"bfloat16"`` for the layers that autocast accepts.
        device: Device of the search.
        shards: How batches are cut, see `Shards`.
        share: Which directions this process follows, see `Share`.
        memory: What the problems of earlier steps found out about the loss, see `BilevelProblem`.
    """

    space: SearchSpace
    loss: Loss
    precision: str
    device: torch.device
    shards: Shards | None = None
    share: Share | None = None
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    def problem(self, optimizer: InnerOptimizer, penalties: list[Penalty], noise: Tree | None) -> BilevelProblem:
        """L_train = loss, L_val = loss + penalties(alphas), with the relaxation's ``noise`` of this step."""

        def inner(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
            space, batch = self._unpacked(batch)
            return self.loss(self.model(space.bind(weights, alphas, noise)), batch)

        def outer(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
            return sum((penalty(alphas) for penalty in penalties), inner(weights, alphas, batch))

        def stacked(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
            space, batch = self._unpacked(batch)
            bound = space.bind_members(weights, alphas, noise)
            assert bound is not None, "only for spaces that can"
            members = len(next(iter(weights.values())))
            functions = _member_functions(self.model(bound), members)
            return torch.stack([self.loss(function, batch) for function in functions])

        can_stack = type(self.space).bind_members is not SearchSpace.bind_members
        return BilevelProblem(
            inner,
            outer,
            optimizer,
            stacked if can_stack else None,
            shards=self.shards,
            share=self.share,
            memory=self.memory,
        )

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
        if self.precision == "float32":
            return bound

        def rounded(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16):
                outputs = bound(*args, **kwargs)
            return pytree.tree_map_only(Tensor, lambda out: out.float() if out.is_floating_point() else out, outputs)

        return rounded


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
