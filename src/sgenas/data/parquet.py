"""``parquet:FILES_OR_DIR``: encoded images with integer labels, read with pyarrow."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sgenas.data.decode import Encoded, decoded
from sgenas.data.images import ImageData, numbered_classes
from sgenas.data.sources import DATASET_SOURCES, DatasetSource, LoadRequest, absolute_path
from sgenas.data.tables import class_names, encoded, find_columns, read_labels
from sgenas.errors import DataError, one_line

TEST_WORDS = {"test", "val", "valid", "validation"}


class _File(NamedTuple):
    path: Path
    image: str
    labels: Tensor
    names: tuple[str, ...] | None

    @property
    def is_test(self) -> bool:
        return not TEST_WORDS.isdisjoint(re.split(r"[^a-z]+", self.path.stem.lower()))


def load_parquet(place: str, request: LoadRequest) -> ImageData:
    """The images of comma-separated files and directories of ``*.parquet``, in the order given.

    Files with ``test``, ``val``, ``valid`` or ``validation`` as a word of their name are the test set.
    """
    files = [_open(path) for path in _find(place)]
    train = [file for file in files if not file.is_test]
    test = [file for file in files if file.is_test and request.test]
    if not train:
        raise DataError(f"{request.spec} has no training file: every file name says test or validation")
    named = [file for file in files if file.names]
    for file in named:
        if file.names != named[0].names:
            raise DataError(f"class names in {file.path} must be those in {named[0].path}, got others")
    names = named[0].names if named else None
    classes = names or numbered_classes(request.spec, *(file.labels for file in files))
    labels = torch.cat([file.labels for file in train])
    chosen = request.choose(labels, classes)
    tested = None
    if test:
        test_labels = torch.cat([file.labels for file in test])
        tested = _images(test, torch.arange(len(test_labels))), test_labels
    paths = [str(file.path) for file in train + test]
    origin = ", ".join(paths) if len(paths) <= 3 else f"{len(paths)} files, {paths[0]} to {paths[-1]}"
    return decoded(request, (_images(train, chosen), labels[chosen]), tested, classes, origin=origin)


def _find(place: str) -> list[Path]:
    found: list[Path] = []
    for part in place.split(","):
        path = Path(part.strip()).expanduser()
        inside = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        inside = [file for file in inside if file.is_file()]
        if not part.strip() or not inside:
            raise DataError(f"{part.strip() or repr(place)} must be a .parquet file or a directory of them")
        found += inside
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns pyarrow's errors into a DataError that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from None


def _open(path: Path) -> _File:
    """Columns and labels of a file; its images stay on disk."""
    import pyarrow.parquet as pq

    with _reading(path), pq.ParquetFile(path) as file:
        image, label = find_columns(str(path), file.schema_arrow)
        labels = read_labels(str(path), file.read(columns=[label]).column(label))
        return _File(path, image, labels, class_names(file.schema_arrow, label))


def _images(files: list[_File], chosen: Tensor) -> list[Encoded]:
    """The encoded images at the ascending indices ``chosen``, which count through all ``files``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images: list[Encoded] = []
    start = 0
    for source in files:
        first = start
        with _reading(source.path), pq.ParquetFile(source.path) as file:
            is_struct = pa.types.is_struct(file.schema_arrow.field(source.image).type)
            # of a struct the bytes alone: its other fields may be large
            columns = [f"{source.image}.bytes" if is_struct else source.image]
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                rows = chosen[(chosen >= start) & (chosen < end)]
                if len(rows):
                    values = file.read_row_group(group, columns=columns).column(source.image)
                    taken = values.take(pa.array((rows - start).numpy()))
                    images += encoded(str(source.path), (rows - first).tolist(), taken)
                start = end
    return images


def _absolute(place: str) -> str:
    return ",".join(absolute_path(part.strip()) for part in place.split(",") if part.strip())


DATASET_SOURCES.register("parquet", DatasetSource(load_parquet, "FILES_OR_DIR", absolute=_absolute))
