"""Differentiable neural architecture search with the stochastic gradient estimator (SGE)."""

import importlib
from typing import TYPE_CHECKING, Any

from sgenas import bilevel, spaces
from sgenas.errors import SgenasError
from sgenas.spaces import Choice, Genotype, InputChoice, ModuleSpace, WidthChoice, space

if TYPE_CHECKING:
    from sgenas.engine import SearchConfig, SearchResult, resume_search, run_search
    from sgenas.engine.module_search import ModuleSearchResult, search

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "Genotype",
    "InputChoice",
    "ModuleSearchResult",
    "ModuleSpace",
    "SearchConfig",
    "SearchResult",
    "SgenasError",
    "WidthChoice",
    "__version__",
    "bilevel",
    "resume_search",
    "run_search",
    "search",
    "space",
    "spaces",
]


def __getattr__(name: str) -> Any:
    # whoever only wants sgenas.bilevel or a space does not wait for the engine
    if name in ("SearchConfig", "SearchResult", "resume_search", "run_search"):
        return getattr(importlib.import_module("sgenas.engine"), name)
    if name in ("ModuleSearchResult", "search"):
        return getattr(importlib.import_module("sgenas.engine.module_search"), name)
    if name in ("data", "engine", "report"):
        return importlib.import_module(f"sgenas.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
