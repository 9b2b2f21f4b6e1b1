"""The run folder: what a run writes, where, and in what form. `sgenas.report` reads nothing else."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

import sgenas
from sgenas.engine import checkpoint
from sgenas.engine.config import SearchConfig
from sgenas.engine.train_config import TrainConfig
from sgenas.errors import ConfigError, RunFolderError
from sgenas.files import RUN, locked, naming, replacing
from sgenas.spaces.genotype import Genotype

Config = SearchConfig | TrainConfig
KINDS: dict[str, type[Config]] = {"search": SearchConfig, "training": TrainConfig}
"""Values of `kind` in config.json, with the settings that stand there. Without it, a run is a search."""
RUN_FILES = (
    *("split.npz", "metrics.jsonl", "checkpoint.pt", "checkpoint-previous.pt", "alphas.npz"),
    *("genotype.json", "cell.png", "cell.svg", "curves.png", "report.html"),
)
"""What a run and its report write besides config.json and tensorboard/; `--overwrite` removes them."""
LOCK = "run.lock"


class RunFolder:
    """Paths and files of one run: config.json, split.npz, metrics.jsonl, tensorboard/, checkpoint.pt and the
    one before it, checkpoint-previous.pt, alphas.npz, genotype.json."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.checkpoint_path = self.path / "checkpoint.pt"
        self.previous_checkpoint_path = self.path / "checkpoint-previous.pt"
        self._checkpoint_is_whole = True
        self.metrics_path = self.path / "metrics.jsonl"
        self.tensorboard_path = self.path / "tensorboard"

    def check(self, *, overwrite: bool) -> None:
        """Raises RunFolderError when a run stands here already (unless `overwrite`), or other files do."""
        if self.config_path.exists():
            if not overwrite:
                raise RunFolderError(
                    f"--out {self.path} already holds a run: go on with `sgenas resume {self.path}`, choose"
                    " another folder, or pass --overwrite"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"--out {self.path} must be a folder, got a file")
        elif self.path.exists() and self._holds_files():
            raise RunFolderError(
                f"--out {self.path} must be new or empty, got a folder that holds other files"
            )

    def _holds_files(self) -> bool:
        try:
            # the lock is all that is left of a run that failed before it could write anything
            return any(path.name != LOCK for path in self.path.iterdir())
        except OSError as error:
            raise RunFolderError(f"--out {self.path} cannot be read: {error.strerror}") from None

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Makes the folder and keeps every other process from running in it; reading it is always allowed.

        Raises RunFolderError when another process runs there or the folder cannot be written.
        """
        return locked(self.path / LOCK, f"run folder {self.path}")

    def create(self, config: Config, environment: Mapping[str, Any], *, overwrite: bool) -> None:
        """Makes the folder and writes config.json; an old run is removed only with `overwrite`.

        Raises RunFolderError as `check` does, and when the folder cannot be made.
        """
        self.check(overwrite=overwrite)
        if self.config_path.exists():
            self._remove_run()
        with naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        kind = next(name for name, settings in KINDS.items() if isinstance(config, settings))
        data = {**RUN.head, "kind": kind}
        data |= {"config": config.to_dict(), "environment": environment}
        self.write_text("config.json", json.dumps(data, indent=2) + "\n")

    def _remove_run(self) -> None:
        """Removes the files that a run writes, and no others that someone put beside them.

        config.json stays until the new one takes its place: a kill in between leaves a folder that is still
        known as a run, and can be overwritten.
        """
        with naming(self.path):
            for name in RUN_FILES:
                (self.path / name).unlink(missing_ok=True)
                (self.path / f"{name}.tmp").unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard_path, ignore_errors=True)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file, whole or not at all."""
        with replacing(self.path / name) as file:
            file.write(text.encode())

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Writes an npz file, whole or not at all."""
        with replacing(self.path / name) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def write_genotype(self, genotype: Genotype) -> None:
        """Writes genotype.json."""
        self.write_text("genotype.json", genotype.to_json())

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Writes checkpoint.pt, whole or not at all, and keeps the one before; raises CheckpointError."""
        # one that could not be read must not take the place of the one that could
        keep = self.previous_checkpoint_path if self._checkpoint_is_whole else None
        checkpoint.save(self.checkpoint_path, state, keep)
        self._checkpoint_is_whole = True

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from."""
        return self.checkpoint_path.exists() or self.previous_checkpoint_path.exists()

    def read_checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint that can be read; a CheckpointWarning where that is the one before the last.

        Raises CheckpointError when there is none.
        """
        state, path = checkpoint.load_newest(self.checkpoint_path, self.previous_checkpoint_path)
        self._checkpoint_is_whole = path == self.checkpoint_path
        return state

    def rows(self, size: int) -> list[Any]:
        """Those in the first `size` bytes of metrics.jsonl; RunFolderError where it cannot be read."""
        path = self.metrics_path
        try:
            content = path.read_bytes()[:size] if size else b""
            return [json.loads(line) for line in content.splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise RunFolderError(f"{path} must hold the rows up to the checkpoint: {error}") from None

    def recorder(self, *, keep_bytes: int) -> "Recorder":
        """What appends rows to metrics.jsonl and TensorBoard, see `Recorder`."""
        return Recorder(self, keep_bytes=keep_bytes)


def existing(path: str | Path) -> RunFolder:
    """The run folder at `path`; raises RunFolderError where there is no folder."""
    folder = RunFolder(path)
    if not folder.path.is_dir():
        raise RunFolderError(f"run folder {folder.path} does not exist")
    return folder


class UnwrittenFolder(RunFolder):
    """The run folder as all processes of a search but the first have it: to read, not to write."""

    def check(self, *, overwrite: bool) -> None: ...

    def held(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def create(self, config: Config, environment: Mapping[str, Any], *, overwrite: bool) -> None: ...

    def write_text(self, name: str, text: str) -> None: ...

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None: ...

    def write_checkpoint(self, state: Mapping[str, Any]) -> None: ...

    def recorder(self, *, keep_bytes: int) -> "Recorder":  # noqa: ARG002
        return NoRecorder()


def read_settings(path: str | Path) -> Config:
    """The settings in a config.json, or in the one of a run folder, of whatever kind the run is.

    Raises RunFolderError when there is none, ConfigError when it is damaged or of another version.
    """
    return _read_file(path)[0]


def read_config(path: str | Path) -> SearchConfig:
    """`read_settings` of a search; ConfigError for a run of another kind."""
    config = read_settings(path)
    if not isinstance(config, SearchConfig):
        raise ConfigError(f"{path} must be of a search, got a training run")
    return config


def read_train_config(path: str | Path) -> TrainConfig:
    """`read_settings` of a training run; ConfigError for a run of another kind."""
    config = read_settings(path)
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{path} must be of a training run (`sgenas train`), got a search")
    return config


def read_environment(path: str | Path) -> dict[str, Any]:
    """What config.json says about where the run happened and what it was given; raises as `read_settings`."""
    return _read_file(path)[1]


def _read_file(path: str | Path) -> tuple[Config, dict[str, Any]]:
    path = Path(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise RunFolderError(f"folder {path} holds no run: it has no config.json")
        path = path / "config.json"
    data = RUN.read(path)
    kind, facts = data.get("kind", "search"), data.get("environment", {})
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"config file {path}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(facts, dict):
        raise ConfigError(f"config file {path}: environment must be an object, got {type(facts).__name__}")
    try:
        return KINDS[kind].from_dict(data.get("config")), facts
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run happens: versions, device, threads, git commit of the library if it is a checkout."""
    return {
        "sgenas": sgenas.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The name of this machine's processor, or of its kind where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the library where it is a git checkout; None where it is installed somewhere else."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # a library installed below someone else's checkout would find that one's commit
        for command in (
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            [*git, "rev-parse", "HEAD"],
        ):
            result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


class Recorder:
    """Appends rows to metrics.jsonl and TensorBoard.

    On resume, `keep_bytes` is the length that metrics.jsonl had at the checkpoint: what came after is cut
    off, since those steps are taken again. TensorBoard gets a new file that begins with the rows that were
    kept, and those from before are removed (the last one emptied): however often a run goes on, its log has
    the size of one that was never stopped. Raises RunFolderError when metrics.jsonl has not the rows to keep.
    """

    def __init__(self, folder: RunFolder, *, keep_bytes: int = 0) -> None:
        # slow to import, and needed only by whoever really runs a search
        from torch.utils.tensorboard import SummaryWriter

        path = self._path = folder.metrics_path
        self._board_path = folder.tensorboard_path
        size = path.stat().st_size if path.exists() else 0
        if size < keep_bytes:
            raise RunFolderError(
                f"{path} must have at least {keep_bytes} bytes as at the checkpoint, got {size}"
            )
        with naming(path):
            self._file = path.open("ab")
        try:
            rows = folder.rows(keep_bytes)
        except RunFolderError:
            self._file.close()
            raise
        with naming(path):
            self._file.truncate(keep_bytes)
            self._file.seek(keep_bytes)
        with naming(self._board_path):
            old = sorted(self._board_path.glob("events.out.tfevents.*"))
            for file in old[:-1]:
                file.unlink()
            for file in old[-1:]:
                # a board that is open goes on from the file that it has read to the next, not from none
                os.truncate(file, 0)
            # where it drops what it knows of steps from 1 on
            self._board = SummaryWriter(str(self._board_path), purge_step=1)
        try:
            # events are dated by the run's own seconds: the machine's clock may be set back
            self._began = time.time() - (rows[-1]["seconds"] if rows else 0.0)
            for row in rows:
                self._show(row)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self._close()
            raise RunFolderError(f"{path} must hold the rows of a run: {error!r}") from None

    def write(self, row: dict[str, Any]) -> None:
        """Appends one row; its numbers also go to TensorBoard under `kind/name`."""
        with naming(self._path):
            self._file.write(json.dumps(row).encode() + b"\n")
        self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        when = self._began + row["seconds"]
        with naming(self._board_path):
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"], walltime=when)

    def flush(self) -> int:
        """Brings all rows to the disk; the length of metrics.jsonl in bytes."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()
            return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._file.close()
        self._board.close()


class NoRecorder(Recorder):
    """The recorder that writes nothing."""

    def __init__(self) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def flush(self) -> int:
        return 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
