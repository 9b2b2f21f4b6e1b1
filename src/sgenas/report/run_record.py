"""Reads a run directory: settings, metrics, mixing weights, derived architecture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgenas.errors import RunDirError, one_line
from sgenas.run.run_dir import RunDir
from sgenas.spaces.genotype import Genotype

RUN_KINDS = ("search", "training")
Row = dict[str, Any]


@dataclass(frozen=True)
class MixingTable:
    """Mixing weights of one table over time.

    Args:
        weights: Shape (T, R, K): moments, rows, options.
        options: The K options of each row.
        edges: (source, target) of the R rows in a cell; None for a choice in a module, where R = 1.
    """

    weights: NDArray[np.float64]
    options: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True)
class AlphaHistory:
    """Mixing weights of each cell or choice after ``epoch`` (T,) finished epochs, 0 at initialization."""

    epoch: NDArray[np.int64]
    tables: dict[str, MixingTable]


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory.

    Args:
        path: The directory.
        kind: ``"search"`` or ``"training"``.
        config: Settings, nested.
        environment: Versions and machine.
        steps: Rows of metrics.jsonl about steps; after a resume the newest row of each step.
        epochs: The same of epochs.
        alphas: None until the run has written them, and always in a training run.
        genotype: The derived cells, if the space has cells and the run has written them.
        choices: The derived option of each choice, the same for modules.
        evaluation: The content of evaluation.json, if there is one: ``{"derived": {...}, "random": [...]}``.
        candidates: What the selection of the final architecture has measured, if it has measured anything.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    environment: dict[str, Any]
    steps: tuple[Row, ...] = ()
    epochs: tuple[Row, ...] = ()
    alphas: AlphaHistory | None = None
    genotype: Genotype | None = None
    choices: dict[str, str] | None = None
    evaluation: dict[str, Any] | None = None
    candidates: tuple[Row, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it has the epochs of its settings (any, if they do not say how many), or ended early."""
        last, planned = self.epochs[-1] if self.epochs else None, self.config.get("epochs")
        if last is None:
            return False
        early = last.get("ended_early") or "stopped_early_with_epoch" in last
        return bool(early) or type(planned) is not int or last["epoch"] + 1 >= planned


def read_run(path: str | Path, brief: bool = False) -> RunRecord:
    """Reads a run directory.

    Args:
        path: The directory.
        brief: Whether to leave out ``steps``, ``alphas`` and ``candidates``, nearly all that there is to read.

    Raises:
        RunDirError: If it is missing, holds no run, was written by another version, or a file is damaged. An
            incomplete last line of metrics.jsonl, left by a kill, is skipped.
        GenotypeError: If genotype.json is damaged.
    """
    path = Path(path)
    head = RunDir(path).read_config()
    kind = head["kind"]
    if kind not in RUN_KINDS:
        raise RunDirError(f"{path / 'config.json'}: kind must be one of {', '.join(RUN_KINDS)}, got {kind!r}")
    steps, epochs = _read_metrics(path / "metrics.jsonl", brief)
    alphas = None if brief else _read_alphas(path / "alphas.npz")
    genotype = Genotype.load(path / "genotype.json") if (path / "genotype.json").exists() else None
    choices = _read_object(path / "choices.json")
    if choices is not None:
        choices = {name: str(option) for name, option in choices.get("choices", choices).items()}
    evaluation = _read_object(path / "evaluation.json")
    if evaluation is not None and not (
        isinstance(evaluation.get("derived"), dict)
        and isinstance(evaluation.get("random"), list)
        and all(isinstance(network, dict) for network in evaluation["random"])
    ):
        raise RunDirError(f"{path / 'evaluation.json'} must hold an object derived and a list of objects random")
    selection = None if brief else _read_object(path / "selection.json")
    candidates = [] if selection is None else selection.get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(row, dict) for row in candidates):
        raise RunDirError(f"{path / 'selection.json'} must hold a list of objects candidates")
    read = steps, epochs, alphas, genotype, choices, evaluation, tuple(candidates)
    return RunRecord(path, kind, head["config"], head["environment"], *read)


def _read_metrics(path: Path, brief: bool) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise RunDirError(f"{path} cannot be read: {one_line(error)}") from None
    rows: dict[str, dict[tuple[int, int], Row]] = {"step": {}, "epoch": {}}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (brief and line.startswith(b'{"kind": "step"')):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise RunDirError(f"{path} line {number} must be JSON: {one_line(error)}") from None
        if not isinstance(row, dict) or row.get("kind") not in ("step", "epoch"):
            raise RunDirError(f"{path} line {number}: kind must be 'step' or 'epoch', got {line[:40]!r}")
        for field in ("epoch", "step"):
            if type(row.get(field)) is not int:
                got = repr(row.get(field))[:40]
                raise RunDirError(f"{path} line {number}: {field} must be an integer, got {got}")
        rows[row["kind"]][row["epoch"], row["step"]] = row
    return () if brief else tuple(rows["step"].values()), tuple(rows["epoch"].values())


def _read_alphas(path: Path) -> AlphaHistory | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return _history({name: archive[name] for name in archive.files})
    except Exception as error:
        # the zip reader, the decompressors and numpy raise a dozen types
        what = "delete it to see the run without the alphas over its epochs"
        raise RunDirError(f"{path} cannot be read ({one_line(error)}); {what}") from None


def _history(arrays: Mapping[str, NDArray[Any]]) -> AlphaHistory:
    """Tables from arrays ``<table>_mixing``, (T, E, O) with the common ``edges`` or (T, K), whose options are
    ``<table>_options``."""
    epoch = arrays["epoch"].astype(np.int64).reshape(-1)
    tables = {}
    for key in arrays:
        name = key.removesuffix("_mixing")
        if name == key:
            continue
        weights, edges = arrays[key].astype(np.float64), None
        if weights.ndim == 3:
            edges = tuple((int(source), int(target)) for source, target in arrays["edges"])
        else:
            weights = weights.reshape(len(weights), 1, -1)
        options = tuple(str(label) for label in arrays[f"{name}_options"].reshape(-1))
        expected = (len(epoch), 1 if edges is None else len(edges), len(options))
        if weights.shape != expected or 0 in expected:
            raise ValueError(f"{key} must have shape {expected}, got {weights.shape}")
        tables[name] = MixingTable(weights, options, edges)
    return AlphaHistory(epoch, tables)


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirError(f"{path} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict) or not isinstance(found.get("choices", {}), dict):
        raise RunDirError(f"{path} must hold an object, got {type(found).__name__}")
    return found
