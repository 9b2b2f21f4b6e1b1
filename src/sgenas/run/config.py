"""Configuration: components (dataclasses) to plain data and back, and flat settings by dotted path.

A component is a frozen dataclass that checks itself. A field whose type is in ``REGISTRIES`` (an estimator, an
optimizer, a space, ...) becomes ``{"name": <registered name>, <its fields>}``. Missing keys take their default,
so that a new setting never breaks an old file; unknown keys are named.
"""

import dataclasses
import types
import typing
from collections.abc import Container, Mapping
from typing import Any, Self

from sgenas.digests import PREFIX
from sgenas.errors import GenotypeError, InvalidValueError, did_you_mean
from sgenas.registry import Registry

REGISTRIES: dict[type, Registry[Any]] = {}
"""Base class of a field's type -> the registry that has its names. Filled by the configurations."""


class Configuration:
    """Base of the configurations of a search and of a training, which are frozen dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; ``from_dict`` is the inverse."""
        return {field.name: to_plain(getattr(self, field.name)) for field in settings_of(type(self))}

    @classmethod
    def from_dict(cls, plain: Any) -> Self:
        """Reads ``to_dict``; missing keys take their default.

        Raises:
            InvalidValueError: For an unknown key, a missing one without default, or a value out of range.
        """
        config: Self = from_plain(cls, plain)
        return config


def to_plain(component: Any) -> Any:
    """JSON-ready data; ``from_plain`` is the inverse."""
    if hasattr(component, "to_dict"):
        return component.to_dict()
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        fields = {field.name: to_plain(getattr(component, field.name)) for field in settings_of(type(component))}
        name = _registered_name(component)
        return fields if name is None else {"name": name, **fields}
    if isinstance(component, tuple | list):
        return [to_plain(item) for item in component]
    return component


def _registered_name(component: Any) -> str | None:
    kind = type(component)
    for registry in REGISTRIES.values():
        name = registry.name_of(kind)
        if name is not None:
            return name
    bases = [base for base in REGISTRIES if not getattr(base, "_is_protocol", False) and isinstance(component, base)]
    if bases:
        field = REGISTRIES[bases[0]].field
        raise InvalidValueError(f"{kind.__name__} must be registered as {field} to be written to a configuration")
    return None


def from_plain(cls: type[Any], data: Any, path: str = "config") -> Any:
    """An instance of the component class ``cls`` (or of a registered class below it).

    Raises:
        InvalidValueError: For unknown keys, missing ones without default, wrong types, and whatever the component
            refuses.
    """
    if not isinstance(data, Mapping):
        raise InvalidValueError(f"{path} must be an object, got {type(data).__name__}")
    left = dict(data)
    if cls in REGISTRIES:
        cls = REGISTRIES[cls].get(str(left.pop("name", None)))
    hints, fields = type_hints(cls), settings_of(cls)
    names = [field.name for field in fields]
    for key in left:
        if key not in names:
            raise InvalidValueError(
                f"{path} has an unknown setting {key!r}{did_you_mean(key, tuple(names))}", field=str(key)
            )
    for field in fields:
        if field.name not in left and field.default is field.default_factory is dataclasses.MISSING:
            dotted = f"{path}.{field.name}".removeprefix("config.")
            raise InvalidValueError(f"{dotted} must be set, got none", field=dotted)
    return cls(**{name: _value(hints[name], left[name], f"{path}.{name}") for name in names if name in left})


def _value(hint: Any, value: Any, path: str) -> Any:
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) in accepted:
        return value
    for kind in accepted:
        if hasattr(kind, "from_dict"):
            try:
                return kind.from_dict(value)
            except GenotypeError as error:
                raise InvalidValueError(f"{path}: {error}") from None
        if kind in REGISTRIES or dataclasses.is_dataclass(kind):
            return from_plain(kind, value, path)
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(kind)
            kinds = inner[:1] * len(value) if len(inner) == 2 and inner[1] is ... else inner
            if len(kinds) == len(value):
                return tuple(
                    _value(one, item, f"{path}[{index}]")
                    for index, (one, item) in enumerate(zip(kinds, value, strict=True))
                )
    if type(value) is int and float in accepted and abs(value) < 2**63:
        return float(value)
    if type(value) not in accepted:
        wanted = " or ".join(
            "null" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in accepted
        )
        raise InvalidValueError(f"{path} must be {wanted}, got {value!r}", field=path.rpartition(".")[2])
    return value


def settings_of(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields of a component class that are settings."""
    return [field for field in dataclasses.fields(cls) if field.init]


def type_hints(cls: type[Any]) -> dict[str, Any]:
    """Resolved annotations of a component class."""
    return typing.get_type_hints(cls)


def merged(plain: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with ``settings`` (values by dotted path, ``"estimator.num_directions"``) put in.

    A new ``name`` of a component replaces the component: only the settings given for it remain.
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in plain.items()}
    for path, value in sorted(settings.items(), key=lambda item: not item[0].endswith(".name")):
        group, _, field = path.rpartition(".")
        if not group:
            found[field] = value
            continue
        if field == "name" and (found.get(group) or {}).get("name") != value:
            found[group] = {}
        if found.get(group) is None:
            raise InvalidValueError(f"{field} needs {group} to be chosen, got {value!r} without it", field=field)
        found[group][field] = value
    return found


def first_difference(ours: Any, theirs: Any, path: str = "", skip: Container[str] = ()) -> str:
    """``"estimator.num_directions is 4 here, 10 there"`` for the first difference; empty if there is none.

    A key that ``theirs`` lacks is no difference: an older version did not write it. Nor is a path in ``skip``.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in [*ours, *(key for key in theirs if key not in ours)]:
            inner = f"{path}.{name}" if path else str(name)
            if name in theirs and inner not in skip:
                found = first_difference(ours.get(name), theirs[name], inner, skip)
                if found:
                    return found
        return ""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return next((d for i, (a, b) in pairs if (d := first_difference(a, b, f"{path}[{i}]", skip))), "")
    same = ours == theirs or (ours != ours and theirs != theirs)
    if not same and all(isinstance(value, str) and value.startswith(PREFIX) for value in (ours, theirs)):
        return f"{path} differs"
    return "" if same else f"{path or 'config'} is {ours!r:.200} here, {theirs!r:.200} there"
