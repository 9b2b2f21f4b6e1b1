"""Parquet files of encoded images with integer labels, in the layout of Hugging Face data sets or plainer."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sgenas import limits
from sgenas.data.columns import find_column
from sgenas.data.decode import Encoded, image_data
from sgenas.data.images import ImageData, Pick, numbered_classes
from sgenas.data.parquet_pages import RowGroup, largest_page, row_groups
from sgenas.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_ROWS = 256
"""Read at a time."""
TEST_WORDS = {"test", "val", "valid", "validation"}


class _File(NamedTuple):
    path: Path
    image: str
    labels: Tensor
    names: tuple[str, ...] | None
    groups: list[RowGroup]


def read_parquet(
    name: str, paths: str, pick: Pick, with_test: bool = True, image_size: int | None = None
) -> ImageData:
    """The images in `paths`, comma-separated files and folders of `*.parquet`, in the order given.

    Files with `test`, `val`, `valid` or `validation` as a word of their name are the test set. `pick` chooses
    the training images to decode. image_size: as in `layout_of`. Raises DataError for what is missing,
    ambiguous or broken.
    """
    files = [_open(path) for path in _find(paths)]
    train = [file for file in files if not _is_test(file.path)]
    test = [file for file in files if with_test and _is_test(file.path)]
    if not train:
        raise DataError(f"{name} has no training file: each file name says test or validation")
    classes = _class_names(name, files)
    labels = torch.cat([file.labels for file in train])
    chosen = pick(labels, classes)

    train_images = _encoded(train, chosen)
    test_labels = torch.cat([file.labels for file in test]) if test else torch.empty(0)
    test_images = _encoded(test, torch.arange(len(test_labels)))
    return image_data(
        name,
        (train_images, labels[chosen]),
        (test_images, test_labels),
        classes,
        image_size=image_size,
        origin=_named([file.path for file in train + test]),
    )


def _find(paths: str) -> list[Path]:
    found: list[Path] = []
    for part in paths.split(","):
        if not part.strip():
            raise DataError(f"parquet paths must not be empty, got {paths!r}")
        path = Path(part.strip()).expanduser()
        if path.is_dir():
            inside = sorted(found for found in path.glob("*.parquet") if found.is_file())
            if not inside:
                raise DataError(f"folder {path} holds no .parquet file")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"parquet file or folder {path} does not exist")
    return found


def _named(paths: list[Path]) -> str:
    """Some files in words."""
    if len(paths) <= 3:
        return ", ".join(str(path) for path in paths)
    return f"{len(paths)} files, {paths[0]} to {paths[-1]}"


def _is_test(path: Path) -> bool:
    return not TEST_WORDS.isdisjoint(re.split(r"[^a-z]+", path.stem.lower()))


def _open(path: Path) -> _File:
    """Schema and labels of a file; the images stay on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(path):
        with path.open("rb") as content:
            groups = row_groups(content)
        _check_rows(groups)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if len(set(schema.names)) < len(schema.names):
                raise ValueError("its columns must have a name each")
            image = _column(path, "image", schema, _holds_bytes)
            label = _column(path, "label", schema, pa.types.is_integer)
            _largest_page(path, groups, file.schema, label)
            column = file.read(columns=[label]).column(label)
    if column.null_count:
        raise DataError(f"column {label!r} of {path} must have no null label, got {column.null_count}")
    labels = torch.tensor(column.to_numpy().astype("int64"))
    return _File(path, image, labels, _feature_names(schema, label), groups)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what is wrong with the file `path` into a DataError that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"parquet file {path} cannot be read: {' '.join(str(error).split())}") from None


def _check_rows(groups: list[RowGroup]) -> None:
    """Raises ValueError for more rows than can be counted: few bytes may stand for any number of labels."""
    parts = [group.rows for group in groups]
    if not 0 <= sum(parts) <= limits.IMAGES or min(parts, default=0) < 0:
        raise ValueError(f"it must have at most {limits.IMAGES:,} rows, got {sum(parts):,}")


def _largest_page(path: Path, groups: list[RowGroup], schema: "pq.ParquetSchema", column: str) -> int:
    """`largest_page` of the column of that name and of all that is inside of it."""
    names = [schema.column(index).path for index in range(len(schema))]
    inside = [index for index, name in enumerate(names) if f"{name}.".startswith(f"{column}.")]
    with path.open("rb") as file:
        return largest_page(file, groups, inside, column)


def _holds_bytes(kind: "pa.DataType") -> bool:
    """Whether a column of this type can hold encoded images: binary, or a struct with binary `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        kind = kind.field(index).type if index >= 0 else pa.null()
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column(path: Path, role: str, schema: "pa.Schema", fits: Any) -> str:
    """The column for `role`, of a type that `fits`."""
    fitting = [field.name for field in schema if fits(field.type)]
    return find_column(f"parquet file {path}", role, fitting, schema.names)


def _feature_names(schema: "pa.Schema", label: str) -> tuple[str, ...] | None:
    """Class names from the metadata that Hugging Face's `datasets` writes; None where there are none."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _class_names(name: str, files: list[_File]) -> tuple[str, ...]:
    named = [file for file in files if file.names is not None]
    for file in named:
        if file.names != named[0].names:
            raise DataError(f"class names in {file.path} must be those in {named[0].path}, got others")
    if named and named[0].names is not None:
        return named[0].names
    return numbered_classes(name, [file.labels for file in files])


def _encoded(files: list[_File], chosen: Tensor) -> list[Encoded]:
    """The encoded images at the ascending indices `chosen`, counted through all `files`."""
    images: list[Encoded] = []
    start = 0
    for file in files:
        end = start + len(file.labels)
        rows = chosen[(chosen >= start) & (chosen < end)] - start
        with _reading(file.path):
            images += _rows(file, rows)
        start = end
    return images


def _rows(source: _File, rows: Tensor) -> list[Encoded]:
    """The encoded images of a file in the ascending `rows`.

    A value may be written once and stand in every row, so that a file says little about what its rows come
    to: a few rows are read at a time, and what has been kept is added up.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, column, groups = source.path, source.image, source.groups
    images: list[Encoded] = []
    most = max(limits.PARQUET, limits.UNPACKED * path.stat().st_size)
    kept = first = 0
    with pq.ParquetFile(path) as file:
        if pa.types.is_struct(file.schema_arrow.field(column).type):
            # what else stands beside them may be lists of any length
            column = f"{column}.bytes"
        # no value is larger than its page
        size = max(1, min(MOST_ROWS, limits.PAGE // max(1, _largest_page(path, groups, file.schema, column))))
        for index, group in enumerate(groups):
            if not ((rows >= first) & (rows < first + group.rows)).any():
                first += group.rows
                continue
            for batch in file.iter_batches(size, row_groups=[index], columns=[column]):
                inside = rows[(rows >= first) & (rows < first + len(batch))]
                values = batch.column(0).take(pa.array((inside - first).numpy())).to_pylist()
                for row, value in zip(inside.tolist(), values, strict=True):
                    content = _content(f"{path} row {row}", value)
                    images.append(Encoded(f"{path} row {row}", content))
                    kept += len(content)
                if kept > most:
                    raise ValueError(f"its images must have at most {most:,} bytes, got {kept:,}")
                first += len(batch)
    return images


def _content(name: str, value: Any) -> bytes:
    content: bytes | None = value["bytes"] if isinstance(value, dict) else value
    if content is None:
        raise DataError(f"{name} holds no image bytes")
    return content
