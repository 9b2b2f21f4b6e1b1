"""What can be searched: spaces of cells and of choices in your own modules, and the parts of a method.

A space is a supernet with its architecture parameters (alphas). A relaxation turns alphas into mixing weights,
a discretization turns mixing weights into an architecture, and a regularizer is a term of the outer loss.
"""

from typing import Any

from sgenas.registry import Registry
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.cell_space import CellSettings, CellSpace
from sgenas.spaces.costs import Budget, CostModel
from sgenas.spaces.darts_space.space import DartsSettings, DartsSpace, darts
from sgenas.spaces.discretization import DISCRETIZATIONS, Argmax, Discretization, ThresholdEdges, TopEdges
from sgenas.spaces.genotype import Cell, Edge, Genotype
from sgenas.spaces.macro_space.space import MacroSettings, MacroSpace, macro
from sgenas.spaces.macro_space.table import TABLES, MacroTable, load_table
from sgenas.spaces.modules import Choice, InputChoice, ModuleSpace, WidthChoice
from sgenas.spaces.nasbench201_space.space import NasBench201Settings, NasBench201Space, nasbench201
from sgenas.spaces.nasbench201_space.table import AccuracyTable
from sgenas.spaces.regularizers import REGULARIZERS, BetaDecay, ConcentrationAnchor, Regularizer, ZeroOne
from sgenas.spaces.relaxations import (
    RELAXATIONS,
    Dirichlet,
    EdgeNormalizedSoftmax,
    GumbelSoftmax,
    Relaxation,
    Sigmoid,
    Softmax,
)

SPACES: Registry[Any] = Registry("space", "sgenas.spaces")
"""Settings class of each space by name; its ``build(input_channels, num_classes)`` makes the space."""
SPACES.register("darts", DartsSettings)
SPACES.register("nasbench201", NasBench201Settings)
SPACES.register("nasbench-macro", MacroSettings)

__all__ = [
    "DISCRETIZATIONS",
    "REGULARIZERS",
    "RELAXATIONS",
    "SPACES",
    "TABLES",
    "AccuracyTable",
    "Argmax",
    "BetaDecay",
    "Budget",
    "Cell",
    "CellSettings",
    "CellSpace",
    "Choice",
    "ConcentrationAnchor",
    "CostModel",
    "DartsSettings",
    "DartsSpace",
    "Dirichlet",
    "Discretization",
    "Edge",
    "EdgeNormalizedSoftmax",
    "Genotype",
    "GumbelSoftmax",
    "InputChoice",
    "MacroSettings",
    "MacroSpace",
    "MacroTable",
    "ModuleSpace",
    "NasBench201Settings",
    "NasBench201Space",
    "Regularizer",
    "Relaxation",
    "SearchSpace",
    "Sigmoid",
    "Softmax",
    "ThresholdEdges",
    "TopEdges",
    "WidthChoice",
    "ZeroOne",
    "darts",
    "load_table",
    "macro",
    "nasbench201",
]
