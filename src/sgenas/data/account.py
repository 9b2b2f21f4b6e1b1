"""What a data set holds, in numbers: sizes, classes and their imbalance, statistics, where it is from."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from sgenas.data.augment import statistics
from sgenas.data.images import ImageData


@dataclass(frozen=True)
class ClassCount:
    """Images of a class; `test` is None where the data set has no test images."""

    name: str
    train: int
    test: int | None


@dataclass(frozen=True)
class Account:
    """An account of a data set as it was read.

    test_images: None where there are none. height, width: pixels. mean, std: of each channel over the
    training images, white is 1. imbalance: training images of the largest class to those of the smallest.
    mirror: whether a flipped image keeps its class. origin, notes: as in `ImageData`.
    """

    data: str
    origin: str
    train_images: int
    test_images: int | None
    channels: int
    height: int
    width: int
    mirror: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    imbalance: float
    classes: tuple[ClassCount, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)


def account(images: ImageData) -> Account:
    """Counts what is in `images`."""
    kinds = len(images.classes)
    train = torch.bincount(images.train.labels, minlength=kinds).tolist()
    test: list[int | None] = [None] * kinds
    if images.test is not None:
        test = torch.bincount(images.test.labels, minlength=kinds).tolist()
    mean, std = statistics(images.train.images)
    return Account(
        data=images.name,
        origin=images.origin,
        train_images=len(images.train),
        test_images=None if images.test is None else len(images.test),
        channels=images.channels,
        height=images.height,
        width=images.width,
        mirror=images.mirror,
        mean=mean,
        std=std,
        imbalance=max(train) / min(train),
        classes=tuple(ClassCount(*row) for row in zip(images.classes, train, test, strict=True)),
        notes=images.notes,
    )
