"""Datasets by name: `load` turns ``"cifar10"`` or ``"parquet:FILES"`` into images.

A new source is a function ``load(place, request) -> ImageData`` and a line that registers it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgenas.data.images import ImageData, check_labels
from sgenas.data.splits import sample_stratified
from sgenas.errors import InvalidValueError, require
from sgenas.registry import Registry

TEST_SPLITS = ("test", "testing", "validation", "valid", "val", "eval")
"""Names of folders and words of file names that test; the first one present is taken."""


@dataclass(frozen=True)
class LoadRequest:
    """What `load` asks a source for: its arguments."""

    spec: str
    data_dir: Path | None = None
    train_images: int | None = None
    seed: int = 0
    test: bool = True
    image_size: int | None = None

    def choose(self, labels: Tensor, classes: tuple[str, ...]) -> Tensor:
        """Ascending indices of the training images to keep, drawn by class from all labels, int64 (N,).

        Raises:
            DataError: If a class has no label, or a label no class.
            InvalidValueError: If ``train_images`` is below the number of classes.
        """
        check_labels(self.spec, labels, classes)
        size = self.train_images
        if size is None or size >= len(labels):
            return torch.arange(len(labels))
        require(size >= len(classes), "train_images", f">= {len(classes)} (the number of classes)", size)
        return sample_stratified(labels, size, torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class DatasetSource:
    """A kind of dataset.

    Args:
        load: Called as ``load(place, request)``; place is the text after the colon.
        place: What stands after the colon, for help (``"DIR"``), or None if the source takes none.
        resizes: Whether it brings images to ``request.image_size``.
        absolute: Makes a place absolute, so that a run resumes from any directory; None if it is no path.
    """

    load: Callable[[str, LoadRequest], ImageData]
    place: str | None = None
    resizes: bool = True
    absolute: Callable[[str], str] | None = None


DATASET_SOURCES: Registry[DatasetSource] = Registry("data", "sgenas.datasets")


def load(
    spec: str,
    *,
    data_dir: Path | None = None,
    train_images: int | None = None,
    seed: int = 0,
    test: bool = True,
    image_size: int | None = None,
) -> ImageData:
    """Loads a dataset into memory, as uint8 on the CPU.

    Args:
        spec: ``name`` or ``name:place`` with a name of `DATASET_SOURCES`: ``digits``, ``cifar10``,
            ``cifar100``, ``svhn``, ``fashion_mnist``, ``parquet:FILES_OR_DIR``, ``folder:DIR``.
        data_dir: Directory of downloaded datasets; ``~/.cache/sgenas`` if None.
        train_images: Keep that many training images, drawn by class, at least one per class; all if None.
        seed: Seed of that sample.
        test: Whether to read the test images.
        image_size: Side in pixels: images are scaled until they just cover a square, and cropped at the
            center. If None, all must have one size.

    Raises:
        InvalidValueError: If an argument is out of range.
        DataError: If the dataset is missing or damaged; the message names the file.

    Example:
        >>> load("digits", train_images=100).train.images.shape
        torch.Size([100, 1, 8, 8])
    """
    source, place = find_source(spec)
    require(train_images is None or train_images >= 1, "train_images", ">= 1", train_images)
    require(image_size is None or image_size >= 1, "image_size", ">= 1", image_size)
    require(image_size is None or source.resizes, "image_size", f"None with data {spec}", image_size)
    return source.load(place, LoadRequest(spec, data_dir, train_images, seed, test, image_size))


def find_source(spec: str) -> tuple[DatasetSource, str]:
    """The source and the place that ``spec`` names; raises InvalidValueError if there is none."""
    name, colon, place = spec.partition(":")
    if name == "python":
        message = f"data {spec!r} was passed from Python; pass the same images again"
        raise InvalidValueError(message, field="data")
    source = DATASET_SOURCES.get(name)
    form = name if source.place is None else f"{name}:{source.place}"
    require(not colon if source.place is None else bool(place.strip()), "data", form, spec)
    return source, place.strip()


def absolute_path(place: str) -> str:
    """``place`` as an absolute path."""
    return str(Path(place).expanduser().absolute())


def held_out(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are in `TEST_SPLITS` in any case, the one that tests first."""
    found = [name for name in names if name.lower() in TEST_SPLITS]
    return sorted(found, key=lambda name: (TEST_SPLITS.index(name.lower()), name))


def split_notes(kind: str, test: str | None, unused: Iterable[str]) -> tuple[str, ...]:
    """What to say of parts, each a ``kind`` (``"folder"``): another name than test tests, some are unused."""
    notes = []
    if test is not None and not test.lower().startswith("test"):
        notes.append(f"{kind} {test} is the test set, as there is no test {kind}")
    skipped = ", ".join(unused)
    return (*notes, f"{kind}s skipped: {skipped}") if skipped else tuple(notes)
