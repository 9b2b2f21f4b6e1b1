"""Trains a network, tests it, and exports it: `sgenas.train` for any module, `TrainConfig` for cells on images."""

from sgenas.training.api import TrainResult, train
from sgenas.training.config import RECIPES, Recipe, TrainConfig
from sgenas.training.evaluate import TestedRun, evaluate_run
from sgenas.training.export import EXPORT_FORMATS, export_network, export_run, trained_network
from sgenas.training.loop import Training
from sgenas.training.schedules import WarmupCosine

__all__ = [
    "EXPORT_FORMATS",
    "RECIPES",
    "Recipe",
    "TestedRun",
    "TrainConfig",
    "TrainResult",
    "Training",
    "WarmupCosine",
    "evaluate_run",
    "export_network",
    "export_run",
    "train",
    "trained_network",
]
