"""What the choices of a module cost, what they may cost, and which are the best that stay within."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgenas import trees
from sgenas.errors import InvalidValueError
from sgenas.nets.sizes import count_macs, count_parameters
from sgenas.spaces.choices import BaseChoice, Choice, Option
from sgenas.spaces.knapsack import Floats, Options, best_choice, cheapest, joined, single
from sgenas.spaces.modules import ModuleSpace
from sgenas.trees import Tree

QUANTITIES = ("params", "macs")
MOST_COUNTED = 10_000
"""Modules that are derived to count them, at most."""


@dataclass(frozen=True)
class _Group:
    """Choices whose costs cannot be told apart: names, and the costs (K_1, ..., K_n, quantities) of each
    combination of their options, the lowest 0."""

    names: tuple[str, ...]
    costs: Floats


class ModuleCosts:
    """The costs of a module's choices, counted from the modules that they derive to.

    limits: {"params" or "macs": the most allowed}. cost: the quantity that the penalty is of, or None;
    weight: its factor. example: an argument for the module, for which multiply-adds are counted.

    Options give tensors of one shape, so what is behind a choice costs the same whichever is taken, and costs
    of choices add up. Only choices within an option of another, and those that share parameters, are counted
    together, all combinations. What `derive` leaves is what counts: a `WidthChoice` saves nothing.

    Raises InvalidValueError for a limit or weight that is not positive, for limits that no choices meet, for
    multiply-adds without an example, for more than MOST_COUNTED modules to count, and for a module whose
    costs do not add up.
    """

    def __init__(
        self,
        space: ModuleSpace,
        limits: Mapping[str, int],
        cost: str | None = None,
        weight: float = 1.0,
        example: Any = None,
    ) -> None:
        for name, most in limits.items():
            if not most >= 1:
                raise InvalidValueError(f"max_{name} must be >= 1, got {most}")
        if cost is not None and cost not in QUANTITIES:
            raise InvalidValueError(f"cost must be one of {', '.join(QUANTITIES)}, got {cost!r}")
        if not 0 < weight < np.inf:
            raise InvalidValueError(f"cost_weight must be > 0 and finite, got {weight}")
        if cost is None and weight != 1.0:
            raise InvalidValueError(f"cost_weight only applies with cost, got {weight} without it")
        device = next(iter(space.initial_weights().values())).device
        self._example = example.to(device) if isinstance(example, Tensor) else example
        self._space, self._weight = space, weight
        self._quantities = tuple(name for name in QUANTITIES if name in limits or name == cost)
        if ("macs" in self._quantities) != (example is not None):
            wanted = "an argument of the model" if example is None else "None without a limit or cost of macs"
            raise InvalidValueError(f"example must be {wanted}, got {type(example).__name__}")
        self._groups, self._fixed = self._count()
        self._column = None if cost is None else self._quantities.index(cost)
        self._limited = [self._quantities.index(name) for name in limits]
        self._allowed = np.array(list(limits.values()), dtype=np.float64) - self._fixed[self._limited]
        self._check(limits)

    def choices(self, alphas: Tree) -> dict[str, Option]:
        """Of the choices within all limits those with the largest sum of mixing weights; exact.

        The strongest option of each choice where these are within the limits.
        """
        chosen = self._space.strongest(alphas)
        if not self._limited or self._meets(chosen):
            return chosen
        mixing = trees.detach(self._space.mixing(alphas))
        groups = [self._options(group, mixing) for group in self._groups]
        found = best_choice(groups, self._allowed)
        assert found is not None, "checked when made: some choices meet the limits, whatever the alphas"
        return {name: self._space.options[name][index] for name, index, _ in found[1]}

    def of(self, choices: Mapping[str, Option]) -> dict[str, int]:
        """{quantity: what the module costs that these choices derive to}."""
        return {name: int(value) for name, value in zip(self._quantities, self._sum(choices), strict=True)}

    @property
    def penalty(self) -> Callable[[Tree], Tensor] | None:
        """weight * E[cost], a function of the raw alphas; None without `cost`.

        E is the expectation over options that are drawn independently with their mixing weights as
        probabilities (sigmoids: as they are), of what they cost beyond the cheapest choices; divided by its
        value for options that are all as likely.
        """
        if self._column is None:
            return None
        costs = [(group.names, group.costs[..., self._column]) for group in self._groups]
        uniform = sum(float(values.mean()) for _, values in costs)

        def expected(alphas: Tree) -> Tensor:
            mixing = self._space.mixing(alphas)
            total = torch.zeros_like(next(iter(mixing.values())).sum())
            for names, values in costs if uniform else ():
                left = torch.as_tensor(self._weight * values / uniform).to(total)
                for name in names:
                    left = torch.tensordot(mixing[name], left, dims=([0], [0]))
                total = total + left
            return total

        return expected

    # -- counting -----------------------------------------------------------------------------------------

    def _count(self) -> tuple[list[_Group], Floats]:
        """The groups, and what the cheapest choices cost."""
        options = self._space.options
        groups = _linked(self._space)
        count = sum(prod(len(options[name]) for name in names) for names in groups)
        if count > MOST_COUNTED:
            raise InvalidValueError(
                f"choices within each other must have at most {MOST_COUNTED} combinations, got {count}"
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
        model, found = self._space.derive(choices), []
        for name in self._quantities:
            if name == "params":
                found.append(count_parameters(model))
                continue
            try:
                found.append(count_macs(model, self._example))
            except (RuntimeError, TypeError) as error:
                said = str(error).splitlines()[0]
                raise InvalidValueError(f"example must be an argument of the model, got {said}") from error
        return np.array(found, dtype=np.float64)

    def _check(self, limits: Mapping[str, int]) -> None:
        last = {name: given[-1] for name, given in self._space.options.items()}
        if (self._counted(last) != self._sum(last)).any():
            raise InvalidValueError(
                f"costs of the choices must add up, got {self._counted(last).astype(int).tolist()} for"
                f" {self._sum(last).astype(int).tolist()}"
            )
        if not limits:
            return
        alike = {name: torch.zeros(len(given)) for name, given in self._space.options.items()}
        groups = [self._options(group, alike) for group in self._groups]
        least = cheapest(groups)
        for (name, most), lowest, allowed in zip(limits.items(), least, self._allowed, strict=True):
            if lowest > allowed:
                smallest = int(most + lowest - allowed)
                raise InvalidValueError(
                    f"max_{name} must be >= {smallest}, which the smallest choices have, got {most}"
                )
        if best_choice(groups, self._allowed) is None:
            names = " and ".join(f"max_{name} {most}" for name, most in limits.items())
            raise InvalidValueError(f"{names} must be met by the same choices, got none that meet both")

    def _sum(self, choices: Mapping[str, Option]) -> Floats:
        options, total = self._space.options, self._fixed.copy()
        for group in self._groups:
            total += group.costs[tuple(options[name].index(choices[name]) for name in group.names)]
        return total

    def _meets(self, choices: Mapping[str, Option]) -> bool:
        return bool(((self._sum(choices) - self._fixed)[self._limited] <= self._allowed).all())

    def _options(self, group: _Group, mixing: Tree) -> Options:
        """All combinations of the group's options, scored by the sum of their mixing weights."""
        weights = {name: mixing[name].tolist() for name in group.names}
        found = []
        for place in product(*map(range, group.costs.shape[:-1])):
            pick = tuple((name, index, 0) for name, index in zip(group.names, place, strict=True))
            score = sum(weights[name][index] for name, index, _ in pick)
            found.append(single(group.costs[place][self._limited], score, pick))
        return joined(found)


def _linked(space: ModuleSpace) -> list[tuple[str, ...]]:
    """The names of the choices, those together that are within each other or share a parameter."""
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
    found = {tuple(name for name in space.options if name in groups[start]): None for start in groups}
    return list(found)
