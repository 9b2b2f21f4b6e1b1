"""Tables of encoded images and labels in Arrow, in Hugging Face's layout or plainer ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgenas.data.decode import Encoded
from sgenas.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("img", "image")
LABEL_NAMES = ("label", "labels", "fine_label", "class")


def find_columns(table: str, schema: "pa.Schema") -> tuple[str, str]:
    """(image column, label column): the first known name of a fitting type, else the only fitting one.

    Images are bytes, or structs with the field ``bytes``. Labels are ``ClassLabel`` features, else integers.

    Raises:
        DataError: If there is no such column, or several; the message names ``table``.
    """
    import pyarrow as pa

    images = [field.name for field in schema if _holds_bytes(field.type)]
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    labels = [name for name in integers if class_names(schema, name)] or integers
    chosen = []
    for role, known, fitting in (("image", IMAGE_NAMES, images), ("label", LABEL_NAMES, labels)):
        found = [name for name in known if name in fitting] or fitting
        if not found or (len(found) > 1 and found is fitting):
            form = f"one {role} column (named {', '.join(known)}, or the only one of its type)"
            raise DataError(f"{table} must have {form}, got {fitting} among {schema.names}")
        chosen.append(found[0])
    return chosen[0], chosen[1]


def _holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        kind = kind.field(index).type if index >= 0 else pa.null()
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def class_names(schema: "pa.Schema", label: str) -> tuple[str, ...] | None:
    """Class names from the metadata that ``datasets`` writes, or None."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return None
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if valid else None


def read_labels(where: str, column: "pa.ChunkedArray[Any]") -> Tensor:
    """int64 (N,); raises DataError, naming ``where``, if a label is null."""
    if column.null_count:
        raise DataError(f"labels of {where} must not be null, got {column.null_count} null labels")
    return torch.tensor(column.to_numpy().astype("int64"))


def encoded(where: str, rows: Sequence[int], values: "pa.ChunkedArray[Any]") -> list[Encoded]:
    """The images in a column, named after their ``rows``; raises DataError if one has no bytes."""
    images = []
    for row, value in zip(rows, values.to_pylist(), strict=True):
        content = value.get("bytes") if isinstance(value, dict) else value
        path = value.get("path") if isinstance(value, dict) else None
        if content is None and path is not None and Path(path).is_file():
            content = Path(path)
        if content is None:
            raise DataError(f"{where} row {row} has no image bytes")
        images.append(Encoded(f"{where} row {row}", content))
    return images
