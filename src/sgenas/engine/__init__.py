"""Running searches and trainings: the only place where bilevel optimisation, networks and data meet."""

from sgenas.engine.begin import resume_search, run_search
from sgenas.engine.budget_settings import BudgetSettings
from sgenas.engine.config import (
    AlphaSettings,
    DataSettings,
    EstimatorSettings,
    SearchConfig,
    SpaceSettings,
    WatchSettings,
    WeightSettings,
)
from sgenas.engine.loop import Observer, Run
from sgenas.engine.parallel import Processes, joined
from sgenas.engine.search import Search, SearchResult
from sgenas.engine.train import Training, TrainResult, resume_training, run_training
from sgenas.engine.train_config import (
    RECIPES,
    NetworkSettings,
    OptimizerSettings,
    TrainConfig,
    TrainingImageSettings,
    TrainSettings,
)

__all__ = [
    "RECIPES",
    "AlphaSettings",
    "BudgetSettings",
    "DataSettings",
    "EstimatorSettings",
    "NetworkSettings",
    "Observer",
    "OptimizerSettings",
    "Processes",
    "Run",
    "Search",
    "SearchConfig",
    "SearchResult",
    "SpaceSettings",
    "TrainConfig",
    "TrainResult",
    "TrainSettings",
    "Training",
    "TrainingImageSettings",
    "WatchSettings",
    "WeightSettings",
    "joined",
    "resume_search",
    "resume_training",
    "run_search",
    "run_training",
]
