"""Dataclass fields of components: what the command line and configuration files need to know beyond the type."""

import dataclasses
import inspect
import re
from typing import Any


def option(default: Any, *, flag: str | None = None, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with a flag name that differs from the field's, or a fixed set of values.

    Args:
        default: Default value (immutable).
        flag: Name on the command line without dashes in front (``"directions"``); the field's name if None.
        choices: Accepted strings, for help and completion. Validation stays in ``__post_init__``.
    """
    return dataclasses.field(default=default, metadata={"flag": flag, "choices": choices})


def flag_of(field: dataclasses.Field[Any]) -> str:
    """The flag of a dataclass field: ``--num-workers`` for ``num_workers``."""
    return "--" + (field.metadata.get("flag") or field.name).replace("_", "-")


def documentation(component: type) -> dict[str, str]:
    """{field: text} of the ``Args:`` sections of the Google-style docstrings of a component and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(component.__mro__[:-1]):
        text = inspect.cleandoc(cls.__doc__ or "")
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
        name = None
        for line in (section[1] if section else "").splitlines():
            entry = re.match(r" {4}(\w+):\s*(.*)", line)
            if entry:
                name = entry[1]
                found[name] = entry[2].strip()
            elif name and line.strip():
                found[name] += " " + line.strip()
    return found
