"""How the final architecture is chosen once the supernet is trained."""

from sgenas.searching.selection.base import SELECTIONS, AlphaSelection, Selection
from sgenas.searching.selection.perturbation import PerturbationSelection
from sgenas.searching.selection.sampled import EvolutionSelection, RandomSelection
from sgenas.searching.selection.training import TrainingSelection

__all__ = [
    "SELECTIONS",
    "AlphaSelection",
    "EvolutionSelection",
    "PerturbationSelection",
    "RandomSelection",
    "Selection",
    "TrainingSelection",
]
