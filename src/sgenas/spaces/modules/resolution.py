"""A module with its choices replaced by the chosen options."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.utils import _pytree as pytree

from sgenas.spaces.modules.choices import BaseChoice


def resolved(model: nn.Module, indices: Mapping[str, int]) -> nn.Module:
    """``model``, changed in place: every choice, nested ones too, is its option {name of the choice: index}."""
    known: dict[nn.Module, nn.Module] = {}
    found = _resolved(model, indices, known)
    _rebind(found, known)
    return found


def _resolved(module: nn.Module, indices: Mapping[str, int], known: dict[nn.Module, nn.Module]) -> nn.Module:
    """``module`` with its choices, nested ones too, replaced in place; known: modules already resolved."""
    if module not in known:
        if isinstance(module, BaseChoice):
            index = indices[module.name]
            # for whoever holds the choice where it cannot be replaced, as a method or in an object
            module.mixing = one_hot(torch.tensor(index), len(module.options)).to(module.mixing)
            known[module] = _resolved(module.chosen(index), indices, known)
        else:
            known[module] = module
            # not named_children, which omits the second name of a module that has two
            for name, child in list(module._modules.items()):
                if child is not None:
                    setattr(module, name, _resolved(child, indices, known))
    return known[module]


def _rebind(model: nn.Module, known: Mapping[nn.Module, nn.Module]) -> None:
    """Puts the resolved modules where a module holds its choices in a list, dict or tuple of its own, too."""

    def resolved(module: nn.Module) -> nn.Module:
        return known.get(module, module)

    for part in model.modules():
        for name, value in vars(part).items():
            held = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, nn.Module)]
            if name != "_modules" and any(resolved(module) is not module for module in held):
                vars(part)[name] = pytree.tree_map_only(nn.Module, resolved, value)
