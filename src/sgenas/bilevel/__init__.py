"""Bilevel optimisation by hypergradients, for any PyTorch problem: nothing here knows of networks or images.

problem = BilevelProblem(inner_loss, outer_loss, SGD(lr=0.1))
result = SGE()(problem, problem.init(weights), alphas, inner_batches, outer_batch, generator=g)
"""

from sgenas.bilevel.evolution import EvolutionStrategies
from sgenas.bilevel.finite_difference import FiniteDifference
from sgenas.bilevel.first_order import FirstOrder
from sgenas.bilevel.implicit import ConjugateGradient, Implicit, Neumann
from sgenas.bilevel.inner import SGD, InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.result import Cost, Estimator, HypergradientResult
from sgenas.bilevel.sge import SGE
from sgenas.bilevel.unrolled import Unrolled

__all__ = [
    "SGD",
    "SGE",
    "BilevelProblem",
    "ConjugateGradient",
    "Cost",
    "Estimator",
    "EvolutionStrategies",
    "FiniteDifference",
    "FirstOrder",
    "HypergradientResult",
    "Implicit",
    "InnerState",
    "Neumann",
    "Unrolled",
]
