"""Running searches: the only place where bilevel optimisation, search spaces and data meet."""

from sgenas.engine.config import (
    AlphaSettings,
    DataSettings,
    EstimatorSettings,
    SearchConfig,
    SpaceSettings,
    WatchSettings,
    WeightSettings,
)
from sgenas.engine.search import Observer, Search, SearchResult, resume_search, run_search

__all__ = [
    "AlphaSettings",
    "DataSettings",
    "EstimatorSettings",
    "Observer",
    "Search",
    "SearchConfig",
    "SearchResult",
    "SpaceSettings",
    "WatchSettings",
    "WeightSettings",
    "resume_search",
    "run_search",
]
