"""Encoded images (files or bytes) to uint8 tensors, through PIL.

Two passes: the headers of all images first, which settles size and channels before a pixel is decoded and
lets the pixels go straight to where they stay. In one thread: on CIFAR-sized images the interpreter lock
makes two threads slower than one (1.4 s against 0.7 s for 10,000 images on two cores).
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sgenas import limits, reading
from sgenas.data.images import ImageData, ImageSet
from sgenas.errors import DataError, one_line

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""What is decoded. PIL knows many more formats, some with decoders that run other programs."""
LARGEST_SIDE = 4096
"""Pixels; a larger image is refused before its pixels are decoded."""


class Encoded(NamedTuple):
    """One encoded image: `name` stands for it in messages, `content` is its bytes or its file."""

    name: str
    content: bytes | Path


class Layout(NamedTuple):
    """What all images of a data set share: channels (1 or 3), height and width in pixels.

    resized, coloured: how many of them are of another size, or grey among coloured ones, before that.
    """

    channels: int
    height: int
    width: int
    resized: int = 0
    coloured: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What becomes of the images, in words."""
        said = []
        if self.resized:
            said.append(f"{self.resized:,} images scaled and cut to {self.width} x {self.height}")
        if self.coloured:
            said.append(f"{self.coloured:,} grey images became coloured, as the others are")
        return tuple(said)


def image_data(
    name: str,
    train: tuple[list[Encoded], Tensor],
    test: tuple[list[Encoded], Tensor],
    classes: tuple[str, ...],
    *,
    image_size: int | None,
    origin: str,
    notes: tuple[str, ...] = (),
) -> ImageData:
    """The data set of encoded images and their labels (N,), laid out by `layout_of`; `test` may be empty."""
    layout = layout_of(train[0] + test[0], image_size)
    return ImageData(
        name,
        ImageSet(decode(train[0], layout), train[1]),
        ImageSet(decode(test[0], layout), test[1]) if test[0] else None,
        classes,
        mirror=True,
        origin=origin,
        notes=(*notes, *layout.notes),
    )


def layout_of(images: Iterable[Encoded], image_size: int | None = None) -> Layout:
    """The layout to decode `images` with, from their headers: 1 channel if all are grey (L, 1), else RGB.

    image_size: side in pixels of the square that all are brought to; by default they must have one size.

    Raises DataError for an image that is no image, has over 4096 pixels on a side, more than 8 bits a
    channel, or (without `image_size`) another size than the first; and for no image at all.
    """
    with warnings.catch_warnings():
        # PIL warns of what is refused here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _layout(images, image_size)


def _layout(images: Iterable[Encoded], image_size: int | None) -> Layout:
    first: tuple[str, int, int] | None = None
    total = grey = resized = 0
    for image in images:
        with _opened(image) as opened:
            width, height, mode = opened.width, opened.height, opened.mode
        if max(width, height) > LARGEST_SIDE:
            raise DataError(
                f"{image.name} must have at most {LARGEST_SIDE} pixels on a side, got {width} x {height}"
            )
        if mode.startswith(("I", "F")):
            raise DataError(f"{image.name} must have 8 bits a channel, got PIL mode {mode}")
        if first is None:
            first = image.name, width, height
        elif image_size is None and (width, height) != first[1:]:
            raise DataError(
                f"{image.name} must have the size of {first[0]}, {first[1]} x {first[2]},"
                f" got {width} x {height} (an image size brings all to one)"
            )
        total += 1
        grey += mode in ("L", "1")
        resized += image_size is not None and (width, height) != (image_size, image_size)
    if first is None:
        raise DataError("at least one image is needed, got none")
    width, height = (image_size, image_size) if image_size is not None else first[1:]
    if grey == total:
        return Layout(1, height, width, resized)
    return Layout(3, height, width, resized, coloured=grey)


def decode(images: Sequence[Encoded], layout: Layout) -> Tensor:
    """The pixels, uint8 (N, C, H, W), of images that `layout_of` has accepted; DataError for a broken one.

    One of another size is scaled (bicubic) until it just covers the layout's, and what stands out is cut off
    on both sides alike.
    """
    size = layout.width, layout.height
    _require_room(len(images), layout)
    pixels = np.empty((len(images), *layout[:3]), dtype=np.uint8)
    mode = "L" if layout.channels == 1 else "RGB"
    for index, image in enumerate(images):
        with _opened(image) as opened:
            picture = opened if opened.mode == mode else opened.convert(mode)
            if picture.size != size:
                picture = ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
            array = np.asarray(picture)
            pixels[index] = array if layout.channels == 1 else array.transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _require_room(count: int, layout: Layout) -> None:
    """Raises DataError where so many images do not fit into memory: a small file may have many pixels."""
    needed = count * layout.channels * layout.height * layout.width
    free = psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"the pixels of {count:,} images of {layout.width} x {layout.height} must fit into the"
            f" {free:,} bytes of memory that are free, got {needed:,}"
        )


@contextmanager
def _content(image: Encoded) -> Iterator[BinaryIO]:
    """The bytes of an image to read, once they are not too many."""
    if isinstance(image.content, Path):
        with reading.opened(image.content, limits.IMAGE) as file:
            yield file
    elif len(image.content) > limits.IMAGE:
        raise reading.too_large(limits.IMAGE, len(image.content))
    else:
        yield BytesIO(image.content)


@contextmanager
def _opened(image: Encoded) -> Iterator[Image.Image]:
    try:
        with _content(image) as content, Image.open(content, formats=FORMATS) as opened:
            yield opened
    except UnidentifiedImageError:
        raise DataError(f"{image.name} cannot be decoded: not a {', '.join(FORMATS)} image") from None
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{image.name} must have at most {LARGEST_SIDE} pixels on a side, got over"
            f" {Image.MAX_IMAGE_PIXELS:,} pixels"
        ) from None
    except Exception as error:
        # PIL's decoders raise a dozen types on broken files, OSError and SyntaxError among them
        raise DataError(f"{image.name} cannot be decoded: {one_line(error)}") from None
