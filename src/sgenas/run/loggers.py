"""Loggers: where the rows of a run go. JSON lines always; TensorBoard, Weights & Biases, or your own."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sgenas.errors import RunDirError, SgenasError, load_extra
from sgenas.files import naming, open_for_appending
from sgenas.registry import Registry


class Logger(Protocol):
    """Writes rows of a run: flat dicts with ``kind`` (``"step"`` or ``"epoch"``), ``epoch``, ``step``, ``seconds``."""

    def open(self, directory: Path, rows: list[dict[str, Any]]) -> None:
        """Begins in ``directory``; ``rows`` are those that a resumed run has written before."""
        ...

    def write(self, row: dict[str, Any]) -> None:
        """Writes one row."""
        ...

    def flush(self) -> None:
        """Brings all rows to the disk; called before each checkpoint."""
        ...

    def close(self) -> None:
        """Ends, also after an exception."""
        ...


class JsonLines:
    """metrics.jsonl: one row per line. After a crash, rows beyond the last checkpoint are cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            self._file = open_for_appending(path)

    def keep(self, size: int) -> list[dict[str, Any]]:
        """Cuts the file to ``size`` bytes, its length at the checkpoint; returns the rows in it.

        Raises:
            RunDirError: If it is shorter than that, or damaged.
        """
        with naming(self.path):
            kept = self.path.read_bytes()[:size]
        if len(kept) < size:
            raise RunDirError(f"{self.path} must have at least {size} bytes as at the checkpoint, got {len(kept)}")
        try:
            rows = [json.loads(line) for line in kept.splitlines()]
        except (ValueError, RecursionError) as error:
            raise RunDirError(f"{self.path} must hold the rows up to the checkpoint: {error}") from None
        with naming(self.path):
            self._file.truncate(size)
            self._file.seek(size)
        return rows

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        with naming(self.path):
            self._file.write(json.dumps(row).encode() + b"\n")

    def flush(self) -> int:
        """Brings all rows to the disk; returns the length of the file in bytes."""
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        with naming(self.path):
            self._file.close()


class TensorBoard:
    """Scalars under ``step/<name>`` and ``epoch/<name>`` in the run directory's ``tensorboard/``.

    A resumed run writes the kept rows again into a new file, so that its log equals that of a run that was
    never interrupted.
    """

    def open(self, directory: Path, rows: list[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._path = path = directory / "tensorboard"
        with naming(path):
            if not path.resolve().is_relative_to(directory.resolve()):
                raise OSError(f"it is a link to {path.resolve()}")
            for file in path.glob("events.out.tfevents.*"):
                file.unlink()
            self._writer = SummaryWriter(str(path))
        # events are dated by the run's own seconds: the machine's clock may be set back
        self._start = time.time() - (rows[-1]["seconds"] if rows else 0.0)
        for row in rows:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        when = self._start + row["seconds"]
        with naming(self._path):
            for name, value in row.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"], walltime=when)

    def flush(self) -> None:
        with naming(self._path):
            self._writer.flush()

    def close(self) -> None:
        with naming(self._path):
            self._writer.close()


class WeightsAndBiases:
    """Scalars to Weights & Biases (``pip install 'sgenas[wandb]'``); WANDB_MODE=offline works without network.

    The run's id is kept in the run directory, so that a resumed run continues the same one.
    """

    def open(self, directory: Path, rows: list[dict[str, Any]]) -> None:
        wandb = load_extra("wandb", "wandb", "loggers")
        identity = directory / "wandb-id.txt"
        with naming(identity):
            if not identity.exists():
                identity.write_text(secrets.token_hex(4), encoding="utf-8")
        config = None
        with contextlib.suppress(OSError, ValueError):
            config = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("config")
        self._run = wandb.init(
            id=identity.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(directory),
            name=directory.name,
            config=config,
        )

    def write(self, row: dict[str, Any]) -> None:
        scalars = {f"{row['kind']}/{name}": value for name, value in row.items() if isinstance(value, float)}
        self._run.log(scalars, step=row["step"])

    def flush(self) -> None: ...

    def close(self) -> None:
        self._run.finish()


def opened(path: Path, keep_bytes: int, loggers: Sequence[Logger], stack: contextlib.ExitStack) -> JsonLines:
    """metrics.jsonl at ``path``, cut to its length at the checkpoint, and loggers with its rows; ``stack`` closes all.

    Raises:
        RunDirError: If the file is damaged, or a logger cannot read its rows.
    """
    log = JsonLines(path)
    stack.callback(log.close)
    rows = log.keep(keep_bytes)
    for logger in loggers:
        try:
            logger.open(path.parent, rows)
        except (LookupError, TypeError, ValueError) as error:
            if isinstance(error, SgenasError):
                raise
            raise RunDirError(f"{path} must hold the rows of a run: {error!r}") from None
        stack.callback(logger.close)
    return log


LOGGERS: Registry[Any] = Registry("loggers", "sgenas.loggers")
LOGGERS.register("tensorboard", TensorBoard)
LOGGERS.register("wandb", WeightsAndBiases)
