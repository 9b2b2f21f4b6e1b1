"""Labeled images in memory: one set (`ImageSet`), and a dataset of training and test images (`ImageData`).

Whole datasets are uint8 tensors: CIFAR-10 takes 184 MB, and a batch is one indexing operation.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgenas.errors import DataError

GPU_SHARE = 0.5
"""Of a GPU's free memory, for a set of images; a larger set stays in the memory of the machine."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,), on one device; at least one image.

    Raises:
        DataError: If types, shapes or devices are others.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
            got = f"{images.dtype} of {tuple(images.shape)}"
            raise DataError(f"images must be uint8 of shape (N, C, H, W), not empty, got {got}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            got = f"{labels.dtype} of {tuple(labels.shape)}"
            raise DataError(f"labels must be int64 of shape ({len(images)},), one per image, got {got}")
        if labels.device != images.device:
            raise DataError(f"labels must be on {images.device}, as the images are, got {labels.device}")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ImageSet":
        """A copy of the images at ``indices``, int64 (M,) from 0 to N - 1, in that order."""
        indices = indices.to(self.images.device)
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on ``device``; storage is shared if it is there already."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def near(self, device: torch.device) -> "ImageSet":
        """The same set on ``device``, unless it would take more than half of the memory that is free on that GPU."""
        fits = device.type != "cuda" or self.images.nbytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]
        return self.to(device) if fits else self

    def digest(self) -> str:
        """A fingerprint of images and labels, with which a resumed run checks its dataset."""
        total = hashlib.blake2b(digest_size=16)
        for tensor in (self.images, self.labels):
            total.update(tensor.cpu().contiguous().numpy().data)
        return total.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageData:
    """A dataset as `load` returns it.

    Args:
        name: The specification it was loaded from.
        train: Training images, at least one per class.
        test: Test images of the same size, or None if there are none.
        classes: Class names, at least 2; label i is ``classes[i]``.
        horizontal_flip: Whether a horizontally flipped image keeps its class.
        origin: Where the images were found, for people.
        notes: What was skipped or changed while reading, for people.

    Raises:
        DataError: If labels, classes or sizes contradict each other.
    """

    name: str
    train: ImageSet
    test: ImageSet | None
    classes: tuple[str, ...]
    horizontal_flip: bool = True
    origin: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_labels(self.name, self.train.labels, self.classes)
        if self.test is not None:
            _check_range(self.name, self.test.labels, self.classes)
            expected, got = tuple(self.train.images.shape[1:]), tuple(self.test.images.shape[1:])
            if expected != got:
                raise DataError(f"test images of {self.name} must have shape {expected}, got {got}")

    @property
    def channels(self) -> int:
        """Color channels of an image: 1 or 3."""
        return self.train.images.shape[1]

    @property
    def height(self) -> int:
        """Height of an image in pixels."""
        return self.train.images.shape[2]

    @property
    def width(self) -> int:
        """Width of an image in pixels."""
        return self.train.images.shape[3]


def number_classes(name: str, labels: Sequence[Tensor]) -> tuple[list[Tensor], tuple[str, ...], tuple[str, ...]]:
    """(labels, class names, notes) for labels, int64 (N,) each, without class names.

    Class names are ``"0"``, ``"1"``, ... up to the largest label. Labels from 1 up are lowered by 1.
    """
    every = torch.cat(list(labels))
    least, largest = (int(every.min()), int(every.max())) if len(every) else (0, -1)
    # every class needs an image; one wrong label could mean millions of classes
    if largest - (least == 1) >= len(every):
        raise DataError(f"labels of {name} must be below {len(every)} (its images), got {largest}")
    if least != 1:
        return list(labels), tuple(str(index) for index in range(largest + 1)), ()
    note = f"labels start at 1: label 1 is class 0, label {largest} is class {largest - 1}"
    return [each - 1 for each in labels], tuple(str(index) for index in range(1, largest + 1)), (note,)


def check_labels(name: str, labels: Tensor, classes: tuple[str, ...]) -> None:
    """Raises DataError unless there are 2 or more classes, each with one of the training labels (N,)."""
    if len(classes) < 2:
        raise DataError(f"{name} must have at least 2 classes, got {len(classes)}: {str(list(classes))[:90]}")
    _check_range(name, labels, classes)
    counts = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
    if 0 in counts:
        raise DataError(
            f"class {classes[counts.index(0)][:80]!r} of {name} has no training image; add one or drop the class"
        )


def _check_range(name: str, labels: Tensor, classes: tuple[str, ...]) -> None:
    wrong = labels[(labels < 0) | (labels >= len(classes))]
    if len(wrong):
        remedy = "; leave out images without a label" if int(wrong[0]) == -1 else ""
        raise DataError(f"labels of {name} must be from 0 to {len(classes) - 1}, got {int(wrong[0])}{remedy}")
