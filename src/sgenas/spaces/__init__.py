"""What can be searched: supernets, their alphas, and how to read a cell out of them."""

from typing import Any

from sgenas.errors import InvalidValueError
from sgenas.spaces.darts import DartsSpace
from sgenas.spaces.genotype import Cell, Edge, Genotype

SPACES = {"darts": DartsSpace}


def space(name: str, **settings: Any) -> DartsSpace:
    """The search space `name` with its settings, for example space("darts", channels=16, layers=8).

    Raises InvalidValueError for an unknown name.
    """
    if name not in SPACES:
        raise InvalidValueError(f"space must be one of {', '.join(SPACES)}, got {name!r}")
    return SPACES[name](**settings)


__all__ = ["SPACES", "Cell", "DartsSpace", "Edge", "Genotype", "space"]
