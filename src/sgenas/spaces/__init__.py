"""What can be searched: supernets, their alphas, and how to read a cell out of them."""

from typing import Any, Literal, overload

from sgenas.errors import InvalidValueError
from sgenas.spaces.choices import Choice, InputChoice, WidthChoice
from sgenas.spaces.darts import DartsSpace
from sgenas.spaces.fair_darts import FairDartsSpace, FairNasBench201Space
from sgenas.spaces.genotype import Cell, Edge, Genotype
from sgenas.spaces.modules import ModuleSpace
from sgenas.spaces.nasbench201 import NasBench201Space
from sgenas.spaces.nasbench201_table import AccuracyTable
from sgenas.spaces.pc_darts import PCDartsSpace, PCNasBench201Space
from sgenas.spaces.supernet import stacked_cross_entropy

SPACES: dict[str, type[DartsSpace] | type[NasBench201Space]] = {
    "darts": DartsSpace,
    "pc-darts": PCDartsSpace,
    "fair-darts": FairDartsSpace,
    "nasbench201": NasBench201Space,
    "pc-darts-nasbench201": PCNasBench201Space,
    "fair-darts-nasbench201": FairNasBench201Space,
}


@overload
def space(name: Literal["darts"], **settings: Any) -> DartsSpace: ...
@overload
def space(name: Literal["nasbench201"], **settings: Any) -> NasBench201Space: ...
@overload
def space(name: str, **settings: Any) -> Any: ...
def space(name: str, **settings: Any) -> Any:
    """The search space `name` with its settings, for example space("darts", channels=16, layers=8).

    Raises InvalidValueError for an unknown name.
    """
    if name not in SPACES:
        raise InvalidValueError(f"space must be one of {', '.join(SPACES)}, got {name!r}")
    return SPACES[name](**settings)


__all__ = [
    "SPACES",
    "AccuracyTable",
    "Cell",
    "Choice",
    "DartsSpace",
    "Edge",
    "FairDartsSpace",
    "FairNasBench201Space",
    "Genotype",
    "InputChoice",
    "ModuleSpace",
    "NasBench201Space",
    "PCDartsSpace",
    "PCNasBench201Space",
    "WidthChoice",
    "space",
    "stacked_cross_entropy",
]
