"""Estimators by short specifications: `sge:q=4,orthogonal` becomes SGE(4, directions="orthogonal").

A specification is a name, and after a colon options with commas between: `option=value`, or a word alone.
What it leaves open, Q and mu, the axes of the laboratory fill in (`expand`). The text of a `Spec` with
everything filled in is the name of a row in every table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgenas.bilevel import (
    SGE,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    Neumann,
    Unrolled,
)
from sgenas.errors import ConfigError, InvalidValueError

Fields = dict[str, Any]
Option = Callable[[str], Fields]
"""The text after `=` ("" for a word alone) -> fields of the estimator; ValueError for any other text."""


@dataclass(frozen=True)
class Kind:
    """A kind of estimator: what makes it, its options by name, and whether it draws random numbers."""

    make: Callable[..., Estimator]
    options: Mapping[str, Option] = field(default_factory=dict)
    draws: bool = False


def _number(name: str, read: Callable[[str], Any]) -> Option:
    return lambda text: {name: read(text)}


def _word(**fields: Any) -> Option:
    def option(text: str) -> Fields:
        if text:
            raise ValueError
        return fields

    return option


def _smoothing(text: str) -> Fields:
    return {"smoothing": text if text == "auto" else float(text)}


_DIRECTIONS = {
    "q": _number("num_directions", int),
    **{kind: _word(directions=kind) for kind in ("gaussian", "orthogonal", "sphere", "antithetic")},
}

_DAMPING = _number("damping", float)

KINDS: dict[str, Kind] = {
    "first-order": Kind(FirstOrder),
    "second-order": Kind(
        FiniteDifference, {"radius": _number("radius", float), "one-sided": _word(one_sided=True)}
    ),
    "sge": Kind(
        SGE,
        {
            **_DIRECTIONS,
            "mu": _smoothing,
            "variate": _word(control_variate=("finite-difference",)),
            "one-sided": _word(control_variate=("one-sided",)),
            "memory": _word(control_variate=("memory",)),
            "both": _word(control_variate=("finite-difference", "memory")),
            "table": _word(blocks="table"),
            "edge": _word(blocks="edge"),
            "least-squares": _word(combine="least-squares"),
            "fraction": _number("batch_fraction", float),
            "computation": _number("computation", str),
        },
        draws=True,
    ),
    "unrolled": Kind(Unrolled, {"last": _number("last_steps", int)}),
    "neumann": Kind(
        Neumann, {"k": _number("products", int), "scale": _number("scale", float), "damping": _DAMPING}
    ),
    "cg": Kind(
        ConjugateGradient,
        {"k": _number("products", int), "tolerance": _number("tolerance", float), "damping": _DAMPING},
    ),
    "evolution": Kind(EvolutionStrategies, {**_DIRECTIONS, "mu": _number("smoothing", float)}, draws=True),
}
"""name -> how to make it. A new estimator gets its row here."""


@dataclass(frozen=True)
class Spec:
    """A specification, read: the kind's name, its options in the order given. `str` gives the text back."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Raises ConfigError for an unknown name or option, one given twice, and a value that is none."""
        name, _, rest = text.partition(":")
        if name not in KINDS:
            raise ConfigError(f"--estimators must be among {', '.join(KINDS)}, got {text!r}")
        options = []
        for part in rest.split(",") if rest else []:
            key, _, value = part.partition("=")
            known = KINDS[name].options
            if key not in known:
                offered = f"one of {', '.join(known)}" if known else "left out: there is none"
                raise ConfigError(f"--estimators {text}: an option of {name} must be {offered}, got {part!r}")
            options.append((key, value))
        spec = cls(name, tuple(options))
        spec.make()
        return spec

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" if value else key for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name

    @property
    def draws(self) -> bool:
        """Whether the estimator draws random numbers, so that it has a variance."""
        return KINDS[self.name].draws

    @property
    def remembers(self) -> bool:
        """Whether it makes use of the estimate before."""
        return any(key in ("memory", "both") for key, _ in self.options)

    def value(self, option: str) -> float | None:
        """The number that an option has, None where it is not given or chosen by the estimator."""
        text = dict(self.options).get(option, "auto")
        return None if text == "auto" else float(text)

    def filled(self, option: str, value: float) -> "Spec":
        """The same with `option` first set to `value`, where this kind has the option and it is left open."""
        if option not in KINDS[self.name].options or option in dict(self.options):
            return self
        return Spec(self.name, ((option, f"{value:g}"), *self.options))

    def make(self) -> Estimator:
        """The estimator; ConfigError, which names the specification, where its own checks refuse it."""
        fields: Fields = {}
        for key, text in self.options:
            try:
                found = KINDS[self.name].options[key](text)
            except ValueError:
                form = _form(self.name, key)
                raise ConfigError(f"--estimators {self}: {key} must be {form}, got {text!r}") from None
            twice = sorted(set(found) & set(fields))
            if twice:
                raise ConfigError(f"--estimators {self}: {twice[0]} must be given once, got {key!r} too")
            fields |= found
        try:
            return KINDS[self.name].make(**fields)
        except InvalidValueError as error:
            raise ConfigError(f"--estimators {self}: {error}") from None


def _form(name: str, key: str) -> str:
    """What a value of this option has to look like."""
    try:
        KINDS[name].options[key]("")
    except ValueError:
        return "a number"
    return "a word alone"


def expand(texts: Iterable[str], directions: Sequence[int], smoothings: Sequence[float]) -> list[Spec]:
    """Every specification with every Q and every mu that it leaves open, without repeats, in order.

    Raises ConfigError as `Spec.parse`, and for a combination that the estimator refuses.
    """
    found: dict[Spec, None] = {}
    for text in texts:
        spec = Spec.parse(text)
        for count in directions:
            for smoothing in smoothings:
                # Q stands before mu
                whole = spec.filled("mu", smoothing).filled("q", count)
                whole.make()
                found[whole] = None
    return list(found)
