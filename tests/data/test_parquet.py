"""parquet:PATHS, from files that the tests write."""

import json
import os
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sgenas.data import load
from sgenas.errors import DataError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def write(tmp_path, encode, pictures):
    """write(name, labels, ...) -> the pictures (N, 4, 5, 3) it has put into tmp_path/name as PNG."""

    def make(name, labels, image="img", label="label", kind=STRUCT, names=None, seed=0, extra=None, replace=None):
        arrays = pictures(len(labels), 4, 5, 3, seed=seed)
        encoded = [encode(array) for array in arrays]
        for row, content in (replace or {}).items():
            encoded[row] = content
        items = [{"bytes": item, "path": None} for item in encoded] if kind is STRUCT else encoded
        column = labels if isinstance(labels, pa.Array) else pa.array(labels, pa.int64())
        columns = {image: pa.array(items, kind), label: column, **(extra or {})}
        table = pa.table(columns)
        if names is not None:
            features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / name, row_group_size=2)
        return arrays

    return make


def refused(spec, *words: object) -> None:
    with pytest.raises(DataError) as caught:
        load(f"parquet:{spec}")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def equal(images: torch.Tensor, arrays: np.ndarray) -> bool:
    return np.array_equal(images.numpy(), arrays.transpose(0, 3, 1, 2))


def test_a_directory_of_train_and_test_files(tmp_path, write):
    parts = [write("a-train-0.parquet", [0, 1, 1], seed=1), write("b.parquet", [1, 0], seed=2)]
    test = write("a-test-0.parquet", [1, 1], seed=3)
    os.mkfifo(tmp_path / "pipe.parquet")
    data = load(f"parquet:{tmp_path}")
    assert (data.horizontal_flip, data.classes) == (True, ("0", "1"))
    assert data.train.labels.tolist() == [0, 1, 1, 1, 0]
    assert data.test.labels.tolist() == [1, 1]
    assert equal(data.train.images, np.concatenate(parts))
    assert equal(data.test.images, test)
    assert load(f"parquet:{tmp_path}", test=False).test is None


@pytest.mark.parametrize(
    ("name", "is_test"),
    [
        ("test.parquet", True),
        ("x_val.parquet", True),
        ("valid-00000-of-00001.parquet", True),
        ("cifar.TEST.parquet", True),
        ("test2.parquet", True),
        ("latest.parquet", False),
        ("interval.parquet", False),
    ],
)
def test_words_of_the_name_make_a_test_file(tmp_path, write, name, is_test):
    write("a.parquet", [0, 1])
    write(name, [0, 1])
    data = load(f"parquet:{tmp_path}")
    assert (data.test is not None) == is_test
    assert len(data.train) == (2 if is_test else 4)


def test_files_keep_the_order_given(tmp_path, write):
    second, first = write("a.parquet", [0, 1], seed=1), write("b.parquet", [1, 0], seed=2)
    data = load(f"parquet:{tmp_path / 'b.parquet'}, {tmp_path / 'a.parquet'}")
    assert equal(data.train.images, np.concatenate([first, second]))


@pytest.mark.parametrize(
    ("image", "label", "kind"),
    [
        ("image", "labels", STRUCT),
        ("img", "fine_label", pa.binary()),
        ("picture", "class", pa.large_binary()),
        ("photo", "species", STRUCT),
        ("bytes", "digit", pa.binary()),
    ],
)
def test_columns_are_found_by_name_or_by_type(tmp_path, write, image, label, kind):
    arrays = write("a.parquet", [0, 1, 1], image=image, label=label, kind=kind)
    data = load(f"parquet:{tmp_path}")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert equal(data.train.images, arrays)


def test_a_known_name_wins_over_other_columns_of_its_type(tmp_path, write):
    extra = {"coarse_label": [5, 5, 5], "thumbnail": pa.array([b"x"] * 3, pa.binary())}
    arrays = write("a.parquet", [0, 1, 1], label="fine_label", extra=extra)
    data = load(f"parquet:{tmp_path}")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert equal(data.train.images, arrays)


def test_fields_beside_the_bytes_are_not_read(tmp_path, encode, pictures):
    arrays = pictures(2, 4, 5, 3)
    images = [{"bytes": encode(array), "boxes": [[1, 2]] * 3} for array in arrays]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "a.parquet")
    assert equal(load(f"parquet:{tmp_path}").train.images, arrays)


def test_class_names_come_from_the_metadata(tmp_path, write):
    write("a.parquet", [0, 1, 2], names=["cat", "dog", "eel"])
    assert load(f"parquet:{tmp_path}").classes == ("cat", "dog", "eel")
    write("a.parquet", [0, 1], names=["cat", "dog", "eel"])
    refused(tmp_path, "'eel'", "no training image")
    write("a.parquet", [0, 1, 3], names=["cat", "dog"])
    refused(tmp_path, "from 0 to 1, got 3")
    write("a.parquet", [0, 1], names=["cat", "dog"])
    write("b.parquet", [0, 1], names=["dog", "cat"])
    refused(tmp_path, "b.parquet", "class names")


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": null}', '{"info": {"features": {"label": {}}}}'])
def test_other_metadata_is_ignored(tmp_path, write, metadata):
    write("a.parquet", [0, 1, 2])
    table = pq.read_table(tmp_path / "a.parquet").replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load(f"parquet:{tmp_path}").classes == ("0", "1", "2")


def test_train_images_decodes_only_the_sample(tmp_path, write, rows_of):
    labels = [index % 2 for index in range(20)]
    arrays = write("a.parquet", labels)
    data = load(f"parquet:{tmp_path}", train_images=6, seed=4)
    rows = rows_of(data.train.images, arrays)
    assert rows == sorted(rows)
    assert data.train.labels.tolist() == [labels[row] for row in rows]
    assert sorted(data.train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    write("a.parquet", labels, replace={row: b"broken" for row in range(20) if row not in rows})
    assert torch.equal(load(f"parquet:{tmp_path}", train_images=6, seed=4).train.images, data.train.images)


@pytest.mark.parametrize("size", range(2, 13))
def test_a_sample_across_files_keeps_labels(tmp_path, write, rows_of, size):
    labels = [[0, 1, 0, 1, 0], [1, 0, 1], [1, 1, 0, 0]]
    arrays = [write(f"{index}.parquet", part, seed=index) for index, part in enumerate(labels)]
    data = load(f"parquet:{tmp_path}", train_images=size)
    rows = rows_of(data.train.images, np.concatenate(arrays))
    assert len(set(rows)) == size
    flat = [label for part in labels for label in part]
    assert data.train.labels.tolist() == [flat[row] for row in rows]


def test_missing_and_damaged_files_are_named(tmp_path, write):
    refused(tmp_path, tmp_path, "must be a .parquet file or a directory")
    refused(tmp_path / "none", tmp_path / "none")
    write("a.parquet", [0, 1])
    refused(f"{tmp_path}/a.parquet,", "must be a .parquet file")
    write("b-test.parquet", [0, 1])
    refused(tmp_path / "b-test.parquet", "no training file")
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (b"", b"PAR1 no such thing", whole[:-20], whole[: len(whole) // 2]):
        (tmp_path / "a.parquet").write_bytes(content)
        refused(tmp_path / "a.parquet", "a.parquet cannot be read")


def test_broken_rows_are_named(tmp_path, write, encode, pictures):
    path = tmp_path / "a.parquet"
    for row, content, word in (
        (2, b"no image", "cannot be decoded"),
        (3, None, "no image bytes"),
        (1, encode(pictures(1, 7, 8, 3)[0]), "set image_size"),
    ):
        write("a.parquet", [0, 1, 0, 1], replace={row: content})
        refused(tmp_path, f"{path} row {row}", word)


def test_unfit_labels_are_refused(tmp_path, write):
    write("a.parquet", [0, None, 1])
    refused(tmp_path, "a.parquet", "null")
    write("a.parquet", [0, 2, 2])
    refused(tmp_path, "'1'", "no training image")
    write("a.parquet", [0, 10**9])
    refused(tmp_path, "below 2")
    write("a.parquet", [0, 1])
    write("test.parquet", [-1, -1])
    refused(tmp_path, "from 0 to 1, got -1")


def test_ambiguous_or_missing_columns_are_refused(tmp_path, write):
    path = tmp_path / "a.parquet"
    write("a.parquet", [0, 1], label="one", extra={"two": [1, 0]})
    refused(tmp_path, path, "one label column", "['one', 'two']")
    pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), path)
    refused(tmp_path, path, "one image column", "got []")


TEXT = ["dog", "cat", "eel", "cat", "dog"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXT),
        pa.array(TEXT, pa.large_string()),
        pa.array(TEXT).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 1, 0], pa.int8()), pa.array(["dog", "cat", "eel", "unused"])),
    ],
)
def test_class_names_as_labels_are_classes_in_alphabetical_order(tmp_path, write, column):
    arrays = write("train.parquet", column, extra={"id": [5, 6, 7, 8, 9]})
    write("test.parquet", pa.array(["eel", "cat"]), extra={"id": [1, 2]})
    data = load(f"parquet:{tmp_path}")
    assert data.classes == ("cat", "dog", "eel")
    assert data.train.labels.tolist() == [1, 0, 2, 0, 1]
    assert data.test.labels.tolist() == [2, 0]
    assert equal(data.train.images, arrays)
    assert "alphabetical" in data.notes[0]
    write("test.parquet", pa.array(["fox", "cat"]))
    refused(tmp_path, "'fox'", "no training image")
    write("test.parquet", [0, 1])
    refused(tmp_path, "test.parquet", "must be class names")


def test_class_names_across_files_are_one_list(tmp_path, write):
    write("0.parquet", pa.array(["b", "caf\u00e9"]), label="Label")
    write("1.parquet", pa.array(["c", "b", "a", "cafe\u0301"]), label="Label")
    data = load(f"parquet:{tmp_path}")
    assert data.classes == ("a", "b", "c", "caf\u00e9")
    assert data.train.labels.tolist() == [1, 3, 2, 1, 0, 3]


def test_booleans_and_integer_categories_are_labels(tmp_path, write):
    write("a.parquet", pa.array([True, False, True]))
    data = load(f"parquet:{tmp_path}")
    assert (data.classes, data.train.labels.tolist()) == (("false", "true"), [1, 0, 1])
    write("a.parquet", pa.array([7, 0, 1]).dictionary_encode().take(pa.array([2, 1, 2])))
    assert load(f"parquet:{tmp_path}").train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("column", "word"),
    [
        (pa.array([0.0, 1.0]), "integers or class names, got double"),
        (pa.array([[0, 1], [1, 0]]), "integers or class names, got list"),
        (pa.array(["a", None]), "null"),
        (pa.array([True, None]), "null"),
        (pa.array(["cat", "dog\r"]), "white space"),
        (pa.array(["cat", ""]), "white space"),
        (pa.array([-1, 1]), "without a label"),
    ],
)
def test_other_label_columns_are_refused_by_type(tmp_path, write, column, word):
    write("a.parquet", column, extra={"id": [0, 1]})  # which must not be taken for the labels
    refused(tmp_path, "a.parquet" if "label" not in word else "labels", word)


def test_labels_that_start_at_1_are_lowered(tmp_path, write):
    write("train.parquet", [3, 1, 2])
    write("test.parquet", [2, 3])
    data = load(f"parquet:{tmp_path}")
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([2, 0, 1], [1, 2])
    assert data.classes == ("1", "2", "3")
    assert "label 3 is class 2" in data.notes[0]
    write("train.parquet", [4, 1, 2])
    write("test.parquet", [1, 1])
    refused(tmp_path, "'3'", "no training image")


def test_files_named_test_go_before_files_named_val(tmp_path, write):
    write("train.parquet", [0, 1], seed=1)
    arrays = write("val.parquet", [0, 1], seed=2)
    data = load(f"parquet:{tmp_path}")
    assert equal(data.test.images, arrays)
    assert data.notes == ("split val is the test set, as there is no test split",)
    arrays = write("test.parquet", [1, 1, 0], seed=3)
    data = load(f"parquet:{tmp_path}")
    assert equal(data.test.images, arrays)
    assert data.notes == ("splits skipped: val",)


def test_a_directory_of_several_datasets_is_refused(tmp_path, write):
    for name in ("cifar10-train", "cifar10-test", "cifar100-train-0"):
        write(f"{name}.parquet", [0, 1])
    refused(tmp_path, "several datasets (cifar10, cifar100)", "separated by commas")
    assert len(load(f"parquet:{tmp_path}/cifar10-train.parquet,{tmp_path}/cifar100-train-0.parquet").train) == 4
    write("other-train.parquet", [0, 1], label="fine_label")
    files = f"{tmp_path}/cifar10-train.parquet,{tmp_path}/other-train.parquet"
    refused(files, "other-train.parquet", "got fine_label")


def test_numbers_before_the_split_are_parts_of_one_dataset(tmp_path, write):
    for name in ("mine-0-train", "mine-1-train", "mine-test-00000-of-00001", "00-train"):
        write(f"{name}.parquet", [0, 1])
    assert len(load(f"parquet:{tmp_path}").train) == 6


def test_hidden_parquet_files_are_skipped(tmp_path, write):
    write("A.PARQUET", [0, 1])
    (tmp_path / "._A.PARQUET").write_bytes(b"AppleDouble")
    data = load(f"parquet:{tmp_path}")
    assert (len(data.train), data.notes) == (2, ("files skipped: 1 hidden",))


def test_rotation_and_transparency_are_honored_in_parquet(tmp_path, write, pictures):
    pixels = pictures(1, 5, 4, 4)[0]
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    write("a.parquet", [0, 1], replace={1: buffer.getvalue()})
    color, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    expected = np.rot90(np.round((color * alpha + 255 * (255 - alpha)) / 255), k=-1)
    data = load(f"parquet:{tmp_path}")
    assert np.array_equal(data.train.images[1].numpy(), expected.transpose(2, 0, 1))
    assert len(data.notes) == 1
