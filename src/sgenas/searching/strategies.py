"""Strategies: what trains in a search and what chooses its architecture, under one name.

``gradient`` trains weights and alphas in turn, and the alphas choose. ``random`` and ``evolution`` train the weights
alone, each step on one random architecture (Guo et al., arXiv:1904.00420), and then measure architectures with them.
"""

from typing import Any

from sgenas.bilevel import FirstOrder
from sgenas.errors import InvalidValueError, require, require_choice
from sgenas.methods import Method
from sgenas.searching.selection import SELECTIONS, AlphaSelection, Selection
from sgenas.spaces.relaxations import Softmax

SELECTION_OF = {"gradient": "alphas", "random": "random", "evolution": "evolution"}
"""Strategy -> its selection."""
STRATEGIES = tuple(SELECTION_OF)
UNUSED: dict[str, tuple[Any, ...]] = {
    "estimator": (FirstOrder(),),
    "relaxation": (None,),
    "regularizer": (None,),
    "arch_optimizer": (None,),
    "trajectory_optimizer": (None,),
    "trajectory_lr": (None,),
    "alpha_noise": (0.0,),
    "warmup_epochs": (None, 0),
    "inner_steps": (1,),
    "alpha_every": (1,),
    "eigenvalue_every": (0,),
    "budget.penalty": (None,),
}
"""Settings of the alphas -> the values that a strategy without them accepts."""


def selection_of(
    strategy: str, selection: str | Selection | None, method: Method, settings: dict[str, Any], *, early_stop: bool
) -> Selection:
    """The selection of a strategy.

    Args:
        strategy: One of `STRATEGIES`.
        selection: A selection or its name; None for the strategy's.
        method: Method of the search.
        settings: {name: value} of those settings of `UNUSED` that the search has, and of changed ones below them.
        early_stop: Whether the search may go back to the alphas of an earlier epoch.

    Raises:
        InvalidValueError: If the strategy is unknown, or contradicts the selection, the method or a setting.
    """
    require_choice("strategy", strategy, STRATEGIES)
    usual = SELECTIONS.get(SELECTION_OF[strategy])
    chosen = SELECTIONS.get(selection)() if isinstance(selection, str) else selection or usual()
    alone = isinstance(chosen, AlphaSelection)
    require(alone or not early_stop, "early_stop", "left out unless selection is alphas, which it goes back to", True)
    if strategy == "gradient":
        return chosen
    if type(chosen) is not usual:
        _refuse(strategy, "selection", f"be {SELECTION_OF[strategy]}", SELECTIONS.name_of(type(chosen)))
    if method.relaxation != Softmax() or method.regularizer is not None:
        _refuse(strategy, "method", "be darts or another one with softmax alone", method.source)
    for name, value in settings.items():
        if not any(value == accepted for accepted in UNUSED.get(name, ())):
            _refuse(strategy, name, "keep its default", value)
    return chosen


def _refuse(strategy: str, field: str, limit: str, value: object) -> None:
    message = f"{field} must {limit} with strategy {strategy}, which trains no alphas, got {value!r}"
    raise InvalidValueError(message, field=field)
