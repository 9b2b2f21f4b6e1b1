"""What loops do with their state: check it, copy it, restore it."""

import torch

from sgenas import tree
from sgenas.tree import Tree


def matching(expected: Tree, found: Tree, device: torch.device, name: str) -> Tree:
    """``found`` on ``device``; ValueError unless it has the names and shapes of ``expected``."""
    if not tree.same_structure(found, expected):
        raise ValueError(f"{name} of other names or shapes")
    return tree.to(found, device)


def matching_slots(
    expected: dict[str, Tree], found: dict[str, Tree], device: torch.device, step: int
) -> dict[str, Tree]:
    """An optimizer's slots in its step ``step``, as `matching`; those that it makes in its first step may be new."""
    if step and not expected.keys() <= found.keys():
        raise ValueError("slots of other names")
    return {name: matching(expected.get(name, slot), slot, device, name) for name, slot in found.items()}
