"""hf:PLACE, from data sets that the tests write with the real library; skipped where it is not installed."""

import random
import re

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
    """made(labels, seed, image="photo", label="kind", ...) -> (data set, its pictures (N, 4, 5, 3))."""

    def make(labels, seed=0, image="photo", label="kind", kind=None, extra=None):
        arrays = pictures(len(labels), 4, 5, 3, seed=seed)
        columns = {image: [Image.fromarray(array) for array in arrays], label: labels, **(extra or {})}
        features = {image: hf.Image(), label: kind or hf.ClassLabel(names=["cat", "dog"])}
        features |= {name: hf.Value("int64") for name in extra or {}}
        return hf.Dataset.from_dict(columns, features=hf.Features(features)), arrays

    return make


def equal(images: torch.Tensor, arrays: np.ndarray) -> bool:
    return np.array_equal(images.numpy(), arrays.transpose(0, 3, 1, 2))


def test_saved_to_disk_with_splits(hf, made, tmp_path):
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
    assert data.notes == ("splits passed over: validation",)
    part = load(f"hf:{tmp_path / 'saved'}", limit=2, test=False)
    assert part.test is None
    kept = [
        row
        for row in range(4)
        if any(np.array_equal(part.train.images[i].numpy(), arrays[row].transpose(2, 0, 1)) for i in range(2))
    ]
    assert [[0, 1, 1, 0][row] for row in kept] == part.train.labels.tolist()


def test_one_split_with_chosen_rows_and_numbered_classes(hf, made, tmp_path):
    every, arrays = made([0, 1, 2, 0, 1], label="target", kind=hf.Value("uint8"))
    every.select([4, 2, 0]).save_to_disk(tmp_path / "part")
    data = load(f"hf:{tmp_path / 'part'}")
    assert data.classes == ("0", "1", "2")
    assert data.train.labels.tolist() == [1, 2, 0]
    assert equal(data.train.images, arrays[[4, 2, 0]])
    assert data.test is None


@pytest.mark.parametrize("features", [True, False])
def test_a_folder_of_parquet_files(features, hf, made, tmp_path):
    """As the library writes them, and without what it adds about the columns."""
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
    assert data.train.labels.tolist() == [0, 1, 1]
    assert equal(data.test.images, parts["test"][1])
    # the reader of plain parquet files sees the same
    plain = load(f"parquet:{tmp_path / 'files'}")
    assert torch.equal(plain.train.images, data.train.images)
    assert plain.classes == data.classes


def test_a_folder_of_images(hf, put_images, tmp_path):
    arrays = put_images(tmp_path / "photos", {"train/cat": 2, "train/dog": 1, "test/dog": 1})
    data = load(f"hf:{tmp_path / 'photos'}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1]
    assert equal(data.train.images, np.stack(arrays[:3]))
    assert len(data.test) == 1


@pytest.fixture
def put_images(pictures):
    def put(folder, counts):
        arrays = list(pictures(sum(counts.values()), 4, 5, 3))
        rest = iter(arrays)
        for name, count in counts.items():
            (folder / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(next(rest)).save(folder / name / f"{index}.png")
        return arrays

    return put


def refused(spec, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(spec)


def test_columns_that_are_not_clear_are_listed(hf, made, tmp_path):
    place = tmp_path / "saved"
    spec = f"hf:{place}"
    every, _ = made([0, 1], label="a", kind=hf.Value("int64"), extra={"b": [0, 1]})
    every.save_to_disk(place)
    refused(
        spec,
        f"data set {spec} must have one label column (named label, labels, fine_label, class, or the only"
        " one of its type), got ['a', 'b'] among ['photo', 'a', 'b']",
    )
    hf.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(tmp_path / "text")
    refused(
        f"hf:{tmp_path / 'text'}",
        f"data set hf:{tmp_path / 'text'} must have one image column (named img, image, or the only one of"
        " its type), got [] among ['text', 'label']",
    )


def test_splits_that_are_not_clear(hf, made, tmp_path):
    parts = {name: made([0, 1])[0] for name in ("small", "large", "test")}
    hf.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    spec = f"hf:{tmp_path / 'saved'}"
    refused(
        spec,
        f"{spec} must have a split named train, or one that is no test, got ['small', 'large', 'test']",
    )


def test_broken_labels_and_images(hf, made, tmp_path):
    every, _ = made([0, 1, None])
    every.save_to_disk(tmp_path / "a")
    refused(f"hf:{tmp_path / 'a'}", f"column 'kind' of hf:{tmp_path / 'a'} must have no null label, got 1")
    every, _ = made([0, 1, -1])
    every.save_to_disk(tmp_path / "b")
    refused(
        f"hf:{tmp_path / 'b'}",
        f"training labels of hf:{tmp_path / 'b'} must be from 0 to 1, got -1 (1 such labels)",
    )
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "c").mkdir()
    images = pa.array([{"bytes": None, "path": "gone.png"}] * 2, struct)
    pq.write_table(pa.table({"image": images, "label": pa.array([0, 1])}), tmp_path / "c" / "train.parquet")
    refused(f"hf:{tmp_path / 'c'}", f"hf:{tmp_path / 'c'} train row 0 holds no image bytes")


def test_what_is_not_there(hf, tmp_path):
    refused(f"hf:{tmp_path / 'none'}", f"folder {tmp_path / 'none'} does not exist")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"^hf:{tmp_path / 'empty'} cannot be loaded \(.*\)$"):
        load(f"hf:{tmp_path / 'empty'}")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused("hf:anything", "hf:anything needs the package datasets: pip install 'sgenas[hf]'")
