"""Differentiable neural architecture search and bilevel optimization in PyTorch."""

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> module that defines it; imported on first use, so that `sgenas --help` does not wait for torch
_EXPORTS = {
    "BilevelProblem": "bilevel",
    "BlackBoxProblem": "bilevel",
    "Budget": "spaces",
    "Callback": "run.callbacks",
    "Choice": "spaces",
    "ConjugateGradient": "bilevel",
    "EvolutionStrategies": "bilevel",
    "FiniteDifference": "bilevel",
    "FirstOrder": "bilevel",
    "Genotype": "spaces",
    "Implicit": "bilevel",
    "InputChoice": "spaces",
    "Method": "methods",
    "ModuleSpace": "spaces",
    "Neumann": "bilevel",
    "SGE": "bilevel",
    "SearchConfig": "searching.config",
    "SearchResult": "searching.api",
    "SgenasError": "errors",
    "TrainConfig": "training.config",
    "Unrolled": "bilevel",
    "WidthChoice": "spaces",
    "register_estimator": "extensions",
    "register_dataset": "extensions",
    "register_logger": "extensions",
    "register_method": "extensions",
    "register_optimizer": "extensions",
    "register_space": "extensions",
    "search": "searching.api",
    "train": "training.api",
}
_MODULES = {
    "bilevel": "bilevel",
    "callbacks": "searching.callbacks",
    "data": "data",
    "losses": "losses",
    "methods": "methods",
    "optim": "optim",
    "report": "report",
    "schedules": "searching.schedules",
    "spaces": "spaces",
    "training": "training",
}

__all__ = sorted([*_EXPORTS, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"sgenas.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"sgenas.{_MODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # importing sgenas.search binds the package under the name of the function
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
