"""Labelled images in memory: one set (`ImageSet`), and a data set of training and test images (`ImageData`).

Whole data sets are held as uint8 tensors: CIFAR-10 takes 184 MB, and a batch is one index away.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas import limits
from sgenas.errors import DataError

Pick = Callable[[Tensor, tuple[str, ...]], Tensor]
"""Given the training labels (N,) and the class names: ascending indices (M,) of the images to keep."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,), on one device. Checked when made.

    Raises DataError for other types or shapes, different lengths or devices, and no image at all.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8:
            raise DataError(f"images must be uint8, got {self.images.dtype}")
        if self.images.ndim != 4 or 0 in self.images.shape:
            raise DataError(
                f"images must have shape (N, C, H, W) with every size >= 1, got {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64:
            raise DataError(f"labels must be int64, got {self.labels.dtype}")
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must have shape ({len(self.images)},), one per image, got {tuple(self.labels.shape)}"
            )
        if self.labels.device != self.images.device:
            raise DataError(f"labels must be on {self.images.device}, as images, got {self.labels.device}")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ImageSet":
        """A copy of the images at `indices`, int64 (M,), in that order; DataError for one out of range."""
        if indices.dtype != torch.int64 or indices.ndim != 1:
            raise DataError(
                f"indices must be int64 of shape (M,), got {indices.dtype} of {tuple(indices.shape)}"
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise DataError(
                f"indices must be from 0 to {len(self) - 1}, got {int(indices.min())} to {int(indices.max())}"
            )
        indices = indices.to(self.images.device)
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on `device`; storage is shared where it is there already."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set as `load` returns it. Checked when made.

    `name` is the specification it was loaded from, `test` is None where the source has no test images,
    `mirror` says whether a horizontally flipped image keeps its class. `origin` says in words where the
    images were found, `notes` what of them was passed over or changed on the way; for people alone.

    Raises DataError for fewer than two classes, a label without a class, a class without a training image,
    and test images of another size than the training images.
    """

    name: str
    train: ImageSet
    test: ImageSet | None
    classes: tuple[str, ...]
    mirror: bool
    origin: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_labels(self.name, self.train.labels, self.classes)
        if self.test is not None:
            _check_range(self.name, "test", self.test.labels, self.classes)
            expected, got = tuple(self.train.images.shape[1:]), tuple(self.test.images.shape[1:])
            if expected != got:
                raise DataError(
                    f"test images of {self.name} must have the shape of its training images, {expected},"
                    f" got {got}"
                )

    @property
    def channels(self) -> int:
        """Colour channels of an image: 1 or 3."""
        return self.train.images.shape[1]

    @property
    def height(self) -> int:
        """Height of an image in pixels."""
        return self.train.images.shape[2]

    @property
    def width(self) -> int:
        """Width of an image in pixels."""
        return self.train.images.shape[3]


def numbered_classes(name: str, labels: list[Tensor]) -> tuple[str, ...]:
    """The names of classes that have none: `0`, `1`, ... up to the largest of the labels.

    labels: int64 (N,) each, of the training and test images; `name` stands for the data set in the message.
    Raises DataError where that is more classes than there are images, since each must have one, or more than
    `limits.CLASSES`: one wrong label would be millions of classes.
    """
    largest = max((int(part.max()) for part in labels if len(part)), default=-1)
    count = sum(len(part) for part in labels)
    if largest >= count:
        raise DataError(f"labels of {name} must be below {count}, the number of its images, got {largest}")
    if largest >= limits.CLASSES:
        raise DataError(f"labels of {name} must be below {limits.CLASSES:,}, got {largest:,}")
    return tuple(str(index) for index in range(largest + 1))


def check_labels(name: str, labels: Tensor, classes: tuple[str, ...]) -> None:
    """DataError unless there are two classes or more, each with a training label and each label in a class.

    `labels` is int64 (N,), of the training images; `name` stands for the data set in the messages.
    """
    if len(classes) < 2:
        raise DataError(f"{name} must have at least 2 classes, got {len(classes)}: {str(list(classes))[:90]}")
    _check_range(name, "training", labels, classes)
    counts = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
    for class_name, count in zip(classes, counts, strict=True):
        if count == 0:
            raise DataError(f"class {class_name[:80]!r} has no training image in {name}")


def _check_range(name: str, part: str, labels: Tensor, classes: tuple[str, ...]) -> None:
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if len(wrong):
        raise DataError(
            f"{part} labels of {name} must be from 0 to {len(classes) - 1}, got {int(wrong[0])}"
            f" ({len(wrong)} such labels)"
        )
