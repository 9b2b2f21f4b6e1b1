"""Optimizers of the architecture parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgenas import tree
from sgenas.optim import InnerOptimizer, InnerState
from sgenas.tree import TensorDict

ArchOptimizer = InnerOptimizer | Callable[[list[Tensor]], torch.optim.Optimizer]
"""A pure optimizer of `sgenas.optim`, or a function from the list of alphas to a torch optimizer."""


class PureOptimizer:
    """A pure optimizer with the interface of torch's, on ``alphas`` in place.

    sgenas.optim is the default because the first step of a torch optimizer imports torch._dynamo, which
    takes longer than a small search.
    """

    def __init__(self, optimizer: InnerOptimizer, alphas: TensorDict) -> None:
        self._optimizer, self._alphas = optimizer, alphas
        self._state = optimizer.init(alphas)

    def step(self) -> None:
        """One step along the alphas' ``.grad``."""
        state = InnerState(dict(self._alphas), self._state.slots, self._state.step)
        self._state = self._optimizer.step(state, {name: alpha.grad for name, alpha in self._alphas.items()})
        for name, alpha in self._alphas.items():
            alpha.copy_(self._state.weights[name])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Removes the gradients."""
        for alpha in self._alphas.values():
            alpha.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Slots and number of steps."""
        return {"slots": self._state.slots, "step": self._state.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        slots = tree.to(state["slots"], next(iter(self._alphas.values())).device)
        self._state = InnerState(dict(self._alphas), slots, state["step"])


def make_arch_optimizer(optimizer: ArchOptimizer, alphas: TensorDict) -> Any:
    """An optimizer object for ``alphas``."""
    if hasattr(optimizer, "init") and hasattr(optimizer, "step"):
        return PureOptimizer(optimizer, alphas)
    return optimizer(list(alphas.values()))
