"""Griffe extension: renders an ``Example:`` section as code, as griffe does for ``Examples:``."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the sections before docstrings are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
