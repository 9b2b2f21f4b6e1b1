"""Differentiable neural architecture search with the stochastic gradient estimator (SGE)."""

from typing import TYPE_CHECKING, Any

from sgenas.errors import SgenasError
from sgenas.spaces import Genotype, space

if TYPE_CHECKING:
    from sgenas.engine import SearchConfig, SearchResult, resume_search, run_search

__version__ = "0.1.0"

__all__ = [
    "Genotype",
    "SearchConfig",
    "SearchResult",
    "SgenasError",
    "__version__",
    "resume_search",
    "run_search",
    "space",
]


def __getattr__(name: str) -> Any:
    # whoever only wants sgenas.bilevel or a space does not wait for the engine
    if name in ("SearchConfig", "SearchResult", "resume_search", "run_search"):
        from sgenas import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
