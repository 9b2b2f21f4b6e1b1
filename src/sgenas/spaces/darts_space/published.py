"""Published cells by name.

published.json holds the source (repository, file, line, commit) and the genotype for each name.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sgenas.errors import GenotypeError, did_you_mean, one_line
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.macro_space.strings import from_string


@cache
def _table() -> dict[str, Any]:
    return json.loads(resources.files("sgenas.spaces.darts_space").joinpath("published.json").read_text("utf-8"))


def names() -> tuple[str, ...]:
    """The names that ``published`` accepts."""
    return tuple(_table())


def published(name: str) -> Genotype:
    """The published cells ``name``, for example ``"darts-v2"``; GenotypeError if the name is unknown."""
    if name not in names():
        close = did_you_mean(name, names())
        raise GenotypeError(f"genotype must be one of {', '.join(names())}, got {name!r}{close}")
    return Genotype.from_text(_table()[name]["genotype"])


def find_genotype(text: str) -> Genotype:
    """The genotype that ``text`` stands for.

    Args:
        text: A published name, a cell of NAS-Bench-201 in the benchmark's form (``|nor_conv_3x3~0|+...``),
            the digits of a network of NAS-Bench-Macro, JSON, the form that the DARTS code prints
            (``Genotype(normal=[...], ...)``), a file with one of these, or the run directory of a search. A
            published name and an existing path take precedence.

    Raises:
        GenotypeError: If it is none of these, the run has no genotype yet, or the text or file is malformed.
    """
    if text in names():
        return published(text)
    if text.lstrip().startswith(("|", "{")) or "Genotype(" in text:
        return Genotype.from_text(text)
    path = Path(text)
    try:
        # an empty text would be the working directory
        exists, is_dir = bool(text) and path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise GenotypeError(f"genotype file {text[:60]!r} cannot be read: {one_line(error)}") from None
    if text.isdigit() and not exists:
        return from_string(text)
    if not exists:
        raise GenotypeError(
            f"genotype must be a published name ({', '.join(names())}), a genotype, a file or a run"
            f" directory, got {text[:60]!r}{did_you_mean(text, names())}"
        )
    if is_dir and not (path / "genotype.json").exists():
        raise GenotypeError(f"run directory {path} has no genotype.json: no epoch of a search has finished")
    return Genotype.load(path / "genotype.json" if is_dir else path)
