"""The gradient of a training whose batches are cut into shards, which several processes may share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from sgenas.bilevel import Shards
from sgenas.errors import require
from sgenas.random import seed_of
from sgenas.run.distributed import Processes
from sgenas.training.objectives import Objective


class ShardedGradient:
    """Puts the mean over the shards of the gradients of the loss into the weights.

    It is the gradient of the whole batch if the loss is a mean over examples, except that each shard has its own
    batch statistics and its own draws of dropout and drop path. All shards start from the running statistics of
    before the step, which become the means of theirs. With D shards the numbers are those of D processes, on any
    number of processes that divides D: bit for bit for D = 2, up to rounding of the sums for others.

    Args:
        network: The network.
        model: The network as a function.
        objective: What is minimized and measured.
        shards: How batches are cut.
        processes: Processes that share the shards.
        draws: Generators of dropout and the like; seeded here for each shard.
    """

    def __init__(
        self,
        network: nn.Module,
        model: Callable[..., Any],
        objective: Objective,
        shards: Shards,
        processes: Processes,
        draws: Sequence[torch.Generator],
    ) -> None:
        self._model, self._objective, self._shards, self._processes = model, objective, shards, processes
        self._draws = draws
        self._parameters = dict(network.named_parameters())
        self._buffers = list(network.buffers())
        norms = [module for module in network.modules() if isinstance(module, _NormBase)]
        found = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]
        self._statistics = list({id(each): each for each in found}.values())
        self._unused: list[str] | None = None

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """The values to log, means over the shards."""
        seed = int(torch.randint(2**62, (), generator=self._draws[0]))
        before = [buffer.clone() for buffer in self._buffers]
        whole = self._objective.weights(batch)
        number = self._shards.index * (self._shards.count // self._shards.parts)
        logged: list[str] = []

        def compute(shard: Any) -> list[Tensor]:
            nonlocal number
            self._seed(seed_of(seed, f"shard {number}"))
            number += 1
            for buffer, value in zip(self._buffers, before, strict=True):
                buffer.copy_(value)
            for parameter in self._parameters.values():
                parameter.grad = None
            values = self._objective.train(self._model, shard)
            for name, part in self._objective.weights(shard).items():
                # the weighted mean over the batch, as the mean over the shards; one without labels has NaN
                value = values[name] * (part / (whole[name] / self._shards.count)).to(values[name].dtype)
                values[name] = torch.where(part > 0, value, torch.zeros_like(value))
            torch.autograd.backward(values["loss"])
            logged[:] = values
            self._check(batch)
            return [
                *(each.grad for each in self._parameters.values() if each.grad is not None),
                *(statistic.clone() for statistic in self._statistics),
                *(value.detach() for value in values.values()),
            ]

        found = self._shards.mean(compute, batch)
        used = [each for each in self._parameters.values() if each.grad is not None]
        for parameter, gradient in zip(used, found, strict=False):
            parameter.grad = gradient
        rest = found[len(used) :]
        for statistic, mean in zip(self._statistics, rest, strict=False):
            statistic.copy_(mean)
        # equal on all processes, whichever shards they had
        self._seed(seed)
        return dict(zip(logged, rest[len(self._statistics) :], strict=True))

    def _seed(self, seed: int) -> None:
        for draws in self._draws:
            draws.manual_seed(seed)

    def _check(self, batch: Any) -> None:
        """Refuses processes with other batches, and gradients that only some shards have."""
        unused = [name for name, each in self._parameters.items() if each.grad is None]
        if self._unused is None:
            self._unused = unused
            leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
            self._processes.require_same({"first batch": leaves, "weights without a gradient": unused}, "in a step")
        limit = "1 for a network whose weights do not get a gradient in every step"
        require(unused == self._unused, "shards", limit, self._shards.count)
