"""Images from Python: a `torch.utils.data.Dataset`, or any sequence of (image, label), read into memory."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgenas.data.images import ImageData, ImageSet, numbered_classes
from sgenas.errors import DataError


class Items(Protocol):
    """What `from_dataset` reads: `dataset[i]` for i = 0 .. len(dataset) - 1 is (image, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_dataset(
    train: Items,
    test: Items | None = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "dataset",
    mirror: bool = True,
) -> ImageData:
    """The images of data sets with a length, each item (image, label) read once, as uint8 on the CPU.

    An image is a PIL image, a tensor (C, H, W) or (H, W), or an array (H, W, C) or (H, W); uint8, or floats
    from 0 to 1. C is 1 or 3; where grey and coloured images are mixed all become coloured. A label is an
    integer from 0 on. All images must have one size, which is found by looking, as are channels and classes.
    Leave random transforms and normalisation out: what they make of an image once would stay, and runs
    augment and normalise by themselves.

    classes: names; by default what a `classes` of the training data says (torchvision's have one, a Subset
    the one below it), else "0", "1", ... up to the largest label. name: for messages and the run folder,
    where it stands as python:NAME. mirror: whether a horizontally flipped image keeps its class.

    Raises DataError for an item that is none of this, and for what `ImageData` refuses. What the data set
    itself raises is passed on.
    """
    if not name:
        raise DataError(f"name must be a word for the data set, got {name!r}")
    train_images, train_labels = _read("training", train)
    test_images, test_labels = ([], []) if test is None else _read("test", test)
    every = train_images + test_images
    coloured = any(len(image) == 3 for image in every)
    grey = sum(len(image) == 1 for image in every)
    names = _names(train) if classes is None else tuple(str(each) for each in classes)
    if names is None:
        names = numbered_classes(f"python:{name}", [torch.tensor(train_labels + test_labels)])

    def made(images: list[Tensor], labels: list[int]) -> ImageSet:
        return ImageSet(
            torch.stack([_coloured(image) if coloured else image for image in images]), torch.tensor(labels)
        )

    return ImageData(
        f"python:{name}",
        made(train_images, train_labels),
        None if test is None else made(test_images, test_labels),
        names,
        mirror=mirror,
        origin=f"{type(train).__name__} from Python",
        notes=(f"{grey} grey images became coloured, as the others are",) if coloured and grey else (),
    )


def _read(part: str, dataset: Items) -> tuple[list[Tensor], list[int]]:
    """The images, uint8 (C, H, W) each, and the labels of one part."""
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{part} data must have a length, got {type(dataset).__name__} without one")
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(len(dataset)):
        where = f"item {index} of the {part} data"
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where} must be a pair (image, label), got {type(item).__name__}")
        images.append(_pixels(where, item[0]))
        labels.append(_label(where, item[1]))
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{where} must have the size of item 0, {_size(images[0])}, got {_size(images[-1])}"
            )
    if not images:
        raise DataError(f"{part} data must hold at least one item, got none")
    return images, labels


def _pixels(where: str, image: Any) -> Tensor:
    """uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{where} must have 8 bits a channel, got PIL mode {image.mode}")
        image = np.array(image.convert("L" if image.mode in ("L", "1") else "RGB"))
    if isinstance(image, np.ndarray):
        image = torch.tensor(image)
        if image.ndim == 3:
            image = image.permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise DataError(f"{where} must be a PIL image, a tensor or an array, got {type(image).__name__}")
    if image.ndim == 2:
        image = image.unsqueeze(0)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(f"{where} must have 1 or 3 channels, got an image of shape {tuple(image.shape)}")
    image = image.detach().cpu()
    if image.is_floating_point():
        low, high = image.min().item(), image.max().item()
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{where} must have floats from 0 to 1, not normalised, got {low:.3g} to {high:.3g}"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"{where} must be uint8 or floating-point, got {image.dtype}")
    return image


def _label(where: str, label: Any) -> int:
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise DataError(f"label of {where} must be an integer, got {label!r}")
    return int(label)


def _names(dataset: Any) -> tuple[str, ...] | None:
    """The `classes` of a data set, or of the one that it is a part of; None where there are none."""
    while dataset is not None:
        found = getattr(dataset, "classes", None)
        if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
            return tuple(found)
        dataset = getattr(dataset, "dataset", None)
    return None


def _coloured(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1)


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
