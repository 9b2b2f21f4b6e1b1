"""The folder of a laboratory run: lab.json with everything measured so far, written anew after each piece.

A piece is one truth or one estimator, in one condition, on one draw of batches. Whoever goes on in the folder
measures what is missing, so that a long run may be cut anywhere, and an axis or a draw added later.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgenas import limits
from sgenas.archives import read_tensors
from sgenas.engine.run_folder import environment
from sgenas.errors import ConfigError, RunFolderError, one_line
from sgenas.files import naming, replacing
from sgenas.reading import opened
from sgenas.report.lab_record import FILE, LAB, Record, read_lab

VECTORS = "truths.pt"


class LabStore:
    """What is measured in the folder `path`. Opened empty where there is none yet.

    fixed: what the run must have in common with what stands there already. Raises RunFolderError for a folder
    of other files, ConfigError, which names the first difference, for measurements with other settings.
    """

    def __init__(self, path: str | Path, fixed: Mapping[str, Any], device: torch.device) -> None:
        self.path = Path(path)
        # as JSON gives it back: tuples become lists
        settings = json.loads(json.dumps(fixed))
        self._content: Record = {**LAB.head, "settings": settings, "facts": {}}
        self._content |= {"environments": [], "truth_rows": [], "rows": [], "truths": [], "measurements": []}
        self._vectors: dict[str, Tensor] = {}
        if (self.path / FILE).exists():
            found = read_lab(self.path)
            for name, value in settings.items():
                kept = found["settings"].get(name)
                if kept != value:
                    raise ConfigError(
                        f"--{name.replace('_', '-')} must be {kept!r} as in --out {self.path}, got {value!r}:"
                        " choose another folder for other settings"
                    )
            self._content = found
            self._vectors = read_tree(self.path / VECTORS)
        elif self.path.exists() and (not self.path.is_dir() or self._holds_others()):
            raise RunFolderError(f"--out {self.path} must be new, empty, or a folder of `sgenas lab`")
        self._content["environments"].append(environment(device))

    def _holds_others(self) -> bool:
        # a run that was cut on the way to its first moment has left nothing else
        return any(file.name != "moments" for file in self.path.iterdir())

    def find(self, kind: str, key: Mapping[str, Any]) -> Record | None:
        """The record among `kind` (truths, measurements) that has all of `key`; None if there is none."""
        for record in self._content[kind]:
            if all(record.get(name) == value for name, value in key.items()):
                found: Record = record
                return found
        return None

    def records(self, kind: str) -> list[Record]:
        """All records of `kind` (truths, measurements), in the order in which they were measured."""
        found: list[Record] = self._content[kind]
        return found

    def vectors(self, name: str) -> Tensor:
        """What was kept under `name`; RunFolderError where the file has lost it."""
        found = self._vectors.get(name)
        if not isinstance(found, Tensor):
            raise RunFolderError(f"{self.path / VECTORS} must hold the tensor {name}, got none")
        return found

    def add(self, kind: str, record: Record) -> None:
        """Keeps a record, with the number of this call's environment; writes nothing yet."""
        self._content[kind].append(record | {"environment": len(self._content["environments"]) - 1})

    def add_vectors(self, name: str, vectors: Tensor) -> None:
        """Keeps a tensor; writes nothing yet."""
        self._vectors[name] = vectors

    def write(self, facts: Mapping[str, Any], rows: Mapping[str, list[Record]]) -> None:
        """Writes the folder's files, each whole or not at all."""
        self._content |= {"facts": dict(facts), **rows}
        with naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        # the vectors first: a truth in lab.json then always has its own
        with replacing(self.path / VECTORS) as file:
            torch.save(self._vectors, file)
        with replacing(self.path / FILE) as file:
            file.write(_text(self._content).encode())


def read_tree(path: Path) -> dict[str, Any]:
    """What a file of the laboratory holds by name; RunFolderError where it cannot be read."""
    try:
        with opened(path, limits.TENSORS) as file:
            found = read_tensors(file)
    except Exception as error:
        # a damaged file ends in any of a dozen types
        raise RunFolderError(f"{path} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise RunFolderError(f"{path} must hold tensors by name, got {type(found).__name__}")
    return found


def _text(content: Record) -> str:
    """JSON with one record a line: a person can read it, and a difference of two files says something."""
    parts = []
    for name, value in content.items():
        if isinstance(value, list) and value:
            lines = ",\n  ".join(json.dumps(record) for record in value)
            parts.append(f"{json.dumps(name)}: [\n  {lines}\n ]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"
