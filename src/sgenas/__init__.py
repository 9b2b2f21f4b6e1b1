"""sgenas: differentiable architecture search with the stochastic gradient estimator (SGE)."""

__version__ = "0.1.0"
