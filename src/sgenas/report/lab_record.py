"""What `sgenas lab` has measured, as its lab.json holds it."""

import json
from pathlib import Path
from typing import Any

from sgenas.errors import RunFolderError

FORMAT = "sgenas-lab"
VERSION = 1
FILE = "lab.json"
Record = dict[str, Any]


def read_lab(path: str | Path) -> Record:
    """The content of a lab.json, or of the one in a folder. Raises RunFolderError where there is none."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RunFolderError(f"{path} must be JSON, got text that is not") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
        raise RunFolderError(f"{path} must be of format {FORMAT!r}, version {VERSION}")
    return found
