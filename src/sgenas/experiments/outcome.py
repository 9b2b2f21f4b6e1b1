"""What became of a place: outcome.json, written at its end, and how far it is until then."""

import contextlib
import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgenas import limits, reading
from sgenas.engine.run_folder import read_environment, read_train_config
from sgenas.errors import RunFolderError, one_line
from sgenas.experiments.grid import Place
from sgenas.files import locked, naming, replacing, require_inside
from sgenas.nets import network_size
from sgenas.report import RunRecord, read_run

LONGEST = 300
"""Characters of a reason."""
TAIL = 65536
"""Bytes at the end of metrics.jsonl, or of a log, that surely hold a whole line."""
OF_A_CONFIG = ("mean", "std", "input", "classes", "images")
"""What a run's environment says about its images."""

NUMBER = (int, float)
ENVIRONMENT = {
    **dict.fromkeys(("sgenas", "torch", "python", "platform", "device", "device_name", "started"), str),
    "threads": int,
}
SHOWN: dict[str, dict[str, Any]] = {
    "failed": {"when": str, "stage": str, "reason": str},
    "done": {
        "when": str,
        "figures": {
            "test_accuracy": NUMBER,
            "params": NUMBER,
            "search": {
                "environment": ENVIRONMENT,
                "last": dict.fromkeys(("seconds", "forward", "backward"), NUMBER),
            },
            "training": {"environment": ENVIRONMENT, "last": {"seconds": NUMBER}},
        },
    },
}
"""State -> what the tables show of a place in it: all of that must be in outcome.json."""


@dataclass(frozen=True)
class Outcome:
    """state: "done" or "failed". stage: "search" or "training", in which it failed. reason: why, in one line.

    figures: of a place that is done; see `figures_of`. when: date of writing, UTC.
    """

    state: str
    when: str
    stage: str | None = None
    reason: str | None = None
    figures: dict[str, Any] | None = None

    @classmethod
    def done(cls, figures: dict[str, Any]) -> "Outcome":
        """Of a place that is through."""
        return cls("done", _now(), figures=figures)

    @classmethod
    def failed(cls, stage: str, reason: str) -> "Outcome":
        """Of a place that cannot go on; `reason` becomes one line."""
        line = " ".join(reason.split())
        return cls("failed", _now(), stage, line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}...")


@dataclass(frozen=True)
class Progress:
    """How far a place is. stage: "search", "training" or, where nothing has begun, "". epoch: finished ones
    of `epochs` in that stage."""

    stage: str
    epoch: int
    epochs: int

    def __str__(self) -> str:
        return f"{self.stage}, {self.epoch} of {self.epochs} epochs" if self.stage else "not begun"


def is_done(place: Place) -> bool:
    """Whether both runs of `place` are through."""
    outcome = read_outcome(place)
    return outcome is not None and outcome.state == "done"


def read_outcome(place: Place) -> Outcome | None:
    """What became of `place`; None where it is not through, also when its training is no longer there.

    A damaged outcome.json, which must not hide the other places, is one that has failed for that reason: when
    it is tried again its runs are read, and what became of them is written anew.
    """
    path = place.folder / "outcome.json"
    try:
        data = json.loads(reading.text(path, limits.SETTINGS))
        outcome = Outcome(**data)
        if outcome.state not in SHOWN:
            raise ValueError(f"state must be one of {', '.join(SHOWN)}, got {outcome.state!r}")
        _require_like(data, SHOWN[outcome.state], "the whole")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return Outcome.failed(progress(place).stage or "search", f"{path} cannot be read: {one_line(error)}")
    if outcome.state == "done" and not (place.training_folder / "metrics.jsonl").exists():
        return None
    return outcome


def _require_like(found: Any, wanted: Any, name: str) -> None:
    """Raises ValueError where `found` lacks an entry of `wanted`, nested types, or has it of another type."""
    if not isinstance(wanted, dict):
        if not isinstance(found, wanted):
            raise ValueError(f"{name} is of the wrong type {type(found).__name__}")
        return
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be an object, got {type(found).__name__}")
    for key, inner in wanted.items():
        _require_like(found.get(key), inner, key)


def write_outcome(place: Place, outcome: Outcome) -> None:
    """Writes outcome.json, whole or not at all."""
    with replacing(place.folder / "outcome.json") as file:
        file.write(json.dumps(asdict(outcome), indent=1).encode() + b"\n")


def forget_outcome(place: Place) -> None:
    """Removes outcome.json, if there is one: the place is worked on again."""
    with naming(place.folder):
        (place.folder / "outcome.json").unlink(missing_ok=True)


def progress(place: Place) -> Progress:
    """How far `place` is by what its runs have written to the disk; a run writes with every checkpoint."""
    for stage, folder, config in (
        ("training", place.training_folder, place.training),
        ("search", place.search_folder, place.search),
    ):
        if (folder / "config.json").exists():
            return Progress(stage, _finished_epochs(folder / "metrics.jsonl"), config.epochs)
    return Progress("", 0, place.search.epochs)


def _finished_epochs(metrics: Path) -> int:
    try:
        with reading.opened(metrics, limits.METRICS) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read(TAIL).splitlines()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise RunFolderError(f"{metrics} cannot be read: {error.strerror or error}") from None
    for line in reversed(lines):
        try:
            row = json.loads(line)
            return int(row["epoch"]) + (row["kind"] == "epoch")
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            continue  # cut by a kill, or by the reading above
    return 0


def figures_of(place: Place) -> dict[str, Any]:
    """The figures of a place whose training is through.

    test_accuracy: of the last epoch, a fraction; best_test_accuracy: the largest, chosen on the test set;
    params (without auxiliary head), params_with_auxiliary and macs of the trained network; genotype; and
    under `search` and `training` the last row of metrics.jsonl with the run's environment. Raises what
    `read_run` raises.
    """
    search, training = read_run(place.search_folder), read_run(place.training_folder)
    config = read_train_config(place.training_folder)
    facts = read_environment(place.training_folder)
    input_channels, side, _ = facts["input"]
    size = network_size(
        config.genotype,
        channels=config.network.channels,
        layers=config.network.layers,
        classes=len(facts["classes"]),
        resolution=side,
        input_channels=input_channels,
    )
    last = training.epochs[-1]
    return {
        "test_accuracy": last["test_accuracy"],
        "best_test_accuracy": last["best_test_accuracy"],
        "test_images": facts["images"]["test"],
        **asdict(size),
        "genotype": config.genotype.to_dict(),
        "search": _run(search),
        "training": _run(training),
    }


def _run(record: RunRecord) -> dict[str, Any]:
    environment = {key: value for key, value in record.environment.items() if key not in OF_A_CONFIG}
    return {"environment": environment, "last": record.epochs[-1]}


def give_outcome(place: Place, outcome: Outcome) -> None:
    """Writes the outcome of a place whose process could not; not where another one works at it by now."""
    with contextlib.suppress(RunFolderError), held(place):
        write_outcome(place, outcome)


def held(place: Place, *, patience: float = 0.0) -> AbstractContextManager[None]:
    """Keeps other processes from working at `place` meanwhile, see `sgenas.files.locked`.

    Raises RunFolderError when one still does after `patience` seconds, or the folder cannot be written.
    """
    for folder in (place.folder, place.search_folder, place.training_folder):
        require_inside(place.grid, folder, place.name)
    return locked(place.folder / "lock", place.name, patience=patience)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
