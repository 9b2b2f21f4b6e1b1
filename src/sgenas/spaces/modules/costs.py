"""What the choices of a module cost, and the best choices that stay within a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgenas.errors import InvalidValueError, one_line
from sgenas.spaces.base import Option
from sgenas.spaces.costs import Budget, CostModel
from sgenas.spaces.knapsack import Floats, Options, best_choice, cheapest, joined, single
from sgenas.spaces.modules.choices import BaseChoice, Choice
from sgenas.spaces.modules.space import ModuleSpace
from sgenas.spaces.networks import count_macs, count_parameters
from sgenas.tree import TensorDict

MAX_COUNTED = 10_000
"""Largest number of modules that are derived to count them."""


@dataclass(frozen=True)
class _Group:
    """Choices whose costs depend on each other: their names, and costs (K_1, ..., K_n, quantities) of each
    combination of options, relative to the cheapest."""

    names: tuple[str, ...]
    costs: Floats


class ModuleCostModel(CostModel):
    """Costs of a module's choices, counted from the derived modules.

    All options of a choice return tensors of one shape, so the layers after it cost the same for each option,
    and the costs of choices add up. Choices inside an option of another one, and choices that share
    parameters, are counted together, in all combinations. The derived module is what counts: a `WidthChoice`
    saves nothing.

    Args:
        space: The space.
        budget: Limits and penalty on params and macs.
        example: Argument of the model, for which multiply-adds are counted; needed for macs only.

    Raises:
        InvalidValueError: If no choices meet the limits, the budget is of a cell space, the example is
            missing, a layer's multiply-adds cannot be counted, there are too many modules to count, or the costs
            do not add up.
    """

    space: ModuleSpace

    def __init__(self, space: ModuleSpace, budget: Budget, example: Any = None) -> None:
        super().__init__(space, budget)
        for name in ("max_latency", "latency_table", "channels", "layers"):
            if getattr(budget, name) is not None:
                raise InvalidValueError(f"Budget.{name} must be None for a module", field=f"Budget.{name}")
        self._example = example.to(space.device) if isinstance(example, Tensor) else example
        self._quantities = budget.quantities
        if "macs" in self._quantities and example is None:
            raise InvalidValueError("example must be an argument of the model to count macs, got None", field="example")
        self._groups, self._fixed = self._count()
        self._limited = [self._quantities.index(name) for name in budget.limits]
        self._left = self._allowed - self._fixed[self._limited]
        if budget.penalty is not None:
            column = self._quantities.index(budget.penalty)
            self._penalize({group.names: torch.as_tensor(group.costs[..., column]) for group in self._groups})
        self._check()

    def of(self, architecture: Mapping[str, Option]) -> dict[str, float]:
        return dict(zip(self._quantities, map(int, self._sum(architecture)), strict=True))

    def best(self, alphas: TensorDict) -> dict[str, Option]:
        """Of the choices within all limits those with the largest sum of mixing weights; exact."""
        mixing = self.space.mixing_to_derive(alphas)
        found = best_choice([self._options(group, mixing) for group in self._groups], self._left)
        assert found is not None, "checked at the start: some choices meet the limits, for any alphas"
        return {name: self.space.options[name][index] for name, index, _ in found[1]}

    def _count(self) -> tuple[list[_Group], Floats]:
        """The groups, and the cost of the cheapest choices."""
        options = self.space.options
        groups = _linked(self.space)
        count = sum(prod(len(options[name]) for name in names) for names in groups)
        if count > MAX_COUNTED:
            raise InvalidValueError(
                f"choices inside each other must have at most {MAX_COUNTED} combinations, got {count}", field="model"
            )
        first = {name: given[0] for name, given in options.items()}
        base = self._counted(first)
        found, fixed = [], base.copy()
        for names in groups:
            shape = tuple(len(options[name]) for name in names)
            costs = np.zeros((*shape, len(self._quantities)))
            for place in product(*map(range, shape)):
                here = {name: options[name][index] for name, index in zip(names, place, strict=True)}
                costs[place] = self._counted(first | here) - base
            least = costs.reshape(-1, costs.shape[-1]).min(axis=0)
            fixed += least
            found.append(_Group(names, costs - least))
        return found, fixed

    def _counted(self, choices: Mapping[str, Option]) -> Floats:
        model, found = self.space.build(choices), []
        for name in self._quantities:
            if name == "params":
                found.append(count_parameters(model))
                continue
            try:
                found.append(count_macs(model, self._example))
            except (RuntimeError, TypeError) as error:
                raise InvalidValueError(
                    f"example must be an argument of the model, got {one_line(error)}", field="example"
                ) from error
        return np.array(found, dtype=np.float64)

    def _check(self) -> None:
        last = {name: given[-1] for name, given in self.space.options.items()}
        counted, added = self._counted(last), self._sum(last)
        if (counted != added).any():
            raise InvalidValueError(
                f"costs of the choices must add up, got {counted.tolist()} instead of {added.tolist()}", field="model"
            )
        if not self._limited:
            return
        alike = {name: torch.zeros(len(given)) for name, given in self.space.options.items()}
        groups = [self._options(group, alike) for group in self._groups]
        smallest = self._fixed[self._limited] + cheapest(groups)
        self._refuse_limits(smallest.tolist(), best_choice(groups, self._left) is not None)

    def _sum(self, choices: Mapping[str, Option]) -> Floats:
        options, total = self.space.options, self._fixed.copy()
        for group in self._groups:
            total += group.costs[tuple(options[name].index(choices[name]) for name in group.names)]
        return total

    def _options(self, group: _Group, mixing: TensorDict) -> Options:
        """All combinations of the group's options, scored by the sum of their mixing weights."""
        weights = {name: mixing[name].tolist() for name in group.names}
        found = []
        for place in product(*map(range, group.costs.shape[:-1])):
            pick = tuple((name, index, 0) for name, index in zip(group.names, place, strict=True))
            score = sum(weights[name][index] for name, index, _ in pick)
            found.append(single(group.costs[place][self._limited], score, pick))
        return joined(found)


def _linked(space: ModuleSpace) -> list[tuple[str, ...]]:
    """The names of the choices, grouped by nesting and shared parameters."""
    groups: dict[str, set[str]] = {name: {name} for name in space.options}

    def link(one: str, other: str) -> None:
        together = groups[one] | groups[other]
        for name in together:
            groups[name] = together

    owner: dict[int, str] = {}
    for choice in space.modules():
        if isinstance(choice, Choice):
            for inner in choice.modules():
                if isinstance(inner, BaseChoice):
                    link(choice.name, inner.name)
            for parameter in choice.parameters():
                link(choice.name, owner.setdefault(id(parameter), choice.name))
    return list({tuple(name for name in space.options if name in groups[start]): None for start in groups})
