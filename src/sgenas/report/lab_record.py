"""What `sgenas lab` has measured, as its lab.json holds it."""

from pathlib import Path
from typing import Any

from sgenas.files import Document

LAB = Document("sgenas-lab", 1)
FILE = "lab.json"
Record = dict[str, Any]


def read_lab(path: str | Path) -> Record:
    """The content of a lab.json, or of the one in a folder. Raises RunFolderError where there is none."""
    path = Path(path)
    return LAB.read(path / FILE if path.is_dir() else path)
