"""Encoded images (files or bytes) to uint8 tensors, with Pillow.

The headers of all images are read first: they settle size and channels, so that the pixels can be decoded
into their final place. One thread: on CIFAR-sized images the interpreter lock makes two slower than one.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sgenas.data.images import ImageData, ImageSet
from sgenas.data.sources import LoadRequest
from sgenas.errors import DataError, one_line

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""Pillow reads many more, some with decoders that run other programs."""


class Encoded(NamedTuple):
    """One encoded image: its bytes or its file, and a name for messages."""

    name: str
    content: bytes | Path


def decoded(
    request: LoadRequest,
    train: tuple[Sequence[Encoded], Tensor],
    test: tuple[Sequence[Encoded], Tensor] | None,
    classes: tuple[str, ...],
    *,
    origin: str,
    notes: tuple[str, ...] = (),
) -> ImageData:
    """The dataset of encoded images and their labels (N,); 1 channel if all are grayscale, else 3.

    Raises:
        DataError: If an image cannot be decoded, has more than 8 bits per channel or (without
            ``request.image_size``) another size than the first; the message names it.
    """
    tested = [] if test is None else test[0]
    shape, changes = _shape([*train[0], *tested], request.image_size)
    return ImageData(
        request.spec,
        ImageSet(_decode(train[0], shape), train[1]),
        None if test is None else ImageSet(_decode(test[0], shape), test[1]),
        classes,
        origin=origin,
        notes=notes + changes,
    )


def _shape(images: Sequence[Encoded], image_size: int | None) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """(C, H, W) of all images, and notes on those that are changed for it."""
    target, gray, resized = None if image_size is None else (image_size, image_size), 0, 0
    for image in images:
        with _opened(image) as opened:
            size, mode = opened.size, opened.mode
        if mode.startswith(("I", "F")):
            raise DataError(f"{image.name} must have 8 bits per channel, got Pillow mode {mode}")
        target = target or size
        if image_size is None and size != target:
            sizes = f"of {target[0]} x {target[1]} pixels as {images[0].name}, got {size[0]} x {size[1]}"
            raise DataError(f"{image.name} must be {sizes}; set image_size to bring all images to one size")
        gray += mode in ("L", "1")
        resized += size != target
    width, height = target or (0, 0)
    notes = (f"{resized:,} images scaled and cropped to {width} x {height}",) if resized else ()
    if gray == len(images):
        return (1, height, width), notes
    return (3, height, width), notes + ((f"{gray:,} grayscale images converted to RGB",) if gray else ())


def _decode(images: Sequence[Encoded], shape: tuple[int, int, int]) -> Tensor:
    """uint8 (N, *shape); images of another size are scaled (bicubic) and cropped at the center."""
    channels, height, width = shape
    pixels = np.empty((len(images), *shape), dtype=np.uint8)
    mode = "L" if channels == 1 else "RGB"
    for index, image in enumerate(images):
        with _opened(image) as opened:
            picture = opened if opened.mode == mode else opened.convert(mode)
            if picture.size != (width, height):
                picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
            array = np.asarray(picture)
            pixels[index] = array if channels == 1 else array.transpose(2, 0, 1)
    return torch.from_numpy(pixels)


@contextmanager
def _opened(image: Encoded) -> Iterator[Image.Image]:
    content = BytesIO(image.content) if isinstance(image.content, bytes) else image.content
    try:
        with warnings.catch_warnings():
            # Pillow warns of a decompression bomb from 90 million pixels on
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content, formats=IMAGE_FORMATS) as opened:
                yield opened
    except UnidentifiedImageError:
        raise DataError(f"{image.name} cannot be decoded: not a {', '.join(IMAGE_FORMATS)} image") from None
    except Exception as error:
        # Pillow's decoders raise a dozen types on damaged files, OSError and SyntaxError among them
        raise DataError(f"{image.name} cannot be decoded: {one_line(error)}") from None
