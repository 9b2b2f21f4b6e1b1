"""Cells that others have published, by name, and finding a genotype by what a user typed.

published.json holds for each name its source (repository, file and line, commit) and the genotype.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sgenas.errors import GenotypeError
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.nasbench201_strings import from_string


@cache
def _table() -> dict[str, Any]:
    return json.loads(resources.files("sgenas.nets").joinpath("published.json").read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """The names that `published` knows."""
    return tuple(_table())


def published(name: str) -> Genotype:
    """The published cells `name`, for example "darts-v2"; GenotypeError for an unknown name."""
    if name not in names():
        raise GenotypeError(f"genotype must be one of {', '.join(names())}, got {name!r}")
    return Genotype.from_dict(_table()[name]["genotype"])


def find_genotype(text: str) -> Genotype:
    """The genotype that `text` stands for.

    A published name, a cell of NAS-Bench-201 in the benchmark's own form (it begins with |), a JSON file, or
    a run folder with its cell. A published name goes before a file of the same name. Raises GenotypeError
    when it is none of these, when the run has no cell yet, and for a malformed string or file.
    """
    if text.startswith("|"):
        return from_string(text)
    if text in names():
        return published(text)
    path = Path(text)
    try:
        # an empty text would be the working directory
        found, is_folder = bool(text) and path.exists(), path.is_dir()
    except OSError as error:
        raise GenotypeError(f"genotype file {path} cannot be read: {error.strerror}") from None
    if found and is_folder:
        if not (path / "genotype.json").exists():
            raise GenotypeError(f"run folder {path} has no genotype.json: no epoch of a search has finished")
        return Genotype.load(path / "genotype.json")
    if not found:
        raise GenotypeError(
            f"genotype must be a published name ({', '.join(names())}), a genotype file or a run folder,"
            f" got {text!r}"
        )
    return Genotype.load(path)
