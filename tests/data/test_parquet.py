"""parquet:PATHS, from files that the tests write."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sgenas.data import load
from sgenas.errors import DataError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def write(tmp_path, encode, pictures):
    """write(name, labels, ...) -> the pictures (N, 4, 5, 3) it has put into tmp_path/name as PNG."""

    def make(
        name: str,
        labels,
        image="img",
        label="label",
        struct=True,
        names=None,
        seed=0,
        extra=None,
        replace=None,
    ) -> np.ndarray:
        arrays = pictures(len(labels), 4, 5, 3, seed=seed)
        encoded = [encode(array) for array in arrays]
        for row, content in (replace or {}).items():
            encoded[row] = content
        values = (
            pa.array([{"bytes": item, "path": None} for item in encoded], STRUCT)
            if struct
            else pa.array(encoded, pa.large_binary() if struct is None else pa.binary())
        )
        table = pa.table({image: values, label: pa.array(labels, pa.int64()), **(extra or {})})
        if names is not None:
            features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        pq.write_table(table, tmp_path / name, row_group_size=2)
        return arrays

    return make


def refused(spec: str | Path, message: str, **arguments) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(f"parquet:{spec}", **arguments)


def equal(images: torch.Tensor, arrays: np.ndarray) -> bool:
    return np.array_equal(images.numpy(), arrays.transpose(0, 3, 1, 2))


def test_a_folder_with_train_and_test_files(tmp_path, write):
    parts = [write("a-train-0.parquet", [0, 1, 1], seed=1), write("b.parquet", [1, 0], seed=2)]
    test = write("a-test-0.parquet", [1, 1], seed=3)
    data = load(f"parquet:{tmp_path}")
    assert data.mirror
    assert data.classes == ("0", "1")
    assert data.train.labels.tolist() == [0, 1, 1, 1, 0]
    assert data.test.labels.tolist() == [1, 1]
    assert equal(data.train.images, np.concatenate(parts))
    assert equal(data.test.images, test)


@pytest.mark.parametrize(
    ("name", "is_test"),
    [
        ("test.parquet", True),
        ("x_val.parquet", True),
        ("valid-00000-of-00001.parquet", True),
        ("validation-0.parquet", True),
        ("cifar.TEST.parquet", True),
        ("test2.parquet", True),
        ("latest.parquet", False),
        ("interval.parquet", False),
        ("contest-0.parquet", False),
    ],
)
def test_words_of_the_name_make_a_test_file(tmp_path, write, name, is_test):
    write("a.parquet", [0, 1])
    write(name, [0, 1])
    data = load(f"parquet:{tmp_path}")
    assert (data.test is not None) == is_test
    assert len(data.train) == (2 if is_test else 4)


def test_files_in_the_order_given(tmp_path, write):
    second, first = write("a.parquet", [0, 1], seed=1), write("b.parquet", [1, 0], seed=2)
    data = load(f"parquet:{tmp_path / 'b.parquet'}, {tmp_path / 'a.parquet'}")
    assert equal(data.train.images, np.concatenate([first, second]))
    assert data.test is None


@pytest.mark.parametrize(
    ("image", "label", "struct"),
    [
        ("image", "labels", True),
        ("img", "fine_label", False),
        ("picture", "class", None),
        ("photo", "species", True),
        ("bytes", "digit", False),
    ],
)
def test_columns_by_name_or_by_type(tmp_path, write, image, label, struct):
    arrays = write("a.parquet", [0, 1, 1], image=image, label=label, struct=struct)
    data = load(f"parquet:{tmp_path}")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert equal(data.train.images, arrays)


def test_a_known_name_wins_over_other_columns_of_its_type(tmp_path, write):
    extra = {"coarse_label": [5, 5, 5], "thumbnail": pa.array([b"x"] * 3, pa.binary())}
    arrays = write("a.parquet", [0, 1, 1], label="fine_label", extra=extra)
    data = load(f"parquet:{tmp_path}")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert equal(data.train.images, arrays)


def test_class_names_from_the_metadata(tmp_path, write):
    write("a.parquet", [0, 1, 2], names=["cat", "dog", "eel"])
    assert load(f"parquet:{tmp_path}").classes == ("cat", "dog", "eel")
    write("a.parquet", [0, 1], names=["cat", "dog", "eel"])
    refused(tmp_path, f"class 'eel' has no training image in parquet:{tmp_path}")
    write("a.parquet", [0, 1, 3], names=["cat", "dog"])
    refused(tmp_path, f"training labels of parquet:{tmp_path} must be from 0 to 1, got 3 (1 such labels)")


@pytest.mark.parametrize("metadata", ["{", "[]", '{"info": null}', '{"info": {"features": {"label": {}}}}'])
def test_other_metadata_is_passed_over(tmp_path, write, metadata):
    write("a.parquet", [0, 1, 2])
    table = pq.read_table(tmp_path / "a.parquet").replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load(f"parquet:{tmp_path}").classes == ("0", "1", "2")


def test_limit_decodes_only_what_it_keeps(tmp_path, write):
    labels = [index % 2 for index in range(20)]
    arrays = write("a.parquet", labels)
    data = load(f"parquet:{tmp_path}", limit=6, seed=4)
    assert sorted(data.train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    rows = [
        next(row for row in range(20) if np.array_equal(arrays[row].transpose(2, 0, 1), image.numpy()))
        for image in data.train.images
    ]
    assert rows == sorted(rows)
    assert data.train.labels.tolist() == [labels[row] for row in rows]
    write("a.parquet", labels, replace={row: b"broken" for row in range(20) if row not in rows})
    assert torch.equal(load(f"parquet:{tmp_path}", limit=6, seed=4).train.images, data.train.images)


def test_limit_across_files(tmp_path, write):
    labels = [[0, 1, 0, 1, 0], [1, 0, 1], [1, 1, 0, 0]]
    arrays = np.concatenate(
        [write(f"{index}.parquet", part, seed=index) for index, part in enumerate(labels)]
    )
    flat = [label for part in labels for label in part]
    for size in range(2, 13):
        data = load(f"parquet:{tmp_path}", limit=size)
        rows = [
            next(row for row in range(12) if np.array_equal(arrays[row].transpose(2, 0, 1), image.numpy()))
            for image in data.train.images
        ]
        assert len(set(rows)) == size
        assert data.train.labels.tolist() == [flat[row] for row in rows]


def test_refuses_missing_files(tmp_path, write):
    refused(tmp_path, f"folder {tmp_path} holds no .parquet file")
    refused(tmp_path / "none", f"parquet file or folder {tmp_path / 'none'} does not exist")
    write("a.parquet", [0, 1])
    refused(f"{tmp_path}/a.parquet,", f"parquet paths must not be empty, got '{tmp_path}/a.parquet,'")
    write("b-test.parquet", [0, 1])
    spec = f"{tmp_path}/b-test.parquet"
    refused(spec, f"parquet:{spec} has no training file: each file name says test or validation")


def test_refuses_a_broken_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no such thing")
    with pytest.raises(DataError, match=r"^parquet file .*a\.parquet cannot be read: [^\n]+$"):
        load(f"parquet:{tmp_path}")


def test_refuses_broken_rows(tmp_path, write, encode, pictures):
    path = tmp_path / "a.parquet"
    write("a.parquet", [0, 1, 0, 1], replace={2: b"no image"})
    refused(tmp_path, f"{path} row 2 cannot be decoded: not a PNG, JPEG, BMP, WEBP image")
    write("a.parquet", [0, 1, 0, 1], replace={3: None})
    refused(tmp_path, f"{path} row 3 holds no image bytes")
    write("a.parquet", [0, 1, 0, 1], replace={1: encode(pictures(1, 7, 8, 3)[0])})
    refused(
        tmp_path,
        f"{path} row 1 must have the size of {path} row 0, 5 x 4, got 8 x 7"
        " (an image size brings all to one)",
    )


def test_refuses_unfit_labels(tmp_path, write):
    write("a.parquet", [0, None, 1])
    refused(tmp_path, f"column 'label' of {tmp_path / 'a.parquet'} must have no null label, got 1")
    write("a.parquet", [0, 2, 2])
    refused(tmp_path, f"class '1' has no training image in parquet:{tmp_path}")
    write("a.parquet", [0, 1])
    write("test.parquet", [-1, -1])
    refused(tmp_path, f"test labels of parquet:{tmp_path} must be from 0 to 1, got -1 (2 such labels)")


def test_refuses_ambiguous_or_missing_columns(tmp_path, write):
    path = tmp_path / "a.parquet"
    write("a.parquet", [0, 1], label="one", extra={"two": [1, 0]})
    refused(
        tmp_path,
        f"parquet file {path} must have one label column (named label, labels, fine_label, class, or the"
        " only one of its type), got ['one', 'two'] among ['img', 'one', 'two']",
    )
    pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), path)
    refused(
        tmp_path,
        f"parquet file {path} must have one image column (named img, image, or the only one of its type),"
        " got [] among ['label', 'text']",
    )


def test_refuses_files_with_other_class_names(tmp_path, write):
    write("a.parquet", [0, 1], names=["cat", "dog"])
    write("b.parquet", [0, 1], names=["dog", "cat"])
    refused(
        tmp_path,
        f"class names in {tmp_path / 'b.parquet'} must be those in {tmp_path / 'a.parquet'}, got others",
    )


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_refuses_encodings_of_any_number_of_values(tmp_path, encode, pictures, encoding, version):
    path = tmp_path / "train.parquet"
    table = pa.table({"image": [encode(array) for array in pictures(2, 4, 5, 3)], "label": [0, 1]})
    encodings = {"image": encoding, "label": "PLAIN"}
    pq.write_table(table, path, use_dictionary=False, column_encoding=encodings, data_page_version=version)
    reason = f"its pages must have another encoding than {encoding}: write it anew"
    refused(path, f"parquet file {path} cannot be read: {reason}")


def test_only_the_bytes_of_an_image_are_read(tmp_path, encode, pictures):
    """And nothing that stands beside them."""
    path, arrays = tmp_path / "train.parquet", pictures(2, 4, 5, 3)
    images = [{"bytes": encode(array), "boxes": [[1, 2]] * 3} for array in arrays]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), path)
    assert equal(load(f"parquet:{path}").train.images, arrays)


def test_a_pipe_in_a_folder_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / "train.parquet")
    refused(tmp_path, f"folder {tmp_path} holds no .parquet file")
