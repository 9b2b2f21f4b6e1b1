"""The flags of `sgenas search` and `sgenas train`, derived from their configuration classes.

``python -m sgenas.cli.schema`` writes schema.json, from which the command line is built without importing torch.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgenas.fields import documentation, flag_of
from sgenas.run.config import REGISTRIES, settings_of, to_plain, type_hints

FILE = Path(__file__).with_name("schema.json")
PREFIXES = {"arch_optimizer": "alpha", "relaxation": "relaxation", "regularizer": "regularizer"}
"""Group -> what its flags begin with; those of other groups begin with the group only if the name is taken."""
WHOSE = {"weight_optimizer": "Weights", "arch_optimizer": "Alphas"}
"""Group -> what begins the help of its flags, which is written for any use of the component."""
TYPE_NAMES = {int: "int", float: "float", str: "str", bool: "bool", type(None): "none"}


def build() -> dict[str, Any]:
    """The schema of both commands, from the classes that are registered."""
    from sgenas.methods import METHODS, PRESETS
    from sgenas.run.loggers import LOGGERS
    from sgenas.searching.config import SearchConfig
    from sgenas.spaces.darts_space.published import published
    from sgenas.training.config import RECIPES, TrainConfig

    named = {"method": METHODS, "logger": LOGGERS}
    choices = {name: list(registry.names()) for name, registry in named.items()}
    default = flat(SearchConfig.of_method().to_dict())

    def changes(*arguments: Any, **more: Any) -> dict[str, Any]:
        found = flat(SearchConfig.of_method(*arguments, **more).to_dict())
        return {path: value for path, value in found.items() if default.get(path, path) != value}

    training = flat(TrainConfig(published("darts-v2")).to_dict())
    search = {
        "flags": [*_flags(SearchConfig, choices)],
        "defaults": default,
        "methods": {preset: {name: changes(name, preset=preset) for name in METHODS.names()} for preset in PRESETS},
        "parts": {name: _parts(METHODS.get(name)) for name in METHODS.names()},
        "estimators": {
            name: changes("darts", {"estimator.name": name})
            for flag in _flags(SearchConfig, choices)
            if flag["path"] == "estimator.name"
            for name in flag["choices"]
        },
    }
    train = {
        "flags": [*_flags(TrainConfig, choices)],
        "defaults": {path: value for path, value in training.items() if not path.startswith("genotype.")},
        "recipes": {name: dict(recipe.settings) for name, recipe in RECIPES.items()},
    }
    return {"search": search, "train": train}


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data as {dotted path: value}."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def _parts(method: Any) -> dict[str, Any]:
    """What a method uses where a configuration says None; discretizations by space."""
    from sgenas.spaces import SPACES

    by_space = {
        name: to_plain(method.apply(_smallest(SPACES.get(name)).build(3, 10)).discretization)
        for name in method.spaces
        if name in SPACES.names()
    }
    return {
        "relaxation": to_plain(method.relaxation),
        "regularizer": None if method.regularizer is None else to_plain(method.regularizer),
        "discretization": by_space,
    }


def _smallest(settings: type[Any]) -> Any:
    """Settings of a small space, made in no time; eight channels, since methods connect a part of them."""
    return settings(**settings.smallest | {"channels": 8})


def _flags(config: type[Any], choices: Mapping[str, list[str]]) -> Iterator[dict[str, Any]]:
    """One entry per flag: its name, path, group, kinds, choices, help, default, and who has it."""
    found: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    hints, texts = type_hints(config), documentation(config)
    for field in settings_of(config):
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        base = next((kind for kind in kinds if kind in REGISTRIES or dataclasses.is_dataclass(kind)), None)
        if base is None:
            entry = _entry(field, hints[field.name], "", texts, config, choices.get(field.name))
            found[entry["path"]] = entry
            names[entry["name"]] = entry["path"]
        elif base in REGISTRIES:
            registry = REGISTRIES[base]
            prefix = PREFIXES.get(field.name)
            name = "alpha-optimizer" if prefix == "alpha" else field.name.replace("_", "-")
            component: dict[str, Any] = {"name": f"--{name}", "path": f"{field.name}.name", "group": field.name}
            component |= {"kinds": ["str"] + ["none"] * (type(None) in kinds)}
            component |= {"choices": list(registry.names()), "help": texts[field.name], "classes": []}
            found[component["path"]] = component
            for owner in registry.names():
                _add_fields(found, names, registry.get(owner), field.name, owner)
        elif not hasattr(base, "from_dict"):
            _add_fields(found, names, base, field.name, None)
    yield from found.values()


def _add_fields(
    found: dict[str, dict[str, Any]], names: dict[str, str], cls: type[Any], group: str, owner: str | None
) -> None:
    hints, texts = type_hints(cls), documentation(cls)
    for field in settings_of(cls):
        entry = _entry(field, hints[field.name], group, texts, cls, None)
        path = entry["path"]
        if names.get(entry["name"], path) != path:
            entry["name"] = f"--{group.replace('_', '-')}-{entry['name'][2:]}"
        names[entry["name"]] = path
        default = entry.pop("default")
        known = found.setdefault(path, entry | ({"owners": {}} if owner else {"default": default}))
        if owner:
            known["owners"][owner] = default
            known["kinds"] += [kind for kind in entry["kinds"] if kind not in known["kinds"]]
            known["classes"] += [cls.__name__] * (cls.__name__ not in known["classes"])


def _entry(
    field: "dataclasses.Field[Any]",
    hint: Any,
    group: str,
    texts: Mapping[str, str],
    cls: type[Any],
    choices: list[str] | None,
) -> dict[str, Any]:
    prefix = PREFIXES.get(group)
    flag, help = flag_of(field), texts.get(field.name, "").replace("``", "")
    if group in WHOSE:
        help = f"{WHOSE[group]}: {help[:1].lower()}{help[1:]}"
    return {
        "name": f"--{prefix}-{flag[2:]}" if prefix else flag,
        "path": f"{group}.{field.name}" if group else field.name,
        "group": group,
        "kinds": _kinds(hint),
        "choices": list(field.metadata.get("choices") or choices or []),
        "help": help,
        "classes": [cls.__name__],
        "default": None if field.default is dataclasses.MISSING else to_plain(field.default),
    }


def _kinds(hint: Any) -> list[str]:
    """``int | None`` as ``["int", "none"]``; tuples as ``"floats"``, ``"strs"``."""
    parts = (hint,) if typing.get_origin(hint) is tuple or not typing.get_args(hint) else typing.get_args(hint)
    found = []
    for kind in parts:
        if typing.get_origin(kind) is tuple:
            found.append(TYPE_NAMES[typing.get_args(kind)[0]] + "s")
        elif kind in TYPE_NAMES:
            found.append(TYPE_NAMES[kind])
    return found


def text() -> str:
    """The content of schema.json, one flag per line."""
    return json.dumps(build()).replace('}, {"name"', '},\n{"name"') + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
