"""What a derived network may cost: the `Budget` setting, and the interface of cost models for all spaces."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sgenas.errors import InvalidValueError, require, require_choice
from sgenas.fields import option
from sgenas.tree import TensorDict

if TYPE_CHECKING:
    from sgenas.spaces.base import SearchSpace

QUANTITIES = ("params", "macs", "latency")
"""Trainable parameters, multiply-adds of one image, and measured milliseconds."""


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

    def derive(self, alphas: TensorDict) -> Any:
        """The space's own derivation if it meets all limits, else the best architecture that does."""
        free = self.space.derive(alphas)
        return free if not self.budget.limits or self.is_within(free) else self.best(alphas)

    @abstractmethod
    def of(self, architecture: Any) -> dict[str, float]:
        """{quantity: cost} of the network of ``architecture``; empty if an empty cell has no network."""

    @abstractmethod
    def penalty(self, alphas: TensorDict) -> Tensor | None:
        """``penalty_weight * E[cost]``, a 0-d tensor differentiable in ``alphas``; None without penalty."""

    @abstractmethod
    def is_within(self, architecture: Any) -> bool:
        """Whether the network of ``architecture`` meets all limits."""

    @abstractmethod
    def best(self, alphas: TensorDict) -> Any:
        """The highest-scoring architecture within the limits; exact."""

    def describe(self) -> dict[str, Any]:
        """Plain data for ``config.json``: the network whose cost is meant."""
        return {}


def refuse_limits(budget: Budget, smallest: Sequence[float], allowed: Sequence[float]) -> None:
    """Raises InvalidValueError for the first limit whose ``allowed`` (with a tolerance) is below the smallest cost."""
    for (name, limit), least, most in zip(budget.limits.items(), smallest, allowed, strict=True):
        if least > most:
            field = f"Budget.max_{name}"
            which = "the smallest architecture, in the budget's network"
            raise InvalidValueError(f"{field} must be >= {least:.12g} ({which}), got {limit:.12g}", field=field)


def refuse_combination(budget: Budget) -> None:
    """Raises InvalidValueError for limits that can be met one by one, but not by one architecture."""
    named = " and ".join(f"Budget.max_{name} {limit:.12g}" for name, limit in budget.limits.items())
    message = f"no architecture meets {named}; raise one of them"
    raise InvalidValueError(message, field=f"Budget.max_{next(iter(budget.limits))}")
