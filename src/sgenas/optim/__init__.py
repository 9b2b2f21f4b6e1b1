"""Inner optimizers: pure steps with the arithmetic of torch.optim.

Any object with ``init(weights)`` and ``step(state, grad)``, both pure, is an inner optimizer.
"""

from sgenas.optim.adam import Adam, AdamW
from sgenas.optim.base import (
    INNER_OPTIMIZERS,
    InnerOptimizer,
    InnerState,
    can_join,
    is_elementwise,
    joined,
    joined_state,
    l2_coefficient,
    offers,
    projection,
    require_optimizers,
    step_vjp,
    with_lr,
)
from sgenas.optim.sgd import SGD

INNER_OPTIMIZERS.register("sgd", SGD)
INNER_OPTIMIZERS.register("adam", Adam)
INNER_OPTIMIZERS.register("adamw", AdamW)

__all__ = [
    "INNER_OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "InnerOptimizer",
    "InnerState",
    "can_join",
    "is_elementwise",
    "joined",
    "joined_state",
    "l2_coefficient",
    "offers",
    "projection",
    "require_optimizers",
    "step_vjp",
    "with_lr",
]
