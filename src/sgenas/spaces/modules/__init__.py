"""Choices in your own module: what to put into it, the space that it becomes, and its costs."""

from sgenas.spaces.modules.checks import calibrate_batch_norm
from sgenas.spaces.modules.choices import Choice, InputChoice, WidthChoice
from sgenas.spaces.modules.costs import ModuleCostModel
from sgenas.spaces.modules.space import ModuleSpace

__all__ = [
    "Choice",
    "InputChoice",
    "ModuleCostModel",
    "ModuleSpace",
    "WidthChoice",
    "calibrate_batch_norm",
]
