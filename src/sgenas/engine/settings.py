"""What settings of every kind share: their checks, and reading them from JSON."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sgenas.errors import ConfigError, GenotypeError, InvalidValueError

Settings = TypeVar("Settings")


def flag(name: str) -> str:
    """The command's flag for the setting `name`."""
    return "--" + name.replace("_", "-")


def require(good: bool, name: str, limit: str, value: Any) -> None:
    """Raises ConfigError, with the flag, the limit and the value, unless `good`."""
    if not good:
        raise ConfigError(f"{flag(name)} must be {limit}, got {value!r}")


class Checked:
    """Helpers for the checks of a settings group; comparisons are written so that nan fails them."""

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        require(value in known, name, f"one of {', '.join(known)}", value)

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        require(value is None or value >= least, name, f">= {least}", value)

    def _positive(self, name: str) -> None:
        value = getattr(self, name)
        require(value is None or 0 < value < math.inf, name, "> 0 and finite", value)

    def _not_negative(self, name: str) -> None:
        value = getattr(self, name)
        require(0 <= value < math.inf, name, ">= 0 and finite", value)

    def _fraction(self, name: str) -> None:
        value = getattr(self, name)
        require(0 <= value < 1, name, "in [0, 1)", value)

    def _default_unless(self, name: str, applies: bool, where: str) -> None:
        """An option that would be ignored is an error: it must stand at its default."""
        default = next(f.default for f in dataclasses.fields(self) if f.name == name)  # type: ignore[arg-type]
        value = getattr(self, name)
        if not applies and value != default:
            raise ConfigError(
                f"{flag(name)} only applies with {where}, got {value!r} without it; leave it at {default!r}"
            )


def by_group(cls: type[Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the settings class `cls` from settings by flag name: each in the group that has it.

    A setting that no group has stays by itself.
    """
    left = dict(flat)
    groups: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        make: Any = item.default_factory
        if isinstance(make, type) and dataclasses.is_dataclass(make):
            names = [setting.name for setting in dataclasses.fields(make) if setting.name in left]
            groups[item.name] = make(**{name: left.pop(name) for name in names})
    return groups | left


def read(cls: type[Any], data: Any, place: str) -> Any:
    """An object of the settings class `cls` from nested plain data; ConfigError names the first fault.

    Every setting must be there, and no other. A field of a type that reads itself (`from_dict`) does.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{place} must be an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]
    unknown = [str(key) for key in data if key not in names]
    missing = [name for name in names if name not in data]
    if unknown or missing:
        fault = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise ConfigError(f"{place} must have the settings of this version, got {fault}")
    values: dict[str, Any] = {}
    for name in names:
        value, hint = data[name], hints[name]
        if hasattr(hint, "from_dict"):
            try:
                values[name] = hint.from_dict(value)
            except GenotypeError as error:
                raise ConfigError(f"{place}.{name}: {error}") from None
            continue
        if dataclasses.is_dataclass(hint):
            values[name] = read(typing.cast(type[Any], hint), value, f"{place}.{name}")
            continue
        accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if type(value) is int and float in accepted and abs(value) < 2**63:
            value = float(value)
        if type(value) not in accepted:
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in accepted)
            raise ConfigError(f"{place}.{name} must be {wanted}, got {value!r}")
        values[name] = value
    try:
        return cls(**values)
    except InvalidValueError as error:
        raise ConfigError(str(error)) from None


def changed(settings: Settings, flags: Mapping[str, Any]) -> Settings:
    """The same settings with those of `flags` (by flag name, in whatever group they stand) in their place.

    Raises ConfigError for a name that no setting has, and for what the settings do not accept.
    """
    left, values = dict(flags), {}
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        group = getattr(settings, item.name)
        if isinstance(group, Checked):
            names = [setting.name for setting in dataclasses.fields(group) if setting.name in left]  # type: ignore[arg-type]
            values[item.name] = dataclasses.replace(group, **{name: left.pop(name) for name in names})  # type: ignore[type-var]
        elif item.name in left:
            values[item.name] = left.pop(item.name)
    if left:
        raise ConfigError(f"{flag(next(iter(left)))} is no setting of {type(settings).__name__}")
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]


def first_difference(ours: Any, theirs: Any, here: str, there: str = "there", place: str = "") -> str:
    """Where two nested settings differ first, in words; empty when they do not.

    here, there: where each of them is.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *(key for key in theirs if key not in ours)]:
            path = f"{place}.{name}" if place else name
            found = first_difference(ours.get(name), theirs.get(name), here, there, path)
            if found:
                return found
        return ""
    if _alike(ours, theirs):
        return ""
    return f"{place or 'config'} is {ours!r:.200} {here}, {theirs!r:.200} {there}"


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether two plain values are equal; a tensor from a strange file is like none, and is not compared."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        same = type(ours) is type(theirs) and len(ours) == len(theirs)
        return same and all(map(_alike, ours, theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(_alike(ours[name], theirs[name]) for name in ours)
    return isinstance(theirs, str | int | float | None) and bool(ours == theirs)
