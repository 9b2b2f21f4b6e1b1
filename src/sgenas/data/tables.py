"""Tables of encoded images and labels in Arrow, in Hugging Face's layout or plainer ones."""

import json
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sgenas.data.decode import Encoded
from sgenas.data.images import number_classes
from sgenas.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("img", "image")
LABEL_NAMES = ("label", "labels", "fine_label", "class")


class Labels(NamedTuple):
    """One label column: int64 (N,), and the class names they count, from ``ClassLabel`` or the column itself."""

    where: str
    values: Tensor
    names: tuple[str, ...] | None
    text: bool = False


def find_columns(table: str, schema: "pa.Schema") -> tuple[str, str]:
    """(image column, label column): the first known name of a fitting type, else the only fitting one.

    Images are bytes, or structs with the field ``bytes``. Labels are ``ClassLabel`` features, else integers;
    a column with a known name may also hold class names or booleans.

    Raises:
        DataError: If there is no such column, or several; the message names ``table``.
    """
    import pyarrow as pa

    images = [field.name for field in schema if _holds_bytes(field.type)]
    integers = [field.name for field in schema if pa.types.is_integer(_plain(field.type))]
    named = [name for name in integers if class_names(schema, name)]
    texts = [field.name for field in schema if _is_text(_plain(field.type))]
    image = _known(IMAGE_NAMES, images) or _only(table, schema, "image", IMAGE_NAMES, "encoded images", images)
    label = _known(LABEL_NAMES, named or integers) or (None if named else _known(LABEL_NAMES, texts))
    other = _known(LABEL_NAMES, schema.names)
    if label is None and other is not None and not named:
        kind = schema.field(other).type
        raise DataError(f"{table} column {other} must hold integers or class names, got {str(kind)[:80]}; convert it")
    return image, label or _only(table, schema, "label", LABEL_NAMES, "integers", named or integers)


def _known(known: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first of the names ``known`` among ``columns``, in any case."""
    return next((column for name in known for column in columns if column.lower() == name), None)


def _only(table: str, schema: "pa.Schema", role: str, known: Sequence[str], kind: str, fitting: Sequence[str]) -> str:
    if len(fitting) != 1:
        form = f"one {role} column (named {', '.join(known)}, or the only one of {kind})"
        raise DataError(f"{table} must have {form}, got {fitting} among {schema.names}")
    return fitting[0]


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """The type of the values, also of a dictionary-encoded column (pandas' categories)."""
    import pyarrow as pa

    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind)


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


def read_labels(where: str, schema: "pa.Schema", label: str, column: "pa.ChunkedArray[Any]") -> Labels:
    """The labels of ``column``; raises DataError, naming ``where``, if one is null or has white space around it."""
    import pyarrow as pa

    column = column.cast(_plain(column.type))
    if column.null_count:
        raise DataError(f"labels of {where} must not be null, got {column.null_count} null labels; drop these rows")
    if not _is_text(column.type):
        return Labels(where, torch.tensor(column.to_numpy().astype("int64")), class_names(schema, label))
    # accented letters have two spellings in Unicode
    values = [unicodedata.normalize("NFC", str(value)) for value in column.cast(pa.string()).to_pylist()]
    names = tuple(sorted(set(values)))
    for name in names:
        if not name or name != name.strip():
            raise DataError(f"class names of {where} must have no white space around them, got {name[:80]!r}; strip it")
    index = {name: position for position, name in enumerate(names)}
    return Labels(where, torch.tensor([index[value] for value in values], dtype=torch.int64), names, text=True)


def join_labels(name: str, parts: Sequence[Labels]) -> tuple[list[Tensor], tuple[str, ...], tuple[str, ...]]:
    """(labels of each part, class names, notes); class names in a column are classes in alphabetical order.

    Raises:
        DataError: If parts contradict each other; the message names the second one.
    """
    for part in parts:
        if part.text != parts[0].text:
            kinds = ("class names", "integers") if parts[0].text else ("integers", "class names")
            raise DataError(f"labels of {part.where} must be {kinds[0]} as in {parts[0].where}, got {kinds[1]}")
    if parts[0].text:
        classes = tuple(sorted({text for part in parts for text in part.names or ()}))
        lookups = [torch.tensor([classes.index(text) for text in part.names or ()]) for part in parts]
        labels = [lookup[part.values] for lookup, part in zip(lookups, parts, strict=True)]
        return labels, classes, ("labels are class names: classes in alphabetical order",)
    named = [part for part in parts if part.names]
    for part in named:
        if part.names != named[0].names:
            raise DataError(f"class names in {part.where} must be those in {named[0].where}, got others")
    values = [part.values for part in parts]
    return (values, named[0].names or (), ()) if named else number_classes(name, values)


def encoded(where: str, rows: Sequence[int], values: "pa.ChunkedArray[Any]") -> list[Encoded]:
    """The images in a column, named after their ``rows``; raises DataError if one has no bytes."""
    images = []
    for row, value in zip(rows, values.to_pylist(), strict=True):
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise DataError(f"{where} row {row} has no image bytes; store the contents of files, not their paths")
        images.append(Encoded(f"{where} row {row}", content))
    return images
