"""What `sgenas lab` has measured, as its lab.json holds it."""

from pathlib import Path
from typing import Any

from sgenas import limits
from sgenas.errors import RunFolderError
from sgenas.files import Document

LAB = Document("sgenas-lab", 1, limits.MEASUREMENTS)
FILE = "lab.json"
Record = dict[str, Any]
PARTS: dict[str, type] = {
    **dict.fromkeys(("settings", "facts"), dict),
    **dict.fromkeys(("environments", "truth_rows", "rows", "truths", "measurements"), list),
}
"""What stands in every lab.json, and its type."""


def read_lab(path: str | Path) -> Record:
    """The content of a lab.json, or of the one in a folder.

    Raises RunFolderError where there is none, or one without the parts that every lab.json has. What stands
    in their records is looked at by whoever works on them.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    found = LAB.read(path)
    for name, kind in PARTS.items():
        if not isinstance(found.get(name), kind):
            got = type(found.get(name)).__name__
            raise RunFolderError(f"{path}: {name} must be of type {kind.__name__}, got {got}")
        if kind is list and not all(isinstance(record, dict) for record in found[name]):
            raise RunFolderError(f"{path}: {name} must hold objects, got something else")
    return found
