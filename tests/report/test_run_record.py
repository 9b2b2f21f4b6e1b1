"""Reading run directories: all files, half-written ones, damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgenas.errors import GenotypeError, RunDirError
from sgenas.report import read_run
from sgenas.spaces.genotype import DARTS_OPERATIONS, Genotype

Make = Callable[..., Path]


def test_all_files_are_read(make_run: Make, genotype: Genotype) -> None:
    record = read_run(make_run(epochs=3))
    assert (record.kind, record.config["data"]["name"]) == ("search", "cifar10")
    assert [row["step"] for row in record.steps] == list(range(1, 31))
    assert [row["epoch"] for row in record.epochs] == [0, 1, 2]
    assert record.genotype == genotype
    assert record.choices is record.evaluation is None
    assert record.alphas is not None
    table = record.alphas.tables["reduce"]
    assert (table.options, table.weights.shape) == (DARTS_OPERATIONS, (4, 14, 8))
    np.testing.assert_allclose(table.weights.sum(axis=-1), 1.0)


def test_choices_of_a_module_are_tables_of_one_row(module_run: Path) -> None:
    record = read_run(module_run)
    assert record.choices == {"block.0": "conv5", "act": "gelu"}
    assert record.alphas is not None
    shapes = {name: (t.weights.shape, t.edges) for name, t in record.alphas.tables.items()}
    assert shapes == {"block.0": ((3, 1, 3), None), "act": ((3, 1, 2), None)}


def test_brief_reading_skips_steps_and_alphas(make_run: Make) -> None:
    path = make_run(epochs=2)
    (path / "alphas.npz").write_bytes(b"damaged")
    record = read_run(path, brief=True)
    assert (record.steps, len(record.epochs), record.alphas) == ((), 2, None)


def test_run_that_has_only_started_is_empty(make_run: Make) -> None:
    path = make_run(epochs=0)
    (path / "metrics.jsonl").unlink()
    record = read_run(path)
    assert (record.steps, record.epochs, record.alphas, record.genotype) == ((), (), None, None)


def test_half_written_last_line_is_skipped(make_run: Make) -> None:
    path = make_run(epochs=2)
    before = read_run(path)
    with (path / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "step", "note": "é'.encode()[:-1])
    after = read_run(path)
    assert (after.steps, after.epochs) == (before.steps, before.epochs)


def test_rows_repeated_after_a_resume_count_once(make_run: Make) -> None:
    path = make_run(epochs=2)
    again = {"kind": "epoch", "epoch": 1, "step": 20, "val_accuracy": 0.99}
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    record = read_run(path)
    assert [row["epoch"] for row in record.epochs] == [0, 1]
    assert record.epochs[-1] == again


@pytest.mark.parametrize(
    "line",
    [
        "{broken",
        "[1, 2]",
        '{"kind": "other"}',
        '{"kind": "step", "epoch": "0", "step": 1}',
        '{"kind": "step", "epoch": 0}',
    ],
)
def test_bad_line_is_named(make_run: Make, line: str) -> None:
    path = make_run(epochs=1)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines.insert(2, line)
    (path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(RunDirError, match=r"metrics\.jsonl line 3\b") as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 1}, "version"),
        ({"format": "other"}, "format"),
        ({"config": 3}, "config"),
        ({"environment": None}, "environment"),
        ({"kind": "lab"}, "kind"),
    ],
)
def test_bad_config_is_refused_in_one_line(make_run: Make, change: dict[str, Any], word: str) -> None:
    path = make_run()
    head = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(head))
    with pytest.raises(RunDirError, match=rf"config\.json.*{word} must be") as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_directory_without_a_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunDirError, match=r"holds no run|does not exist"):
        read_run(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_unreadable_alphas_are_named(make_run: Make, content: bytes) -> None:
    path = make_run()
    (path / "alphas.npz").write_bytes(content)
    with pytest.raises(RunDirError, match=r"alphas\.npz cannot be read"):
        read_run(path)


@pytest.mark.parametrize(
    "change",
    [
        {"normal_mixing": np.array([{}, None])},
        {"normal_mixing": np.zeros((4, 14, 7))},
        {"normal_mixing": np.full((4, 14, 8), "x")},
        {"epoch": np.zeros(0)},
        {"edges": np.zeros((14, 3))},
        {"edges": None},
        {"normal_options": None},
    ],
)
def test_bad_alphas_are_named(make_run: Make, change: dict[str, Any]) -> None:
    path = make_run(epochs=3)
    with np.load(path / "alphas.npz") as file:
        arrays = {name: file[name] for name in file.files} | change
    np.savez(path / "alphas.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(RunDirError, match=r"alphas\.npz"):
        read_run(path)


@pytest.mark.parametrize("name", ["choices.json", "evaluation.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"derived": {}, "random": [3], "choices": 3}'])
def test_bad_objects_are_named(make_run: Make, name: str, text: str) -> None:
    path = make_run()
    (path / name).write_text(text)
    with pytest.raises(RunDirError, match=name.replace(".", r"\.")):
        read_run(path)


def test_bad_genotype_is_named(make_run: Make) -> None:
    path = make_run()
    (path / "genotype.json").write_text("{}")
    with pytest.raises(GenotypeError, match=r"genotype\.json"):
        read_run(path)
