"""Estimators by short specifications: ``sge:q=4,directions=orthogonal``.

A specification is a registered name and, after a colon, ``option=value`` with commas in between. Options are the
fields of the estimator's class. The axes of the benchmark fill in Q and mu where a specification leaves them open.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sgenas.bilevel import ESTIMATORS, Estimator
from sgenas.errors import InvalidValueError, require
from sgenas.run.config import from_plain, settings_of

ALIASES = {"q": "num_directions", "mu": "smoothing"}


@dataclass(frozen=True)
class Spec:
    """A specification: a registered name, and options in the order given. ``str`` is the name of a row."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Reads a specification; InvalidValueError for an unknown name, option or value."""
        name, _, rest = text.partition(":")
        options = []
        for part in rest.split(",") if rest else []:
            key, equals, value = part.partition("=")
            require(bool(equals), "estimators", "NAME:OPTION=VALUE,...", text)
            options.append((key, value))
        spec = cls(name, tuple(options))
        spec.make()
        return spec

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name

    @property
    def draws(self) -> bool:
        """Whether the estimator draws random numbers, so that it has a variance."""
        return ESTIMATORS.get(self.name).draws

    def value(self, option: str) -> float | None:
        """The number of an option; None if it is not given, or ``auto``."""
        found = dict(self.options).get(option, "auto")
        return None if found == "auto" else float(found)

    def filled(self, option: str, value: float) -> "Spec":
        """The same with ``option`` first set to ``value``, if the estimator has it and it is left open."""
        fields = {field.name for field in settings_of(ESTIMATORS.get(self.name))}
        given = {ALIASES.get(key, key.replace("-", "_")) for key, _ in self.options}
        if ALIASES[option] not in fields - given:
            return self
        return Spec(self.name, ((option, f"{value:g}"), *self.options))

    def make(self) -> Estimator:
        """The estimator."""
        fields = {ALIASES.get(key, key.replace("-", "_")): _value(text) for key, text in self.options}
        require(len(fields) == len(self.options), "estimators", "options that are given once", str(self))
        try:
            made: Estimator = from_plain(ESTIMATORS.get(self.name), fields, self.name)
        except InvalidValueError as error:
            raise InvalidValueError(f"estimators {self}: {error}", field="estimators") from None
        return made


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None if text == "None" else text


def expand(texts: Iterable[str], directions: Sequence[int], smoothings: Sequence[float]) -> list[Spec]:
    """Every specification with every Q and every mu that it leaves open, without repeats, in order."""
    found: dict[Spec, None] = {}
    for text in texts:
        for count in directions:
            for smoothing in smoothings:
                # Q stands before mu
                spec = Spec.parse(text).filled("mu", smoothing).filled("q", count)
                spec.make()
                found[spec] = None
    return list(found)
