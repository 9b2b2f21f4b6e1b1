"""What loops do with their state: check it, copy it, restore it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sgenas import tree
from sgenas.errors import DivergenceError
from sgenas.tree import Tree


def matching(expected: Tree, found: Tree, device: torch.device, name: str) -> Tree:
    """``found`` on ``device``; ValueError unless it has the names and shapes of ``expected``."""
    if not tree.same_structure(found, expected):
        raise ValueError(f"{name} of other names or shapes")
    return tree.to(found, device)


def require_finite(trees: dict[str, Tree]) -> None:
    """Raises DivergenceError naming the first tensor with NaN or infinite entries; waits for the device once."""
    named = [
        (f"{what} {path}".rstrip(), tensor)
        for what, values in trees.items()
        for path, tensor in zip(tree.paths(values), tree.tensors(values), strict=True)
    ]
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named]).tolist()
    if not all(finite):
        name, tensor = named[finite.index(False)]
        wrong = int((~torch.isfinite(tensor)).sum())
        raise DivergenceError(f"{name} has {wrong} of {tensor.numel()} entries that are NaN or infinite")


def copied(value: Any) -> Any:
    """Nested plain data with its tensors cloned."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
