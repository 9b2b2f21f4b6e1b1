"""Stochastic algorithms for bilevel problems with a strongly convex inner loss.

Example:
    >>> state = SABA(lr=0.1, outer_lr=0.1).run(problem, weights, alphas, inner, outer, steps=1000)
"""

from sgenas.bilevel.solvers.base import Minibatches, OracleCalls, Solver, SolverState
from sgenas.bilevel.solvers.single_loop import SABA, SOBA

__all__ = ["SABA", "SOBA", "Minibatches", "OracleCalls", "Solver", "SolverState"]
