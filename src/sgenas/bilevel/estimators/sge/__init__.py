"""The stochastic gradient estimator and its parts."""

from sgenas.bilevel.estimators.sge.estimator import SGE

__all__ = ["SGE"]
