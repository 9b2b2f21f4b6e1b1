"""Hypergradient estimators, one file each."""

from sgenas.bilevel.estimators.base import ESTIMATORS, Context, Estimator, HypergradientResult
from sgenas.bilevel.estimators.evolution_strategies import EvolutionStrategies
from sgenas.bilevel.estimators.finite_difference import FiniteDifference
from sgenas.bilevel.estimators.first_order import FirstOrder
from sgenas.bilevel.estimators.implicit import ConjugateGradient, Implicit, Neumann
from sgenas.bilevel.estimators.sge import SGE
from sgenas.bilevel.estimators.unrolled import Unrolled

ESTIMATORS.register("first-order", FirstOrder)
ESTIMATORS.register("finite-difference", FiniteDifference)
ESTIMATORS.register("sge", SGE)
ESTIMATORS.register("unrolled", Unrolled)
ESTIMATORS.register("neumann", Neumann)
ESTIMATORS.register("conjugate-gradient", ConjugateGradient)
ESTIMATORS.register("evolution-strategies", EvolutionStrategies)

__all__ = [
    "ESTIMATORS",
    "SGE",
    "ConjugateGradient",
    "Context",
    "Estimator",
    "EvolutionStrategies",
    "FiniteDifference",
    "FirstOrder",
    "HypergradientResult",
    "Implicit",
    "Neumann",
    "Unrolled",
]
