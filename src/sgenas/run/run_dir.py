"""The run directory: which files a run writes, and how they are read. `sgenas.report` reads nothing else."""

import contextlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sgenas
from sgenas.errors import CheckpointError, RunDirError
from sgenas.files import locked, naming, read_json, replacing, write_text
from sgenas.run.checkpoint import load_newest, save_checkpoint
from sgenas.run.config import first_difference

FORMAT, VERSION = "sgenas-run", 2
"""Entries ``format`` and ``version`` of config.json."""
RUN_FILES = (
    *("metrics.jsonl", "checkpoint.safetensors", "checkpoint-previous.safetensors", "alphas.npz", "genotype.json"),
    *("choices.json", "cell.png", "curves.png", "report.html", "evaluation.json", "selection.json", "wandb-id.txt"),
)
"""Files of a run apart from config.json and tensorboard/; ``overwrite`` removes them."""
LOCK_FILES = ("run.lock", "run.owner")
EDITABLE = ("graphs", "device", "threads", "log_every", "data.data", "data.data_dir", "table")
"""Paths in config.json of what may change between two parts of a run: where it runs and finds its data, whose
fingerprint the checkpoint has too."""


class RunDir:
    """The directory of one run.

    Args:
        path: Where it is; None for a run without files.
        writer: False in all processes but the first: they read, and every write does nothing.
    """

    def __init__(self, path: str | Path | None, *, writer: bool = True) -> None:
        self.path = Path("run") if path is None else Path(path)
        self.exists_on_disk, self.writes = path is not None, path is not None and writer
        self.config_path = self.path / "config.json"
        self.checkpoint_path = self.path / "checkpoint.safetensors"
        self.previous_checkpoint_path = self.path / "checkpoint-previous.safetensors"
        self.metrics_path = self.path / "metrics.jsonl"
        self._newest_is_whole = True
        self._config: Any = None

    # -- beginning a run ---------------------------------------------------------------------------------------

    def check_new(self, *, overwrite: bool) -> None:
        """Raises RunDirError if a run is here (unless ``overwrite``), or files that are not a run's."""
        if not self.writes:
            return
        if self.config_path.exists():
            if not overwrite:
                raise RunDirError(
                    f"{self.path} already holds a run; resume it with `sgenas resume {self.path}`, choose"
                    " another directory, or pass --overwrite"
                )
        elif self.path.exists():
            with naming(self.path):
                others = any(path.name not in LOCK_FILES for path in self.path.iterdir())
            if others:
                raise RunDirError(f"{self.path} must be new or empty, got a directory with other files")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process from running here; reading is always allowed."""
        if not self.writes:
            yield
            return
        with locked(self.path / LOCK_FILES[0], f"run directory {self.path}"):
            yield

    def create(self, kind: str, config: Any, environment: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Writes config.json; with ``overwrite`` removes the files of an old run first.

        Raises:
            RunDirError: As ``check_new``, or if the directory cannot be written.
        """
        if not self.writes:
            return
        self.check_new(overwrite=overwrite)
        with naming(self.path):
            if self.config_path.exists():
                # config.json last: a kill in between leaves a directory that still counts as a run
                for name in RUN_FILES:
                    (self.path / name).unlink(missing_ok=True)
                shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        data = {"format": FORMAT, "version": VERSION, "kind": kind}
        data |= {"config": config, "environment": dict(environment)}
        write_text(self.config_path, json.dumps(data, indent=2) + "\n")

    def begin(
        self, kind: str, config: Any, environment: Mapping[str, Any], *, overwrite: bool, resume: bool | None
    ) -> bool:
        """Creates the run, or checks that the one here is this one; whether to load its checkpoint.

        Args:
            kind: ``"search"`` or ``"training"``.
            config: For config.json; a run here must have the same.
            environment: For config.json.
            overwrite: Replace a run that is here.
            resume: True requires a run here, whatever the weights it started from; False refuses one; None takes
                either.

        Raises:
            RunDirError: If the directory holds something else, or cannot be written.
        """
        if not self.exists_on_disk:
            return False
        self._config = config
        if self.has_run and not overwrite and resume is not False:
            start = "model.start_weights"
            self._config = there = self.read_config(kind)["config"]
            # ("graphs" decides how kernels are launched, not what they compute)
            difference = first_difference(config, there, skip=("graphs", *((start,) if resume else ())))
            if difference:
                more = " (build the model from the same seed, or pass resume=True)" if start in difference else ""
                raise RunDirError(
                    f"{self.path} holds a {kind} run with other settings ({difference}); use those{more}, another"
                    " run_dir, or overwrite"
                )
            if not self.has_checkpoint and self.metrics_path.exists() and self.metrics_path.stat().st_size:
                raise RunDirError(
                    f"{self.checkpoint_path} is missing, without which a run that has begun cannot be resumed; put it"
                    " back, or overwrite the run"
                )
            # a run that was killed before its first checkpoint begins again
            return self.has_checkpoint
        if resume:
            self.read_config(kind)
        self.create(kind, config, environment, overwrite=overwrite)
        return False

    # -- writing -----------------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file, whole or not at all."""
        if self.writes:
            write_text(self.path / name, text)

    def write_json(self, name: str, data: Any) -> None:
        """Writes a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(data, indent=2) + "\n")

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes an .npz file, whole or not at all."""
        if self.writes:
            with replacing(self.path / name) as file:
                np.savez_compressed(file, **arrays)

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Writes the checkpoint, whole or not at all, and keeps the one before it."""
        if self.writes:
            # one that could not be read must not replace the one that could
            keep = self.previous_checkpoint_path if self._newest_is_whole else None
            save_checkpoint(self.checkpoint_path, {"config": self._config, **state}, keep)
            self._newest_is_whole = True

    # -- reading -----------------------------------------------------------------------------------------------

    @property
    def has_run(self) -> bool:
        """Whether a run has begun here."""
        return self.exists_on_disk and self.config_path.exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.exists_on_disk and (self.checkpoint_path.exists() or self.previous_checkpoint_path.exists())

    def read_checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint that can be read; a CheckpointWarning if that is the previous one.

        Raises:
            CheckpointError: If none can be read, or config.json was edited since.
        """
        state, path = load_newest(self.checkpoint_path, self.previous_checkpoint_path)
        self._newest_is_whole = path == self.checkpoint_path
        # (a config.json of an older version may lack settings)
        kept = state.get("config")
        difference = kept and first_difference(kept, self.read_config()["config"], skip=EDITABLE)
        if difference:
            raise CheckpointError(
                f"{path} was written with other settings than those in {self.config_path.name} ({difference}); put"
                " them back, or begin a new run"
            )
        return state

    def read_config(self, kind: str | None = None) -> dict[str, Any]:
        """config.json: ``kind``, ``config`` and ``environment``.

        Args:
            kind: The kind that the run must be of (``"search"``, ``"training"``); None for any.

        Raises:
            RunDirError: If there is none, or one of another kind.
        """
        if not self.path.is_dir():
            raise RunDirError(f"run directory {self.path} does not exist")
        if not self.config_path.exists():
            raise RunDirError(f"{self.path} holds no run: it has no config.json")
        data = read_json(self.config_path, FORMAT, VERSION)
        for name, wanted in (("kind", str), ("config", dict), ("environment", dict)):
            if not isinstance(data.get(name), wanted):
                raise RunDirError(f"{self.config_path}: {name} must be a {wanted.__name__}")
        if kind is not None and data["kind"] != kind:
            raise RunDirError(f"{self.path} must be a {kind} run, got a {data['kind']} run")
        return data


def environment(device: torch.device) -> dict[str, Any]:
    """Where a run happens: versions, device, threads, and the library's git commit if it is a checkout."""
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
    """The name of this machine's processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
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
