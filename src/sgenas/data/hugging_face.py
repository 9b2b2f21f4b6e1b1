"""Images through Hugging Face's `datasets`, an optional package: saved to disk, a folder, or by name."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgenas.data.columns import find_column
from sgenas.data.decode import Encoded, image_data
from sgenas.data.images import ImageData, Pick, numbered_classes
from sgenas.errors import DataError

TEST_SPLITS = ("test", "validation", "valid", "val", "eval")
"""Names of splits that test; of several that are there the first is taken."""
SAVED = ("dataset_dict.json", "state.json")
"""A folder with one of these was written by `save_to_disk`."""


def read_hugging_face(
    name: str, place: str, pick: Pick, with_test: bool = True, image_size: int | None = None
) -> ImageData:
    """The images of `place`: a folder of `save_to_disk`, a folder of parquet or image files, or a name.

    A name goes through `datasets.load_dataset`, which downloads what it has not kept before. The split
    `train` (or the only one) trains, the first of TEST_SPLITS tests. The image column is of the feature Image
    or holds encoded bytes, the label column is a ClassLabel or holds integers; `find_column` says which of
    several. `pick` chooses the training images to decode. image_size: as in `layout_of`. Raises DataError for
    what is missing, ambiguous or broken, and where the package is not installed.
    """
    splits = _load(name, place)
    train_split, test_split = _split_names(name, splits)
    train = splits[train_split]
    image, label = _columns(name, train)
    labels = _labels(name, train, label)
    test = splits[test_split] if with_test and test_split is not None else None
    if test is not None and not {image, label} <= set(test.column_names):
        raise DataError(f"split {test_split} of {name} must have the columns {image} and {label} too")
    test_labels = torch.empty(0) if test is None else _labels(name, test, label)
    classes = _class_names(name, train, label, [labels, test_labels])
    chosen = pick(labels, classes)

    train_images = _encoded(f"{name} {train_split}", train, image, chosen)
    test_images: list[Encoded] = []
    if test is not None:
        test_images = _encoded(f"{name} {test_split}", test, image, torch.arange(len(test_labels)))
    unused = [split for split in splits if split not in (train_split, test_split)]
    return image_data(
        name,
        (train_images, labels[chosen]),
        (test_images, test_labels),
        classes,
        image_size=image_size,
        origin=f"{place}, split {train_split}{f' and {test_split}' if test is not None else ''}, columns"
        f" {image} and {label}",
        notes=(f"splits passed over: {', '.join(unused)}",) if unused else (),
    )


def _load(name: str, place: str) -> Mapping[str, Any]:
    """{split: its data set}."""
    # other packages that it brings in draw from Python's global generator when they are imported
    state = random.getstate()
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name} needs the package datasets: pip install 'sgenas[hf]'") from None
    finally:
        random.setstate(state)

    folder = Path(place).expanduser()
    if not folder.exists() and place.startswith(("/", ".", "~")):
        raise DataError(f"folder {folder} does not exist")
    try:
        with _quiet(datasets):
            if any((folder / file).is_file() for file in SAVED):
                found = datasets.load_from_disk(folder)
            else:
                found = datasets.load_dataset(str(folder) if folder.exists() else place)
    except Exception as error:
        # network, files, parsers and the library's own errors all end here
        said = " ".join(str(error).split())[:300]
        raise DataError(f"{name} cannot be loaded ({type(error).__name__}: {said})") from None
    return found if isinstance(found, Mapping) else {"train": found}


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without its progress bars, one for each of many short steps."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _split_names(name: str, splits: Mapping[str, Any]) -> tuple[str, str | None]:
    """(the split that trains, the one that tests or None)."""
    test = next((split for split in TEST_SPLITS if split in splits), None)
    others = [split for split in splits if split not in TEST_SPLITS]
    if "train" in splits:
        return "train", test
    if len(others) != 1:
        raise DataError(f"{name} must have a split named train, or one that is no test, got {list(splits)}")
    return others[0], test


def _columns(name: str, dataset: Any) -> tuple[str, str]:
    """(image column, label column) by the features."""
    features = dataset.features
    images = [column for column, feature in features.items() if _holds_images(feature)]
    named = [column for column, feature in features.items() if hasattr(feature, "names")]
    whole = [column for column, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
    every = list(features)
    return (
        find_column(f"data set {name}", "image", images, every),
        find_column(f"data set {name}", "label", named or whole, every),
    )


def _holds_images(feature: Any) -> bool:
    """The feature Image, or bytes, or a struct with `bytes` as files written without features have it."""
    if type(feature).__name__ == "Image":
        return True
    if isinstance(feature, dict):
        return "bytes" in feature and _holds_images(feature["bytes"])
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _labels(name: str, dataset: Any, label: str) -> Tensor:
    """int64 (N,)."""
    column = dataset.select_columns([label]).with_format("arrow")[:].column(label)
    if column.null_count:
        raise DataError(f"column {label!r} of {name} must have no null label, got {column.null_count}")
    return torch.tensor(column.to_numpy().astype("int64"))


def _class_names(name: str, dataset: Any, label: str, labels: list[Tensor]) -> tuple[str, ...]:
    names = getattr(dataset.features[label], "names", None)
    if names:
        return tuple(names)
    return numbered_classes(name, labels)


def _encoded(where: str, dataset: Any, image: str, chosen: Tensor) -> list[Encoded]:
    """The encoded images in the rows `chosen`, ascending."""
    rows = dataset.select_columns([image]).select(chosen.tolist())
    if type(rows.features[image]).__name__ == "Image":
        rows = rows.cast_column(image, type(rows.features[image])(decode=False))
    images = []
    for index, row in zip(chosen.tolist(), rows, strict=True):
        value = row[image]
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            path = value.get("path") if isinstance(value, dict) else None
            if path is None or not Path(path).is_file():
                raise DataError(f"{where} row {index} holds no image bytes")
            content = Path(path)
        images.append(Encoded(f"{where} row {index}", content))
    return images
