"""Reads a run folder: settings, metrics, the history of the alphas and the genotype, as plain data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgenas import limits, reading
from sgenas.archives import read_arrays
from sgenas.errors import RunFolderError
from sgenas.files import RUN
from sgenas.spaces.genotype import Genotype

KINDS = ("search", "training")
MOST = 1e18
"""Of a whole number of a row: whoever draws makes a float of it, which there may be none for."""
MOST_TABLES = 20
"""Of alphas: each is drawn by itself. The spaces of this library have one or two."""
MOST_EDGES = 500
"""Of a table of alphas: each is a line of its drawing. A DARTS cell of 4 nodes has 14."""
MOST_OPERATIONS = 100
"""Of a table of alphas: each is a line and an entry of the legend."""


@dataclass(frozen=True)
class AlphaTable:
    """One alpha table over time: `raw` alphas and relaxed `mixing` weights, both (T, E, O)."""

    raw: NDArray[np.float64]
    mixing: NDArray[np.float64]


@dataclass(frozen=True)
class AlphaHistory:
    """Alphas before the first epoch and after each finished one.

    `tables` by name; `epoch` (T,) finished epochs, 0 for the initial alphas; `operations` names the O
    columns; `edges` (E, 2) source and target node of each row.
    """

    tables: dict[str, AlphaTable]
    epoch: NDArray[np.int64]
    operations: tuple[str, ...]
    edges: NDArray[np.int64]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds.

    `kind` is "search" or "training". `config` is the nested settings, `environment` the versions and the
    machine; `steps` and `epochs` are the rows of metrics.jsonl in order, a row written again after a resume
    replacing the first. `alphas` and `genotype` are None while the run has not written them, `alphas` always
    in a training.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    steps: tuple[dict[str, Any], ...]
    epochs: tuple[dict[str, Any], ...]
    alphas: AlphaHistory | None
    genotype: Genotype | None
    kind: str = "search"


STEP = b'{"kind": "step"'
"""How the row of a step begins as a run writes it."""


def read_run(path: str | Path, *, brief: bool = False) -> RunRecord:
    """Reads the run folder `path`; `brief` leaves out `steps` and `alphas`, nearly all that there is to read.

    Raises RunFolderError when it is missing, holds no run or one of its files is damaged, GenotypeError when
    its genotype.json is. A half-written last line of metrics.jsonl, left by a kill, is skipped.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunFolderError(f"run folder {path} does not exist or is not a folder")
    if not (path / "config.json").is_file():
        raise RunFolderError(f"folder {path} holds no run: it has no config.json")
    config, environment, kind = _read_config(path / "config.json")
    steps, epochs = _read_metrics(path / "metrics.jsonl", brief=brief)
    alphas = None if brief else _read_alphas(path / "alphas.npz")
    genotype_path = path / "genotype.json"
    genotype = Genotype.load(genotype_path) if genotype_path.exists() else None
    return RunRecord(path, config, environment, steps, epochs, alphas, genotype, kind)


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    data = RUN.read(path)
    for field in ("config", "environment"):
        if not isinstance(data.get(field), dict):
            raise RunFolderError(f"{path}: {field} must be an object, got {type(data.get(field)).__name__}")
    kind = data.get("kind", "search")
    if kind not in KINDS:
        raise RunFolderError(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return data["config"], data["environment"], kind


def _read_metrics(
    path: Path, *, brief: bool
) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    if not path.exists():
        return (), ()
    try:
        lines = reading.content(path, limits.METRICS).splitlines()
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from None
    rows: dict[str, dict[tuple[int, int], dict[str, Any]]] = {"step": {}, "epoch": {}}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (brief and line.startswith(STEP)):
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise RunFolderError(f"{path} line {number} must be JSON: {error}") from None
        if not isinstance(row, dict) or row.get("kind") not in tuple(rows):
            raise RunFolderError(f"{path} line {number}: kind must be 'step' or 'epoch', got {line[:40]!r}")
        for field in ("epoch", "step"):
            if type(row.get(field)) is not int:
                raise RunFolderError(
                    f"{path} line {number}: {field} must be an integer, got {repr(row.get(field))[:40]}"
                )
        for field, value in row.items():
            if type(value) is int and abs(value) > MOST:
                raise RunFolderError(
                    f"{path} line {number}: {field[:40]} must be a number up to {MOST:g},"
                    f" got one of {len(str(value))} digits"
                )
        rows[row["kind"]][row["epoch"], row["step"]] = row
    steps = () if brief else tuple(rows["step"].values())
    return steps, tuple(rows["epoch"].values())


def _read_alphas(path: Path) -> AlphaHistory | None:
    if not path.exists():
        return None
    arrays = read_arrays(path)
    for field, ndim in (("epoch", 1), ("operations", 1), ("edges", 2)):
        if field not in arrays:
            raise RunFolderError(f"{path} must hold an array {field!r}, got {sorted(arrays)}")
        if arrays[field].ndim != ndim:
            raise RunFolderError(f"{path}: {field} must have {ndim} dimensions, got {arrays[field].ndim}")
    if arrays["edges"].shape[1] != 2:
        raise RunFolderError(f"{path}: edges must have shape (E, 2), got {arrays['edges'].shape}")
    shape = (len(arrays["epoch"]), len(arrays["edges"]), len(arrays["operations"]))
    if 0 in shape:
        raise RunFolderError(f"{path} must hold at least one epoch, edge and operation, got {shape}")
    for field, size, most in (("edges", shape[1], MOST_EDGES), ("operations", shape[2], MOST_OPERATIONS)):
        if size > most:
            raise RunFolderError(f"{path} must hold at most {most} {field}, got {size}")
    tables: dict[str, AlphaTable] = {}
    for name in arrays:
        if f"{name}_mixing" not in arrays:
            continue
        for part in (name, f"{name}_mixing"):
            if arrays[part].shape != shape:
                raise RunFolderError(f"{path}: {part} must have shape {shape}, got {arrays[part].shape}")
            if arrays[part].dtype.kind not in "fiu":
                raise RunFolderError(f"{path}: {part} must hold real numbers, got {arrays[part].dtype}")
        if len(tables) == MOST_TABLES:
            raise RunFolderError(f"{path} must hold at most {MOST_TABLES} tables of alphas, got more")
        tables[name] = AlphaTable(arrays[name].astype(float), arrays[f"{name}_mixing"].astype(float))
    operations = tuple(str(operation) for operation in arrays["operations"])
    return AlphaHistory(
        tables, arrays["epoch"].astype(np.int64), operations, arrays["edges"].astype(np.int64)
    )
