"""Flags of the configurations: read from schema.json, put on a parser, and turned into settings by dotted path."""

import argparse
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgenas.errors import InvalidValueError, did_you_mean

VALUE_KINDS: dict[str, tuple[str, str, Callable[[str], Any] | None]] = {
    "int": ("INT", "an integer", int),
    "float": ("FLOAT", "a number", float),
    "ints": ("INT,INT", "integers with commas between", lambda text: [int(part) for part in text.split(",")]),
    "floats": ("A,B", "numbers with commas between", lambda text: [float(part) for part in text.split(",")]),
    "strs": ("A,B,...", "names with commas between", lambda text: _split(text)),
    "str": ("TEXT", "a string", str),
    "none": ("", "None", None),
}
"""Kind of a value -> metavar, words for messages, reader. A flag tries its kinds in this order."""
GROUPS = {
    "": "Run",
    "data": "Images",
    "space": "Search space",
    "estimator": "Hypergradient estimator",
    "weight_optimizer": "Optimizer of the weights",
    "arch_optimizer": "Optimizer of the alphas",
    "relaxation": "Relaxation (of the method if not set)",
    "regularizer": "Regularizer (of the method if not set)",
    "discretization": "Discretization (of the method if not set)",
    "selection": "Selection of the final architecture (of the strategy if not set)",
    "budget": "Budget of the derived network",
}
"""Group -> its heading in the help."""


@dataclass(frozen=True)
class Flag:
    """A flag of a configuration.

    Attributes:
        name: ``--directions``.
        path: Where its value goes: ``estimator.num_directions``.
        group: First part of the path; empty for a setting of the run itself.
        kinds: Kinds of values it takes, of `VALUE_KINDS` or ``bool``.
        choices: Its values, if they are few.
        help: First sentence, then more.
        classes: Names of the classes that have it.
        owners: {name of a component: default there}; None if it always applies.
    """

    name: str
    path: str
    group: str
    kinds: list[str]
    choices: list[str]
    help: str
    classes: list[str]
    owners: dict[str, Any] | None = None
    default: Any = None

    def read(self, text: str) -> Any:
        """The value of ``text``; raises ArgumentTypeError."""
        return read(text, self.kinds, self.choices)


def read(text: str, kinds: Iterable[str], choices: Sequence[str] = ()) -> Any:
    """The value that ``text`` means, of the first of the kinds that fits."""
    if text == "None" and "none" in kinds:
        return None
    if choices and text in choices:
        return text
    for kind, (_, _, reader) in VALUE_KINDS.items():
        if kind in kinds and reader is not None and not (kind == "str" and choices):
            try:
                value = reader(text)
            except ValueError:
                continue
            if not (isinstance(value, float) and math.isnan(value)):
                return value
    wanted = f"one of {', '.join(choices)}" if choices else ""
    others = [words for kind, (_, words, _) in VALUE_KINDS.items() if kind in kinds and not (choices and kind == "str")]
    wanted = " or ".join([wanted, *others] if wanted else others)
    raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}{did_you_mean(text, tuple(choices))}")


def _split(text: str) -> list[str]:
    if "," not in text:
        raise ValueError
    return [part.strip() for part in text.split(",") if part.strip()]


@dataclass(frozen=True)
class Schema:
    """The flags of a command and the values they have where they are not given.

    Attributes:
        flags: All flags.
        defaults: {path: value} of the default configuration.
        methods: {preset: {method: {path: value}}}, what differs from the defaults.
        estimators: {estimator: {path: value}}, what differs from the defaults.
        recipes: {recipe: {path: value}} of a training run.
        parts: {method: {group: component}}, what a method uses where the configuration says None.
    """

    flags: tuple[Flag, ...]
    defaults: dict[str, Any]
    methods: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    estimators: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def effective(self, method: str, preset: str, estimator: str | None, recipe: str | None) -> dict[str, Any]:
        """{path: value} of a command line that says no more than this; unknown names change nothing."""
        found = dict(self.defaults)
        if preset != "paper":
            found |= self.estimators.get(estimator or "", {})
        found |= self.methods.get(preset, {}).get(method, {})
        return found | self.recipes.get(recipe or "", {})


@functools.cache
def load(kind: str) -> Schema:
    """The schema of ``"search"`` or ``"train"``; imports torch only if other packages have entry points."""
    from importlib.metadata import entry_points  # 30 ms

    if any(group.startswith("sgenas.") for group in entry_points().groups):
        from sgenas.cli.schema import build

        plain = build()[kind]
    else:
        plain = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))[kind]
    schema = Schema(tuple(Flag(**flag) for flag in plain.pop("flags")), **plain)
    for flag in schema.flags:
        owners = flag.owners or {}
        for name in owners:
            owners[name] = schema.estimators.get(name, {}).get(flag.path, owners[name])
    return schema


def add_flags(
    parser: argparse.ArgumentParser,
    schema: Schema,
    values: Mapping[str, Any],
    shown: Sequence[str] | None,
) -> None:
    """Puts all flags of a schema on a parser.

    Args:
        parser: Its namespace gets the given values by path, and nothing for flags that are not given.
        schema: The flags.
        values: {path: value} that the help names as defaults.
        shown: Flags in the help, in this order and without headings; None for all, in groups.
    """
    groups: dict[str, Any] = {}
    order = {name: index for index, name in enumerate(shown or ())}
    choices = {flag.path: flag.choices for flag in schema.flags}
    for flag in sorted(schema.flags, key=lambda flag: order.get(flag.name, len(order))):
        title = GROUPS.get(flag.group, flag.group.capitalize()) if shown is None else "settings"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        text = argparse.SUPPRESS
        if shown is None or flag.name in order:
            everyone = choices.get(f"{flag.group}.name", ())
            text = _help(flag, values, everyone, brief=shown is not None).replace("%", "%%")
        options: dict[str, Any] = {"dest": flag.path, "default": argparse.SUPPRESS, "help": text}
        if flag.kinds == ["bool"]:
            options["action"] = argparse.BooleanOptionalAction
        else:
            metavar = next(VALUE_KINDS[kind][0] for kind in VALUE_KINDS if kind in flag.kinds)
            options |= {"type": flag.read, "metavar": "NAME" if flag.choices else metavar}
        action = groups[title].add_argument(flag.name, **options)
        action.flag, action.known = flag, flag.choices


def _help(flag: Flag, values: Mapping[str, Any], everyone: Sequence[str], *, brief: bool) -> str:
    """Text, choices, the components that have the flag (unless all do), and the default."""
    text = re.split(r"(?<=\.) (?=[A-Z])", flag.help, maxsplit=1)[0] if brief else flag.help
    notes = []
    if flag.owners is not None and len(flag.owners) < len(everyone):
        notes.append(f"only with {' or '.join(flag.owners)}")
    if not all(choice in text for choice in flag.choices):
        notes.append(", ".join(flag.choices))
    default = _default(flag, values, brief=brief)
    if default != "None" or "None" not in text:
        notes.append(f"default: {default}")
    return f"{text.rstrip('.')} ({'; '.join(notes)})" if notes else text.rstrip(".")


def _default(flag: Flag, values: Mapping[str, Any], *, brief: bool) -> str:
    """The default; of components that differ each its own, with ``brief`` that of the chosen one alone."""
    if flag.owners is None:
        if flag.path.endswith(".name") and flag.path not in values:
            return "the strategy's" if flag.group == "selection" else "the method's"
        return _shown(values.get(flag.path, flag.default))
    each, chosen = dict(flag.owners), values.get(f"{flag.group}.name")
    if chosen in each:
        each[chosen] = values.get(flag.path, each[chosen])
        each = {chosen: each[chosen]} if brief else each
    # a component without a default needs the flag
    known = {name: _shown(value) for name, value in each.items() if value is not None or "none" in flag.kinds}
    if len(known) == len(each) and len(set(known.values())) == 1:
        return next(iter(known.values()))
    return ", ".join(f"{value} with {name}" for name, value in known.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


# -- from flags to settings ---------------------------------------------------------------------------------


def settings(schema: Schema, given: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """{path: value} for a configuration that starts from ``base``, from the flags that were given.

    A flag of a part that only the method names (its regularizer, ...) chooses that part.

    Raises:
        InvalidValueError: For a flag whose component is not chosen.
    """
    found = dict(given)
    for flag in schema.flags:
        if flag.path not in given or flag.owners is None:
            continue
        choice = next(each for each in schema.flags if each.path == f"{flag.group}.name")
        chosen = given.get(choice.path, base.get(choice.path))
        if choice.path not in given and chosen is None:
            part = _part(schema, flag.group, given, base)
            chosen = part.get("name")
            if chosen in flag.owners:
                found = {f"{flag.group}.{name}": value for name, value in part.items()} | found
        if chosen not in flag.owners:
            got = f"got {choice.name} {chosen}" if chosen else f"the method {_method(given, base)} has none"
            raise InvalidValueError(f"{flag.name} only applies with {choice.name} {' or '.join(flag.owners)}, {got}")
    return found


def _method(given: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    return str(given.get("method", base.get("method")))


def _part(schema: Schema, group: str, given: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The component that the method or strategy uses for a group; {} for none."""
    if group == "selection":
        strategy = given.get("strategy", base.get("strategy"))
        return {"name": "alphas" if strategy == "gradient" else strategy}
    part = schema.parts.get(_method(given, base), {}).get(group) or {}
    if group == "discretization":
        part = part.get(given.get("space.name", base.get("space.name")), {})
    return dict(part)


# -- from fields to flags -----------------------------------------------------------------------------------


def with_flags(error: InvalidValueError, parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> str:
    """The message of a library error with the flags of ``parser`` in place of Python fields.

    Args:
        error: ``error.field`` is ``"SGE.num_directions"``, ``"batch_size"`` or None.
        parser: Its actions have the paths of settings, or the names of arguments, as ``dest``.
        given: {dest: value} of the command line, which decides between flags of the same field.
    """
    head, got, value = str(error).partition(", got ")
    if error.field is not None:
        flag = _flag_of(error.field, value, parser, given)
        if flag is not None:
            head = re.sub(rf"(?<![\w.-]){re.escape(error.field)}(?![\w.-])", flag.option_strings[0], head, count=1)
            if got and hasattr(flag, "flag") and flag.dest not in given:
                value += " (by the recipe, preset, method or default)"

    def translated(word: re.Match[str]) -> str:
        flag = _flag_of(word[0], "", parser, given)
        return word[0] if flag is None else flag.option_strings[0]

    return re.sub(r"(?<![\w./-])[a-z]+(?:_[a-z0-9]+)+(?![\w./-])", translated, head) + got + value


def _flag_of(
    field: str, value: str, parser: argparse.ArgumentParser, given: Mapping[str, Any]
) -> argparse.Action | None:
    owner, _, leaf = field.rpartition(".")
    found = [
        action
        for action in parser._actions
        if action.option_strings and action.dest.removesuffix(".name").rpartition(".")[2] == leaf
    ]
    classes = {id(each): getattr(getattr(each, "flag", None), "classes", []) for each in found}
    found = [each for each in found if owner in classes[id(each)] or owner == each.dest.rpartition(".")[0]] or found
    found.sort(key=lambda each: (each.dest not in given, not value.startswith(repr(given.get(each.dest)))))
    return found[0] if found else None
