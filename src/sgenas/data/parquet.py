"""``parquet:FILES_OR_DIR``: encoded images with labels, read with pyarrow."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sgenas.data.decode import Encoded, decoded
from sgenas.data.images import ImageData
from sgenas.data.sources import (
    DATASET_SOURCES,
    TEST_SPLITS,
    DatasetSource,
    LoadRequest,
    absolute_path,
    held_out,
    split_notes,
)
from sgenas.data.tables import Labels, encoded, find_columns, join_labels, read_labels
from sgenas.errors import DataError, one_line

SPLIT_WORD = re.compile(rf"(?<![a-z])(train(?:ing)?|{'|'.join(TEST_SPLITS)})(?![a-z])")


class _File(NamedTuple):
    path: Path
    image: str
    label: str
    labels: Labels

    @property
    def split(self) -> str:
        """The first in `TEST_SPLITS` of the words of its name, else ``"train"``."""
        return [*held_out(SPLIT_WORD.findall(self.path.stem.lower())), "train"][0]


def load_parquet(place: str, request: LoadRequest) -> ImageData:
    """The images of comma-separated files and directories of ``*.parquet``, in the order given.

    Files with a word of `TEST_SPLITS` in their names are held out; those of the first word test.
    """
    found, notes = _find(place)
    files = [_open(path) for path in found]
    train = [file for file in files if file.split == "train"]
    if not train:
        raise DataError(f"{request.spec} has no training file: every file name says test or validation")
    for file in files:
        if file.label != files[0].label:
            other = f"the label column {files[0].label} as {files[0].path}, got {file.label}"
            raise DataError(f"{file.path} must have {other}; name the files of one dataset, separated by commas")
    splits = held_out({file.split for file in files}) if request.test else []
    if splits:
        notes += split_notes("split", splits[0], splits[1:])
    test = [file for file in files if file.split in splits[:1]]
    used = train + test
    values, classes, said = join_labels(request.spec, [file.labels for file in used])
    labels = torch.cat(values[: len(train)])
    chosen = request.choose(labels, classes)
    tested = None
    if test:
        test_labels = torch.cat(values[len(train) :])
        tested = _images(test, torch.arange(len(test_labels))), test_labels
    paths = [str(file.path) for file in used]
    origin = ", ".join(paths) if len(paths) <= 3 else f"{len(paths)} files, {paths[0]} to {paths[-1]}"
    train_part = _images(train, chosen), labels[chosen]
    return decoded(request, train_part, tested, classes, origin=origin, notes=notes + said)


def _find(place: str) -> tuple[list[Path], tuple[str, ...]]:
    """The files of ``place``, and a note on hidden ones."""
    found: list[Path] = []
    hidden = 0
    for part in place.split(","):
        path = Path(part.strip()).expanduser()
        inside = [path]
        if path.is_dir():
            every = sorted(file for file in path.iterdir() if file.suffix.lower() == ".parquet")
            inside = [file for file in every if not file.name.startswith(".")]
            hidden += len(every) - len(inside)
            _check_one_dataset(path, inside)
        inside = [file for file in inside if file.is_file()]
        if not part.strip() or not inside:
            raise DataError(f"{part.strip() or repr(place)} must be a .parquet file or a directory of them")
        found += inside
    return found, (f"files skipped: {hidden:,} hidden",) if hidden else ()


def _check_one_dataset(folder: Path, files: list[Path]) -> None:
    """Raises DataError if different names stand before ``train`` or ``test`` in the names of ``files``."""
    names = set()
    for file in files:
        split = SPLIT_WORD.search(file.stem.lower())
        words = re.findall(r"[a-z0-9]+", file.stem.lower()[: split.start()]) if split else []
        # a number is that of a part
        names.add("-".join(word for word in words if not word.isdigit()))
    if len(names - {""}) > 1:
        listed = ", ".join(sorted(names - {""}))[:90]
        raise DataError(f"{folder} holds several datasets ({listed}); name the files of one, separated by commas")


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
        schema = file.schema_arrow
        image, label = find_columns(str(path), schema)
        column = file.read(columns=[label]).column(label)
        return _File(path, image, label, read_labels(str(path), schema, label, column))


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
