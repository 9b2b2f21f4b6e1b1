"""Bilevel optimization by hypergradients, for any PyTorch problem.

Example:
    >>> problem = BilevelProblem(inner_loss, outer_loss, SGD(lr=0.1))
    >>> result = SGE()(problem, problem.init(weights), alphas, inner_batches, outer_batch, seed=0)
    >>> result.backward()
"""

from sgenas.bilevel.black_box import BlackBoxProblem
from sgenas.bilevel.estimators import (
    ESTIMATORS,
    SGE,
    ConjugateGradient,
    Context,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    HypergradientResult,
    Implicit,
    Neumann,
    Unrolled,
)
from sgenas.bilevel.problem import BilevelProblem, Cost, Loss
from sgenas.bilevel.sharding import Shards, Share
from sgenas.bilevel.trainings import TrainingError
from sgenas.bilevel.worker_processes import RayExecutor, WorkerProcesses
from sgenas.optim import InnerOptimizer, InnerState

__all__ = [
    "ESTIMATORS",
    "SGE",
    "BilevelProblem",
    "BlackBoxProblem",
    "ConjugateGradient",
    "Context",
    "Cost",
    "Estimator",
    "EvolutionStrategies",
    "FiniteDifference",
    "FirstOrder",
    "HypergradientResult",
    "Implicit",
    "InnerOptimizer",
    "InnerState",
    "Loss",
    "Neumann",
    "RayExecutor",
    "Shards",
    "Share",
    "TrainingError",
    "Unrolled",
    "WorkerProcesses",
]
