"""Errors that sgenas raises on purpose. All are one line and name the field, the limit and the value."""


class SgenasError(Exception):
    """Base of every error that the library raises on purpose; catch it to catch them all."""


class InvalidValueError(SgenasError, ValueError):
    """An argument of a library function or class is outside what it accepts."""


class ConfigError(SgenasError):
    """A setting of a run is outside what it accepts, or two settings contradict each other."""


class DataError(SgenasError):
    """A data set is missing, unreadable or not what a classifier can be trained on."""


class GenotypeError(SgenasError):
    """A genotype is malformed: unknown operation, edge against the order of the nodes, broken JSON."""


class RunFolderError(SgenasError):
    """A run folder cannot be used: it exists already, is missing, or holds no run."""


class CheckpointError(RunFolderError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class DivergenceError(SgenasError):
    """A loss or hypergradient stopped being finite; the last checkpoint is from before that."""


class OutOfMemoryError(SgenasError):
    """A step of a run needs more memory than there is, with its work cut as small as it can be."""


class ProcessError(SgenasError):
    """The processes of one search lost each other: one has ended or does not answer, or they differ."""


class SgenasWarning(UserWarning):
    """Base of every warning of the library; one line each."""


class MemoryWarning(SgenasWarning):
    """Memory ran out, and the same is computed in smaller parts."""


class RangeWarning(SgenasWarning):
    """Alphas or derivatives of a search are where it makes little sense."""


class RunWarning(SgenasWarning):
    """One of many runs cannot be read, and is left out of what is made of the others."""


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line of at most 200 characters."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((said or type(error).__name__).split())[:200]
