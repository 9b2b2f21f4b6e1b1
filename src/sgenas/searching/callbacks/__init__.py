"""Callbacks of a search. Import them as `sgenas.callbacks`; subclass `Callback` for your own."""

from sgenas.run.callbacks import Callback, ProgressBar
from sgenas.searching.callbacks.collapse import EarlyStopping, HessianEigenvalue
from sgenas.searching.callbacks.evaluation import Evaluation, TabulatedAccuracy
from sgenas.searching.callbacks.guards import NaNGuard, RangeGuard
from sgenas.searching.callbacks.ranking import SupernetRanking, rank_supernet

__all__ = [
    "Callback",
    "EarlyStopping",
    "Evaluation",
    "HessianEigenvalue",
    "NaNGuard",
    "ProgressBar",
    "RangeGuard",
    "SupernetRanking",
    "TabulatedAccuracy",
    "rank_supernet",
]
