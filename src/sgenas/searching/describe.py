"""What config.json says about a search that was started from Python."""

import dataclasses
import json
import re
from typing import Any

from sgenas.bilevel import Estimator
from sgenas.errors import InvalidValueError
from sgenas.fingerprint import describe_data, describe_function, describe_model
from sgenas.losses import Loss
from sgenas.methods import METHODS, Method
from sgenas.optim import InnerOptimizer
from sgenas.run.config import to_plain
from sgenas.searching.arch import ArchOptimizer
from sgenas.searching.loop import Search
from sgenas.spaces.costs import Budget
from sgenas.spaces.modules import ModuleSpace


def describe(
    run: Search,
    estimator: Estimator,
    optimizer: InnerOptimizer,
    method: Method,
    *,
    data: dict[str, Any],
    loss: Loss,
    arch_optimizer: ArchOptimizer,
    budget: Budget | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Plain data by which a resumed search is recognized.

    Data, loss and the tensors of a module cannot be written down, and have fingerprints.
    """
    found: dict[str, Any] = {
        "source": "python",
        "space": {
            "name": run.space.name,
            "options": {name: [str(option) for option in options] for name, options in run.space.columns.items()},
        },
        "method": METHODS.name_of(method) or _text(method),
        "relaxation": _plain(run.space.relaxation),
        "discretization": _plain(run.space.discretization),
        "estimator": _plain(estimator),
        "weight_optimizer": _plain(optimizer),
        "schedule": _plain(run._schedule),
        "arch_optimizer": _plain(arch_optimizer),
        "trajectory_optimizer": _plain(run._trajectory_optimizer),
        "regularizer": _plain(run._regularizer),
        "alpha_noise": _plain(run.alpha_noise),
        "flatness": run.flatness.rho,
        "budget": _plain(budget),
        "selection": _plain(run.selection),
        "warmup_epochs": run._warmup_epochs,
        "alpha_every": run._alpha_every,
        "epochs": run.epochs,
        "inner_steps": run.inner_steps,
        "seed": run.seed,
        **settings,
        **{name: describe_data(source) for name, source in data.items()},
        "loss": describe_function(loss),
    }
    if isinstance(run.space, ModuleSpace):
        found["model"] = describe_model(next(run.space.modules()))
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _plain(component: Any) -> Any:
    try:
        plain = to_plain(component)
        json.dumps(plain)
    except (InvalidValueError, TypeError):
        is_function = callable(component) and not dataclasses.is_dataclass(component)
        return describe_function(component) if is_function else _text(component)
    return plain


def _text(component: Any) -> str:
    # functions are named, not numbered: another process has them elsewhere
    return re.sub(r" at 0x[0-9a-f]+", "", repr(component))
