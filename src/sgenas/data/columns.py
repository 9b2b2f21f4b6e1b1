"""Which column of a table holds the images, and which their labels."""

from collections.abc import Sequence

from sgenas.errors import DataError

NAMES = {"image": ("img", "image"), "label": ("label", "labels", "fine_label", "class")}
"""By role, the names that are taken without a further look at the others."""


def find_column(table: str, role: str, fitting: Sequence[str], every: Sequence[str]) -> str:
    """The column for `role`: the first of its known names among those of a `fitting` type, else the only one.

    table: stands for it in the message; every: all columns of it. Raises DataError where none is certain.
    """
    known = NAMES[role]
    for name in known:
        if name in fitting:
            return name
    if len(fitting) != 1:
        raise DataError(
            f"{table} must have one {role} column (named {', '.join(known)}, or the only one of its type),"
            f" got {list(fitting)} among {list(every)}"
        )
    return fitting[0]
