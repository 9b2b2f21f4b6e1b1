"""Encoded images (files or bytes) to uint8 tensors, with Pillow.

One thread: on CIFAR-sized images the interpreter lock makes two slower than one.

An image is turned as its EXIF or XMP orientation says, and transparent pixels are blended with white:
round((a c + (255 - a) 255) / 255) for color c and alpha a.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sgenas.data.images import ImageData, ImageSet
from sgenas.data.sources import LoadRequest
from sgenas.errors import DataError, one_line

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
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
        DataError: If an image cannot be decoded, is grayscale with more than 8 bits or (without
            ``request.image_size``) has another size than the first; the message names it.
    """
    changes: Counter[str] = Counter()
    pixels = _decode([*train[0], *([] if test is None else test[0])], request.image_size, changes)
    trained = ImageSet(pixels[: len(train[0])], train[1])
    tested = None if test is None else ImageSet(pixels[len(train[0]) :], test[1])
    notes += changes_note(changes)
    return ImageData(request.spec, trained, tested, classes, origin=origin, notes=notes)


def changes_note(changes: Counter[str]) -> tuple[str, ...]:
    """One note that counts the changed images, or none."""
    changed = ", ".join(f"{count:,} {what}" for what, count in changes.items() if count)
    return (f"images changed: {changed}",) if changed else ()


def flattened(picture: Image.Image, mode: str) -> tuple[Image.Image, bool]:
    """The picture in ``mode`` (L or RGB), transparency blended with white, and whether there was any."""
    if not picture.has_transparency_data:
        return picture if picture.mode == mode else picture.convert(mode), False
    picture = picture.convert("RGBA")
    alpha = picture.getchannel("A")
    paper = Image.new("RGB", picture.size, "white")
    paper.paste(picture, mask=alpha)
    return paper if mode == "RGB" else paper.convert(mode), alpha.getextrema()[0] != 255


def _decode(images: Sequence[Encoded], image_size: int | None, changes: Counter[str]) -> Tensor:
    """uint8 (N, C, H, W), C = 1 if all images are grayscale, else 3; counts in ``changes`` what is changed."""
    pixels, size, grays = np.empty((0, 1, 0, 0), dtype=np.uint8), (0, 0), 0
    for index, image in enumerate(images):
        picture, gray = _upright(image, changes)
        if index == 0:
            size = picture.size if image_size is None else (image_size, image_size)
            # decoded into their final place: a list to stack would hold all pixels twice
            pixels = np.empty((len(images), 1 if gray else 3, size[1], size[0]), dtype=np.uint8)
        if picture.size != size:
            if image_size is None:
                sizes = f"of {size[0]} x {size[1]} pixels as {images[0].name}, got {picture.width} x {picture.height}"
                raise DataError(f"{image.name} must be {sizes}; set image_size to bring all images to one size")
            picture = ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
            changes[f"scaled and cropped to {size[0]} x {size[1]}"] += 1
        if not gray and pixels.shape[1] == 1:
            pixels = pixels.repeat(3, axis=1)
        pixels[index] = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        grays += gray
    changes["grayscale converted to RGB"] += grays if grays < len(images) else 0
    return torch.from_numpy(pixels)


def _upright(image: Encoded, changes: Counter[str]) -> tuple[Image.Image, bool]:
    """The image in mode L or RGB, upright and without transparency, and whether it is grayscale."""
    content = BytesIO(image.content) if isinstance(image.content, bytes) else image.content
    remedy = "replace or delete it"
    # Pillow warns of damaged metadata, and of a decompression bomb from 90 million pixels on
    quiet = warnings.catch_warnings(action="ignore")
    strict = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
    try:
        with quiet, strict, Image.open(content, formats=IMAGE_FORMATS) as opened:
            mode, gray = opened.mode, opened.mode in ("L", "1", "LA")
            if mode.startswith(("I", "F")):
                wanted = "8 bits per channel; convert it, with the range of gray levels that you need"
                raise DataError(f"{image.name} must have {wanted}, got Pillow mode {mode}")
            # what Pillow decodes from, before the pixels are loaded
            deep = any(";16" in str(tile[3]) for tile in getattr(opened, "tile", ()))
            # an iPhone's JPEG may hold a second picture too, which is no animation
            moving = opened.format in ("GIF", "WEBP", "PNG") and getattr(opened, "is_animated", False)
            opened.load()
            # Pillow raises half a dozen types on damaged metadata; the image stays as it is, as in browsers
            with suppress(Exception):
                turned = opened.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
                changes["rotated or flipped as their EXIF orientation says"] += turned
                ImageOps.exif_transpose(opened, in_place=True)
            picture, transparent = flattened(opened, "L" if gray else "RGB")
    except DataError:
        raise
    except UnidentifiedImageError:
        known = ", ".join(IMAGE_FORMATS)
        raise DataError(f"{image.name} cannot be decoded: not a {known} image; {remedy}") from None
    except Exception as error:
        # Pillow's decoders raise a dozen types on damaged files, OSError and SyntaxError among them
        raise DataError(f"{image.name} cannot be decoded: {one_line(error)}; {remedy}") from None
    changes["CMYK converted to RGB"] += mode == "CMYK"
    changes["reduced from 16 to 8 bits per channel"] += deep
    changes["animated, first frame used"] += moving
    changes["with transparency put on white"] += transparent
    return picture, gray


def fitted(images: Tensor, side: int) -> Tensor:
    """uint8 (N, C, H, W) with 1 or 3 channels, scaled (bicubic) and cropped at the center to (N, C, side, side)."""
    pixels = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
        array = np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC))
        pixels[index] = np.atleast_3d(array).transpose(2, 0, 1)
    return torch.from_numpy(pixels)
