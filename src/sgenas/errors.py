"""Exceptions and warnings of sgenas. Each message is one line: field, limit, value, remedy."""

from typing import Any


class SgenasError(Exception):
    """Base of every exception that sgenas raises on purpose."""


class InvalidValueError(SgenasError, ValueError):
    """An argument or setting is out of its range, or contradicts another one.

    Attributes:
        field: What is wrong, as Python spells it (``"SGE.num_directions"``, ``"batch_size"``), or None.
            The command line replaces it by the flag.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class DataError(SgenasError):
    """A dataset is missing, unreadable or unsuitable."""


class GenotypeError(SgenasError):
    """A genotype is malformed: unknown operation, wrong edge, or broken syntax."""


class RunDirError(SgenasError):
    """A run directory is missing, in use, damaged, or holds another run."""


class CheckpointError(RunDirError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class DivergenceError(SgenasError):
    """A loss or gradient became NaN or infinite."""


class OutOfMemoryError(SgenasError):
    """A step needs more memory than there is, even in its smallest parts."""


class ProcessError(SgenasError):
    """The processes of one run lost each other or hold different states."""


class SgenasWarning(UserWarning):
    """Base of every warning of sgenas."""


class MemoryWarning(SgenasWarning):
    """Memory ran out, and the same is computed in smaller parts."""


class GraphWarning(SgenasWarning):
    """A pass cannot be recorded as a CUDA graph, and runs as usual."""


class RangeWarning(SgenasWarning):
    """Architecture parameters or gradients of a search are outside the useful range."""


class RunWarning(SgenasWarning):
    """Something is left out and the rest goes on: a run that cannot be read, a batch of one row."""


def require(good: bool, field: str, limit: str, value: object) -> None:
    """Raises InvalidValueError ``"<field> must be <limit>, got <value>"`` unless ``good``.

    Write conditions so that NaN fails them: ``0 < x < inf``, never ``not x <= 0``.
    """
    if not good:
        raise InvalidValueError(f"{field} must be {limit}, got {value!r}", field=field)


def require_counts(counts: dict[str, int | None]) -> None:
    """Raises InvalidValueError for the first of {field: number} that is below 1; None is no number."""
    for field, count in counts.items():
        require(count is None or count >= 1, field, ">= 1", count)


def require_kinds(parts: dict[str, tuple[object, type]]) -> None:
    """Raises InvalidValueError for the first of {field: (value, class)} that is no object of the class, nor None."""
    for field, (value, kind) in parts.items():
        require(value is None or isinstance(value, kind), field, f"an object of a {kind.__name__} class", value)


def require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises InvalidValueError unless ``value`` is one of ``choices``; names a similar choice if there is one."""
    if value not in choices:
        raise InvalidValueError(
            f"{field} must be one of {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}",
            field=field,
        )


def load_extra(module: str, extra: str, field: str) -> Any:
    """A module of an optional dependency; InvalidValueError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"{field} needs the package {module}, which is not installed: pip install 'sgenas[{extra}]'"
        raise InvalidValueError(message, field=field) from None


def did_you_mean(value: object, choices: tuple[str, ...]) -> str:
    """``"; did you mean 'x'?"`` for the most similar choice, or an empty string."""
    import difflib

    close = difflib.get_close_matches(str(value), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(error: BaseException) -> str:
    """The message of another library's exception, in one line of at most 200 characters."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((message or type(error).__name__).split())[:200]
