"""Reading run folders: what is there, what may be missing, and one line about every fault."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sgenas.errors import GenotypeError, RunFolderError
from sgenas.report import read_run
from sgenas.spaces.genotype import DARTS_OPERATIONS, Genotype


def test_reads_everything(make_run: Callable[..., Path], genotype: Genotype) -> None:
    record = read_run(make_run(epochs=3))
    assert record.config["data"]["name"] == "cifar10"
    assert record.environment["sgenas"] == "0.1.0"
    assert [row["step"] for row in record.steps] == list(range(1, 31))
    assert [row["epoch"] for row in record.epochs] == [0, 1, 2]
    assert record.genotype == genotype
    assert record.alphas is not None
    assert record.alphas.operations == DARTS_OPERATIONS
    assert list(record.alphas.tables) == ["normal", "reduce"]
    assert record.alphas.tables["reduce"].raw.shape == (4, 14, 8)
    np.testing.assert_allclose(record.alphas.tables["normal"].mixing.sum(axis=-1), 1.0)


def test_a_run_that_has_only_started(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=0)
    (path / "metrics.jsonl").unlink()
    record = read_run(path)
    assert (record.steps, record.epochs, record.alphas, record.genotype) == ((), (), None, None)


def test_half_written_last_line_is_skipped(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=2)
    before = read_run(path)
    with (path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "step", "note": "é'.encode()[:-1])
    after = read_run(path)
    assert (after.steps, after.epochs) == (before.steps, before.epochs)


def test_rows_written_again_after_a_resume_count_once(make_run: Callable[..., Path]) -> None:
    path = make_run(epochs=2)
    again = {"kind": "epoch", "epoch": 1, "step": 20, "val_accuracy": 0.99}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    record = read_run(path)
    assert [row["epoch"] for row in record.epochs] == [0, 1]
    assert record.epochs[-1] == again


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{broken", "must be JSON"),
        ("[1, 2]", "kind must be 'step' or 'epoch'"),
        ('{"kind": "other"}', "kind must be 'step' or 'epoch'"),
        ('{"kind": "step", "epoch": "0", "step": 1}', "epoch must be an integer, got '0'"),
        ('{"kind": "step", "epoch": 0}', "step must be an integer, got None"),
    ],
)
def test_bad_lines_are_named(make_run: Callable[..., Path], line: str, fault: str) -> None:
    path = make_run(epochs=1)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines.insert(2, line)
    (path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(RunFolderError, match=rf"metrics\.jsonl line 3\b.*{fault}") as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"nowhere does not exist"):
        read_run(tmp_path / "nowhere")


def test_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"format": "sgenas-run", "version": 1, "config": 3}', "config must be an object, got int"),
        (
            '{"format": "sgenas-run", "version": 1, "config": {}}',
            "environment must be an object, got NoneType",
        ),
    ],
)
def test_bad_config(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match=rf"config\.json.* {fault}") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_unreadable_alphas(make_run: Callable[..., Path], content: bytes) -> None:
    path = make_run()
    (path / "alphas.npz").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"alphas\.npz cannot be read"):
        read_run(path)


def test_single_array_instead_of_alphas(make_run: Callable[..., Path]) -> None:
    path = make_run()
    with (path / "alphas.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(RunFolderError, match=r"alphas\.npz cannot be read"):
        read_run(path)


def test_truncated_alphas(make_run: Callable[..., Path]) -> None:
    path = make_run()
    content = (path / "alphas.npz").read_bytes()
    (path / "alphas.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunFolderError, match=r"alphas\.npz cannot be read"):
        read_run(path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"normal": np.array([{}, None])}, "cannot be read"),
        ({"normal": np.zeros((4, 14, 7))}, r"normal must have shape \(4, 14, 8\), got \(4, 14, 7\)"),
        ({"normal": np.full((4, 14, 8), "x")}, "normal must hold real numbers"),
        ({"epoch": np.zeros((2, 2))}, "epoch must have 1 dimensions, got 2"),
        ({"epoch": np.zeros(0)}, "must hold at least one epoch"),
        ({"edges": np.zeros((14, 3))}, r"edges must have shape \(E, 2\)"),
        ({"edges": None}, "must hold an array 'edges'"),
    ],
)
def test_bad_alphas(make_run: Callable[..., Path], change: dict[str, np.ndarray | None], fault: str) -> None:
    path = make_run(epochs=3)
    with np.load(path / "alphas.npz") as file:
        arrays = {name: file[name] for name in file.files} | change
    np.savez(path / "alphas.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(RunFolderError, match=fault):
        read_run(path)


def test_bad_genotype_is_named(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "genotype.json").write_text("{}")
    with pytest.raises(GenotypeError, match=r"genotype\.json"):
        read_run(path)
