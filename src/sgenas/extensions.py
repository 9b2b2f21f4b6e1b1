"""Registration of parts from other packages, for names in `sgenas.search`, configurations and the command line."""

from collections.abc import Callable
from typing import Any

from sgenas.bilevel import Estimator
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.data import DATASET_SOURCES
from sgenas.methods import METHODS, Method
from sgenas.optim import INNER_OPTIMIZERS
from sgenas.run.loggers import LOGGERS
from sgenas.spaces import SPACES, CellSettings


def register_estimator(name: str, estimator: type[Estimator]) -> type[Estimator]:
    """Registers a subclass of `Estimator`; its fields become flags of the command line."""
    return ESTIMATORS.register(name, estimator)


def register_method(name: str, method: Method) -> Method:
    """Registers a `Method`."""
    return METHODS.register(name, method)


def register_space(name: str, settings: type[CellSettings]) -> type[CellSettings]:
    """Registers the settings class of a space of cells; its ``build`` makes the space."""
    return SPACES.register(name, settings)


def register_optimizer(name: str, optimizer: type[Any]) -> type[Any]:
    """Registers a dataclass with pure ``init`` and ``step``."""
    return INNER_OPTIMIZERS.register(name, optimizer)


def register_dataset(name: str, source: Any) -> Any:
    """Registers a source of images, see `sgenas.data.DatasetSource`; ``data`` is then NAME or NAME:PLACE."""
    return DATASET_SOURCES.register(name, source)


def register_logger(name: str, logger: Callable[[], Any]) -> Callable[[], Any]:
    """Registers a class or function that makes a `Logger`."""
    return LOGGERS.register(name, logger)
