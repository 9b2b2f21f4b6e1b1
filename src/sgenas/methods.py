"""The table of methods: what each name of a search stands for. A new method is one row here."""

from dataclasses import dataclass

from sgenas.errors import InvalidValueError


@dataclass(frozen=True)
class Method:
    """space: the search space; operations: its default operation set; paper_name: the paper's name of the
    method with the stochastic estimator; source: where it was published."""

    space: str
    operations: str
    paper_name: str
    source: str


METHODS = {
    "darts": Method("darts", "darts", "SGE-NAS-a", "Liu et al., arXiv:1806.09055"),
}


def method(name: str) -> Method:
    """The row `name`; raises InvalidValueError for an unknown one."""
    if name not in METHODS:
        raise InvalidValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]
