"""Images from Python: a `torch.utils.data.Dataset`, or any sequence of (image, label), read into memory."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgenas.data.decode import changes_note, flattened
from sgenas.data.images import ImageData, ImageSet, number_classes
from sgenas.errors import DataError


def from_dataset(
    train: Any,
    test: Any = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "dataset",
    horizontal_flip: bool = True,
) -> ImageData:
    """Reads every item (image, label) of map-style datasets once, as uint8 on the CPU.

    Leave out random transforms and normalization: sgenas augments and normalizes every batch itself. Transparent
    pixels of PIL images are blended with white. Pixels are not turned by EXIF, as the dataset may have done so.

    Args:
        train: Has ``len`` and items (image, label). An image is a PIL image, a tensor (C, H, W) or (H, W), or
            an array (H, W, C) or (H, W); uint8, or floats from 0 to 1; C is 1 or 3. All have one size. A
            label is an integer >= 0.
        test: The same for test images.
        classes: Class names. If None, the ``classes`` of ``train`` or of the dataset inside it (``Subset``),
            else ``"0"``, ``"1"``, ... up to the largest label; labels from 1 up are then lowered by 1.
        name: For messages and run directories, where it stands as ``python:NAME``.
        horizontal_flip: Whether a horizontally flipped image keeps its class.

    Raises:
        DataError: If an item is none of this, or `ImageData` refuses the whole.

    Example:
        >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        >>> from_dataset(torch.utils.data.TensorDataset(images, torch.tensor([0, 1, 0, 1]))).classes
        ('0', '1')
    """
    changes: Counter[str] = Counter()
    parts = [_read("training", train, changes)] + ([_read("test", test, changes)] if test is not None else [])
    every = [image for images, _ in parts for image in images]
    gray = sum(len(image) == 1 for image in every)
    mixed = 0 < gray < len(every)
    changes["grayscale converted to RGB"] += gray if mixed else 0
    labels = [torch.tensor(values) for _, values in parts]
    notes: tuple[str, ...] = ()
    names = classes if classes is not None else _names(train)
    if names is None:
        labels, names, notes = number_classes(f"python:{name}", labels)
    sets = []
    for (images, _), values in zip(parts, labels, strict=True):
        sets.append(ImageSet(torch.stack([image.expand(3, -1, -1) if mixed else image for image in images]), values))
    return ImageData(
        f"python:{name}",
        sets[0],
        sets[1] if len(sets) > 1 else None,
        tuple(map(str, names)),
        horizontal_flip=horizontal_flip,
        origin=f"{type(train).__name__} from Python",
        notes=notes + changes_note(changes),
    )


def _read(part: str, dataset: Any, changes: Counter[str]) -> tuple[list[Tensor], list[int]]:
    """The images, uint8 (C, H, W) each, and the labels of one part."""
    if not hasattr(dataset, "__len__") or len(dataset) < 1:
        raise DataError(f"{part} data must have a length >= 1, got a {type(dataset).__name__} without")
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(len(dataset)):
        where, item = f"item {index} of the {part} data", dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{where} must be a pair (image, label), got a {type(item).__name__}")
        images.append(_pixels(where, item[0], changes))
        size, first = tuple(images[-1].shape[1:]), tuple(images[0].shape[1:])
        if size != first:
            raise DataError(f"{where} must have the height and width of item 0, {first}, got {size}")
        label = item[1]
        if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
            label = label.item()
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise DataError(f"label of {where} must be an integer, got {label!r}")
        labels.append(int(label))
    return images, labels


def _pixels(where: str, image: Any, changes: Counter[str]) -> Tensor:
    """uint8 (C, H, W)."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{where} must have 8 bits per channel, got Pillow mode {image.mode}")
        picture, transparent = flattened(image, "L" if image.mode in ("L", "1", "LA") else "RGB")
        changes["with transparency put on white"] += transparent
        image = np.array(picture)
    if isinstance(image, np.ndarray):
        image = torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1) if image.ndim == 3 else image))
    if not isinstance(image, Tensor):
        raise DataError(f"{where} must be a PIL image, a tensor or an array, got a {type(image).__name__}")
    image = image.detach().cpu()
    image = image.unsqueeze(0) if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(f"{where} must have 1 or 3 channels, got an image of shape {tuple(image.shape)}")
    if image.is_floating_point():
        low, high = image.min().item(), image.max().item()
        if not 0 <= low <= high <= 1:
            got = f"{low:.3g} to {high:.3g}"
            raise DataError(f"{where} must have floats from 0 to 1, not normalized, got {got}")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"{where} must be uint8 or floating-point, got {image.dtype}")
    return image


def _names(dataset: Any) -> Sequence[str] | None:
    """The ``classes`` of a dataset, or of the dataset inside it; None if there are none."""
    while dataset is not None:
        found = getattr(dataset, "classes", None)
        if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
            return found
        dataset = getattr(dataset, "dataset", None)
    return None
