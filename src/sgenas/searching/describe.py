"""What config.json says about a search that was started from Python."""

import dataclasses
import json
from typing import Any

import numpy as np

from sgenas.bilevel import Estimator
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.digests import name_of, without_addresses
from sgenas.fingerprint import describe_data, describe_function, describe_model
from sgenas.methods import METHODS, Method
from sgenas.optim import INNER_OPTIMIZERS, InnerOptimizer
from sgenas.run.config import REGISTRIES, settings_of
from sgenas.searching.arch import ArchOptimizer
from sgenas.searching.loop import Search
from sgenas.searching.selection import SELECTIONS, Selection
from sgenas.spaces import (
    DISCRETIZATIONS,
    REGULARIZERS,
    RELAXATIONS,
    SPACES,
    Discretization,
    Regularizer,
    Relaxation,
    SearchSpace,
)
from sgenas.spaces.cell_space import CellSettings, CellSpace
from sgenas.spaces.costs import Budget
from sgenas.spaces.modules import ModuleSpace

REGISTRIES.update(
    {
        Estimator: ESTIMATORS,
        InnerOptimizer: INNER_OPTIMIZERS,
        CellSettings: SPACES,
        Relaxation: RELAXATIONS,
        Regularizer: REGULARIZERS,
        Discretization: DISCRETIZATIONS,
        Selection: SELECTIONS,
    }
)


def describe(
    run: Search,
    method: Method,
    *,
    data: dict[str, Any],
    arch_optimizer: ArchOptimizer,
    budget: Budget | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Plain data by which a resumed search is recognized.

    Data, loss and the tensors of a module cannot be written down, and have fingerprints.
    """
    found: dict[str, Any] = {
        "source": "python",
        "space": _space(run.space),
        "method": METHODS.name_of(method) or without_addresses(repr(method)),
        "relaxation": _plain(run.space.relaxation),
        "discretization": _plain(run.space.discretization),
        "estimator": _plain(run.estimator),
        "weight_optimizer": _plain(run._weight_optimizer),
        "schedule": _plain(run._schedule),
        "arch_optimizer": _plain(arch_optimizer),
        "trajectory_optimizer": _plain(run._trajectory_optimizer),
        "regularizer": _plain(run._regularizer),
        "alpha_noise": _plain(run.alpha_noise),
        "budget": _plain(budget),
        "selection": _plain(run.selection),
        "warmup_epochs": run._warmup_epochs,
        "alpha_every": run._alpha_every,
        "epochs": run.epochs,
        "inner_steps": run.inner_steps,
        "seed": run.seed,
        **settings,
        **{name: describe_data(source) for name, source in data.items()},
        "loss": describe_function(run.loss),
    }
    if isinstance(run.space, ModuleSpace):
        found["model"] = describe_model(next(run.space.modules()))
    plain: dict[str, Any] = json.loads(json.dumps(found, default=_number))
    return plain


def _space(space: SearchSpace) -> dict[str, Any]:
    """What the supernet depends on besides its weights; the layers of a module have fingerprints."""
    columns = {name: [str(option) for option in options] for name, options in space.columns.items()}
    found: dict[str, Any] = {"name": space.name, "options": columns}
    if isinstance(space, ModuleSpace):
        return found | {"dropout": space.dropout}
    if isinstance(space, CellSpace):
        sizes = {"input_channels": space.input_channels, "num_classes": space.num_classes}
        found |= {"settings": _plain(space.settings), **sizes}
    return found


def _number(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(type(value).__name__)


def _plain(component: Any) -> Any:
    """The settings of a component and its name; if it has none, its type: two may have the same settings."""
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        kind = type(component)
        name = next((found for each in REGISTRIES.values() if (found := each.name_of(kind))), None)
        fields = {field.name: _plain(getattr(component, field.name)) for field in settings_of(kind)}
        return ({"type": name_of(kind)} if name is None else {"name": name}) | fields
    if isinstance(component, list | tuple):
        return [_plain(each) for each in component]
    try:
        json.dumps(component, default=_number)
    except TypeError:
        return describe_function(component) if callable(component) else without_addresses(repr(component))
    return component
