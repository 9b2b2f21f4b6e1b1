"""What a search does with a step that is not finite: stop, go past it, or go back."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sgenas import trees
from sgenas.bilevel.inner import InnerState
from sgenas.errors import DivergenceError
from sgenas.trees import Tree

POLICIES = ("stop", "skip", "rollback")
MOST = 10
"""Steps that may be lost between two checkpoints: more of them are no accident."""


@dataclass(frozen=True)
class Moment:
    """What a step changes, as it was at some moment; nothing that happens later changes it."""

    state: InnerState
    alphas: Tree
    optimizer: dict[str, Any]
    memory: Tree | None

    @classmethod
    def now(
        cls, state: InnerState, alphas: Tree, optimizer: torch.optim.Optimizer, memory: Tree | None
    ) -> "Moment":
        """A copy of what is changed in place, and the rest, which is not, as it is."""
        return cls(state, trees.clone(alphas), copy.deepcopy(optimizer.state_dict()), memory)

    def restore(self, alphas: Tree, optimizer: torch.optim.Optimizer) -> None:
        """Brings `alphas` and `optimizer` back, in place."""
        for name, alpha in alphas.items():
            alpha.copy_(self.alphas[name])
            alpha.grad = None
        # a copy again: the optimiser goes on in the tensors that it is given
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))


class Losses:
    """Counts the steps that are lost: `in_epoch` for the log, `recent` since the last checkpoint."""

    def __init__(self) -> None:
        self.in_epoch = self.recent = 0

    def count(self, what: str) -> None:
        """One more; raises DivergenceError when there have been too many."""
        if self.recent == MOST:
            raise DivergenceError(f"{what}, like {MOST} other steps since the last checkpoint,")
        self.in_epoch, self.recent = self.in_epoch + 1, self.recent + 1


def require_finite(found: Mapping[str, Tree]) -> None:
    """`found`: what each tree is called in a message. Raises DivergenceError naming the first tensor that is
    not finite. All are on one device, which is waited for once."""
    named = [(what, name, tensor) for what, tree in found.items() for name, tensor in tree.items()]
    finite = torch.stack([torch.isfinite(tensor).all() for *_, tensor in named]).tolist()
    if not all(finite):
        what, name, tensor = named[finite.index(False)]
        wrong = int((~torch.isfinite(tensor)).sum())
        raise DivergenceError(f"{what} {name!r}: {wrong} of {tensor.numel()} numbers are not finite")
