"""What a derived network may cost: the `Budget` setting, and the interface of cost models for all spaces."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sgenas import tree
from sgenas.device import moved
from sgenas.errors import InvalidValueError, require, require_choice
from sgenas.fields import option
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.spaces.base import SearchSpace

QUANTITIES = ("params", "macs", "latency")
"""Trainable parameters, multiply-adds of one image, and measured milliseconds."""
ROUNDING = 1e-12
"""Relative tolerance of latencies: sums count as equal if they differ only in the order of their terms."""
Costs = Mapping[tuple[str, ...], Tensor]
"""{names of tables: cost of each combination of their entries}; costs of different groups of tables add up."""


@dataclass(frozen=True)
class Budget:
    """Limits and a penalty on the cost of the derived network, counted as ``sgenas size`` counts it.

    A limit constrains only the derivation: the search is unchanged, and the highest-scoring architecture that
    meets every limit is derived. A penalty adds ``penalty_weight * E[cost]`` to the outer loss, where the
    expected cost is 1 if all operations have equal mixing weights.

    Args:
        max_params: Maximum number of trainable parameters; None for no limit.
        max_macs: Maximum number of multiply-adds per image, in a module per example; None for no limit.
        max_latency: Maximum latency in milliseconds, summed from ``latency_table``; None for no limit.
        latency_table: JSON file written by ``sgenas latency``; needed for latencies only.
        penalty: Quantity of the penalty: params, macs or latency; None for no penalty.
        penalty_weight: Factor of the penalty.
        channels: Channels of the first cell of the network whose cost is meant; None for 36 (nasbench201:
            16, nasbench-macro: 32).
        layers: Number of cells of this network; None for 20 (nasbench201: 5 per stage).

    Raises:
        InvalidValueError: If a value is out of range, or needs another one that is missing.
    """

    max_params: int | None = None
    max_macs: int | None = None
    max_latency: float | None = None
    latency_table: str | None = None
    penalty: str | None = option(None, choices=QUANTITIES)
    penalty_weight: float = 1.0
    channels: int | None = option(None, flag="budget-channels")
    layers: int | None = option(None, flag="budget-layers")

    def __post_init__(self) -> None:
        for name, least in (("max_params", 1), ("max_macs", 1), ("channels", 2), ("layers", 1)):
            value = getattr(self, name)
            require(value is None or value >= least, f"Budget.{name}", f">= {least}", value)
        for name in ("max_latency", "penalty_weight"):
            value = getattr(self, name)
            require(value is None or 0 < value < inf, f"Budget.{name}", "> 0 and finite", value)
        if self.penalty is not None:
            require_choice("Budget.penalty", self.penalty, QUANTITIES)
        timed = self.max_latency is not None or self.penalty == "latency"
        if timed and self.latency_table is None:
            self._refuse("max_latency" if self.penalty != "latency" else "penalty", "a latency_table")
        if self.latency_table is not None and not timed:
            self._refuse("latency_table", "max_latency or penalty='latency'")
        if self.penalty_weight != 1.0 and self.penalty is None:
            self._refuse("penalty_weight", "a penalty")
        for name in ("channels", "layers"):
            if getattr(self, name) is not None and not self.quantities:
                self._refuse(name, "a limit or a penalty")

    def _refuse(self, name: str, needed: str) -> None:
        message = f"Budget.{name} needs {needed}, got {getattr(self, name)!r} without it"
        raise InvalidValueError(message, field=f"Budget.{name}")

    @property
    def limits(self) -> dict[str, float]:
        """{quantity: maximum} of the limits that are set."""
        found = {name: getattr(self, f"max_{name}") for name in QUANTITIES}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities that limits or the penalty need."""
        return tuple(name for name in QUANTITIES if name in self.limits or name == self.penalty)


class CostModel(ABC):
    """Costs of the architectures of a space, and the best architecture within the limits of a budget."""

    def __init__(self, space: "SearchSpace", budget: Budget) -> None:
        self.space, self.budget = space, budget
        tolerance = {"latency": ROUNDING}
        self._allowed = np.array([limit * (1 + tolerance.get(name, 0)) for name, limit in budget.limits.items()])
        self._shares: Costs = {}
        self._placed: dict[tuple[torch.device, torch.dtype], Costs] = {}

    def derive(self, alphas: TensorDict) -> Any:
        """The space's own derivation if it meets all limits, else the best architecture that does."""
        free = self.space.derive(alphas)
        return free if not self.budget.limits or self.is_within(free) else self.best(alphas)

    @abstractmethod
    def of(self, architecture: Any) -> dict[str, float]:
        """{quantity: cost} of the network of ``architecture``; empty if an empty cell has no network."""

    def is_within(self, architecture: Any) -> bool:
        """Whether the network of ``architecture`` meets all limits; True if an empty cell has none."""
        costs = self.of(architecture)
        return all(costs.get(name, 0) <= most for name, most in zip(self.budget.limits, self._allowed, strict=True))

    @abstractmethod
    def best(self, alphas: TensorDict) -> Any:
        """The highest-scoring architecture within the limits; exact."""

    def penalty(self, alphas: TensorDict) -> Tensor | None:
        """``penalty_weight * E[cost]``, a 0-d tensor differentiable in ``alphas``; None without penalty.

        `expected_cost` relative to its value for equal mixing weights: 1 for these, 0 if no operation costs anything.
        """
        if not self._shares:
            return None
        mixing = self.space.mixing(alphas)
        like = next(iter(mixing.values()))
        place = (like.device, like.dtype)
        shares = self._placed.get(place)
        if shares is None:
            shares = {names: moved(share.to(like.dtype), like.device) for names, share in self._shares.items()}
            # (a tensor that is made inside torch.func belongs to it)
            if not tree.transformed():
                self._placed[place] = shares
        return expected_cost(shares, mixing)

    def _penalize(self, costs: Costs) -> None:
        """Makes ``costs``, in float64, those of the penalty."""
        shapes = self.space.shapes.items()
        equal = {name: torch.full(shape, 1 / shape[-1], dtype=torch.float64) for name, shape in shapes}
        scale = self.budget.penalty_weight / (expected_cost(costs, equal).item() or 1.0)
        self._shares = {names: scale * each for names, each in costs.items()}

    def describe(self) -> dict[str, Any]:
        """Plain data for ``config.json``: the network whose cost is meant."""
        return {}

    def _refuse_limits(self, smallest: Sequence[float], together: bool) -> None:
        """Refuses the budget if a limit is below the smallest cost, or the limits cannot be met ``together``."""
        for (name, limit), least, most in zip(self.budget.limits.items(), smallest, self._allowed, strict=True):
            if least > most:
                field = f"Budget.max_{name}"
                which = "the smallest architecture, in the budget's network"
                raise InvalidValueError(f"{field} must be >= {least:.12g} ({which}), got {limit:.12g}", field=field)
        if not together:
            named = " and ".join(f"Budget.max_{name} {limit:.12g}" for name, limit in self.budget.limits.items())
            message = f"no architecture meets {named}; raise one of them"
            raise InvalidValueError(message, field=f"Budget.max_{next(iter(self.budget.limits))}")


def expected_cost(costs: Costs, mixing: TensorDict) -> Tensor:
    """Expected cost of options that are drawn independently, with the mixing weights as probabilities; 0-d.

    Sigmoids count as they are, each operation separately. Of a cell every edge is kept; in PC-DARTS the mixing weights
    include the weight of the edge, so that each node has one edge in the mean. Which edges the derivation keeps is not
    modeled: that rule has no derivative.
    """
    found = []
    for names, left in costs.items():
        for name in names:
            table = mixing[name]
            weights = table.reshape(*table.shape, *[1] * (left.ndim - table.ndim))
            left = (weights * left).flatten(0, table.ndim - 1).sum(0)
        found.append(left)
    return torch.stack(found).sum()
