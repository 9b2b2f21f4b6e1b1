"""sgenas: differentiable neural architecture search with the stochastic gradient estimator (SGE)."""

from sgenas.errors import SgenasError
from sgenas.spaces import space

__version__ = "0.1.0"

__all__ = ["SgenasError", "__version__", "space"]
