"""Registries: names of the command line and of configuration files, and what they stand for.

Packages outside sgenas add their own with ``sgenas.register_estimator(...)`` and its siblings, or with an
entry point of the group ``sgenas.<registry>`` (``sgenas.estimators``, ``sgenas.methods``, ...) that points to
the item.
"""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from sgenas.errors import InvalidValueError, require_choice

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Items by name.

    Args:
        field: What the names are values of, for error messages (``"estimator"``).
        group: Entry point group, ``"sgenas.estimators"``.
    """

    def __init__(self, field: str, group: str) -> None:
        self.field, self.group = field, group
        self._items: dict[str, Item] = {}
        self._entry_points_loaded = False

    def register(self, name: str, item: Item) -> Item:
        """Adds ``item`` under ``name`` and returns it.

        Raises:
            InvalidValueError: If the name is taken by something else.
        """
        if self._items.get(name, item) is not item:
            raise InvalidValueError(f"{self.field} {name!r} is registered already; choose another name")
        self._items[name] = item
        return item

    def get(self, name: str) -> Item:
        """The item ``name``.

        Raises:
            InvalidValueError: If there is none; the message lists the names.
        """
        if name not in self._items:
            self._load_entry_points()
            require_choice(self.field, name, tuple(self._items))
        return self._items[name]

    def name_of(self, item: object) -> str | None:
        """The name under which ``item`` is registered, or None."""
        return next((name for name, each in self._items.items() if each is item), None)

    def names(self) -> tuple[str, ...]:
        """All names, those of entry points included, in the order of registration."""
        self._load_entry_points()
        return tuple(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True
        for point in entry_points(group=self.group):
            self.register(point.name, point.load())
