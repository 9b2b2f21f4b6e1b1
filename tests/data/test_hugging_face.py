"""hf:PLACE, from datasets that the tests write with the real library; skipped if it is not installed."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sgenas.data import load
from sgenas.errors import DataError


@pytest.fixture
def hf(tmp_path, monkeypatch):
    """The library, with its cache in tmp_path and no network."""
    state = random.getstate()
    library = pytest.importorskip("datasets")
    random.setstate(state)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    return library


@pytest.fixture
def made(hf, pictures):
    """made(labels, seed, label="kind", kind=..., extra=...) -> (dataset, its pictures (N, 4, 5, 3))."""

    def make(labels, seed=0, label="kind", kind=None, extra=None):
        arrays = pictures(len(labels), 4, 5, 3, seed=seed)
        columns = {"photo": [Image.fromarray(array) for array in arrays], label: labels, **(extra or {})}
        features = {"photo": hf.Image(), label: kind or hf.ClassLabel(names=["cat", "dog"])}
        features |= {name: hf.Value("int64") for name in extra or {}}
        return hf.Dataset.from_dict(columns, features=hf.Features(features)), arrays

    return make


def equal(images: torch.Tensor, arrays: np.ndarray) -> bool:
    return np.array_equal(images.numpy(), arrays.transpose(0, 3, 1, 2))


def refused(place, *words: object) -> None:
    with pytest.raises(DataError) as caught:
        load(f"hf:{place}")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def test_saved_splits(hf, made, tmp_path, rows_of):
    train, arrays = made([0, 1, 1, 0], seed=1, extra={"id": [7, 8, 9, 10]})
    test, test_arrays = made([1, 0], seed=2, extra={"id": [1, 2]})
    other, _ = made([1], seed=3, extra={"id": [3]})
    hf.DatasetDict({"train": train, "validation": other, "test": test}).save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path / 'saved'}")
    assert data.classes == ("cat", "dog")
    assert equal(data.train.images, arrays)
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    assert equal(data.test.images, test_arrays)
    assert data.test.labels.tolist() == [1, 0]
    assert data.origin == f"{tmp_path / 'saved'}, split train and test, columns photo and kind"
    assert data.notes == ("splits skipped: validation",)
    part = load(f"hf:{tmp_path / 'saved'}", train_images=2, test=False)
    assert part.test is None
    rows = rows_of(part.train.images, arrays)
    assert part.train.labels.tolist() == [[0, 1, 1, 0][row] for row in rows]


def test_one_split_with_selected_rows_and_numbered_classes(hf, made, tmp_path):
    every, arrays = made([0, 1, 2, 0, 1], label="target", kind=hf.Value("uint8"))
    every.select([4, 2, 0]).save_to_disk(tmp_path / "part")
    data = load(f"hf:{tmp_path / 'part'}")
    assert (data.classes, data.test) == (("0", "1", "2"), None)
    assert data.train.labels.tolist() == [1, 2, 0]
    assert equal(data.train.images, arrays[[4, 2, 0]])


@pytest.mark.parametrize("features", [True, False])
def test_a_directory_of_parquet_files_equals_the_parquet_source(features, hf, made, tmp_path):
    (tmp_path / "files").mkdir()
    parts = {"train": made([0, 1, 1], seed=1), "test": made([1], seed=2)}
    for name, (part, _) in parts.items():
        path = tmp_path / "files" / f"{name}-00000-of-00001.parquet"
        part.to_parquet(path)
        if not features:
            pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    data = load(f"hf:{tmp_path / 'files'}")
    assert data.classes == (("cat", "dog") if features else ("0", "1"))
    assert equal(data.train.images, parts["train"][1])
    assert equal(data.test.images, parts["test"][1])
    plain = load(f"parquet:{tmp_path / 'files'}")
    assert torch.equal(plain.train.images, data.train.images)
    assert torch.equal(plain.train.labels, data.train.labels)
    assert plain.classes == data.classes


def test_a_directory_of_image_files(hf, pictures, tmp_path):
    arrays = pictures(4, 4, 5, 3)
    names = ("train/cat/0", "train/cat/1", "train/dog/0", "test/dog/0")
    for name, array in zip(names, arrays, strict=True):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    data = load(f"hf:{tmp_path / 'photos'}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1]
    assert equal(data.train.images, arrays[:3])
    assert data.test.labels.tolist() == [1]


def test_ambiguous_columns_and_splits_are_refused(hf, made, tmp_path):
    made([0, 1], label="a", kind=hf.Value("int64"), extra={"b": [0, 1]})[0].save_to_disk(tmp_path / "two")
    refused(tmp_path / "two", "one label column", "['a', 'b']")
    hf.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(tmp_path / "text")
    refused(tmp_path / "text", "one image column", "got []")
    parts = {name: made([0, 1])[0] for name in ("small", "large", "test")}
    hf.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    refused(tmp_path / "splits", "a split named train", "['small', 'large', 'test']")


def test_class_names_as_labels_and_validation_as_test(hf, made, tmp_path):
    train, arrays = made(["dog", "cat", "dog"], seed=1, label="label", kind=hf.Value("string"))
    held_out, _ = made(["dog"], seed=2, label="label", kind=hf.Value("string"))
    hf.DatasetDict({"train": train, "validation": held_out}).save_to_disk(tmp_path / "named")
    data = load(f"hf:{tmp_path / 'named'}")
    assert (data.classes, data.train.labels.tolist(), data.test.labels.tolist()) == (("cat", "dog"), [1, 0, 1], [1])
    assert equal(data.train.images, arrays)
    assert [word in " ".join(data.notes) for word in ("alphabetical", "validation is the test set")] == [True, True]
    made([0.0, 1.0], label="label", kind=hf.Value("float32"))[0].save_to_disk(tmp_path / "floats")
    refused(tmp_path / "floats", "integers or class names, got float")


def test_broken_labels_and_images_are_refused(hf, made, tmp_path):
    for name, last, word in (("a", None, "null"), ("b", -1, "from 0 to 1, got -1")):
        made([0, 1, last])[0].save_to_disk(tmp_path / name)
        refused(tmp_path / name, word)
    (tmp_path / "c").mkdir()
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "gone.png"}] * 2, struct)
    pq.write_table(pa.table({"image": images, "label": pa.array([0, 1])}), tmp_path / "c" / "train.parquet")
    refused(tmp_path / "c", "train row 0 has no image bytes")


def test_missing_directories_and_package_are_refused(hf, tmp_path, monkeypatch):
    refused(tmp_path / "none", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "cannot be loaded")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused("anything", "pip install 'sgenas[hf]'")
