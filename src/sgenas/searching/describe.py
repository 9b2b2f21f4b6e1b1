"""What config.json says about a search that was started from Python."""

import json
import re
from typing import Any

from sgenas.bilevel import Estimator
from sgenas.errors import InvalidValueError
from sgenas.methods import METHODS, Method
from sgenas.optim import InnerOptimizer
from sgenas.run.config import to_plain
from sgenas.searching.loop import Search


def describe(run: Search, estimator: Estimator, optimizer: InnerOptimizer, method: Method) -> dict[str, Any]:
    """Plain data by which a resumed search is recognized; data and loss cannot be written down."""
    found = {
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
        "epochs": run.epochs,
        "inner_steps": run.inner_steps,
        "seed": run.seed,
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _plain(component: Any) -> Any:
    try:
        plain = to_plain(component)
        json.dumps(plain)
    except (InvalidValueError, TypeError):
        return _text(component)
    return plain


def _text(component: Any) -> str:
    # functions are named, not numbered: another process has them elsewhere
    return re.sub(r" at 0x[0-9a-f]+", "", repr(component))
