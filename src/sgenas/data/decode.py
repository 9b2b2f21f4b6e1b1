"""Encoded images (files or bytes) to uint8 tensors, with Pillow.

The headers of all images are read first: they settle size and channels, so that the pixels can be decoded
into their final place. One thread: on CIFAR-sized images the interpreter lock makes two slower than one.

An image is turned as its EXIF or XMP orientation says, and transparent pixels are blended with white:
round((a c + (255 - a) 255) / 255) for color c and alpha a.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright; from 5 on, width and height swap."""
LATE_METADATA = b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"
"""Chunks of a PNG file that may follow its pixels; ExifTool puts them there."""


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
    shape = _shape([*train[0], *([] if test is None else test[0])], request.image_size, changes)
    trained = ImageSet(_decode(train[0], shape, changes), train[1])
    tested = None if test is None else ImageSet(_decode(test[0], shape, changes), test[1])
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


def _shape(images: Sequence[Encoded], image_size: int | None, changes: Counter[str]) -> tuple[int, int, int]:
    """(C, H, W) of all images; counts in ``changes`` those that are changed for it."""
    target, gray, resized = None if image_size is None else (image_size, image_size), 0, 0
    for image in images:
        with _opened(image) as opened:
            # what Pillow decodes from, before something loads the pixels
            deep = any(";16" in str(tile[3]) for tile in getattr(opened, "tile", ()))
            mode, turn = opened.mode, _turn(opened, image)
            size = opened.size[::-1] if turn in (5, 6, 7, 8) else opened.size
            # an iPhone's JPEG may hold a second picture too, which is no animation
            moving = opened.format in ("GIF", "WEBP", "PNG") and getattr(opened, "is_animated", False)
        if mode.startswith(("I", "F")):
            wanted = "8 bits per channel; convert it, with the range of gray levels that you need"
            raise DataError(f"{image.name} must have {wanted}, got Pillow mode {mode}")
        target = target or size
        if image_size is None and size != target:
            sizes = f"of {target[0]} x {target[1]} pixels as {images[0].name}, got {size[0]} x {size[1]}"
            raise DataError(f"{image.name} must be {sizes}; set image_size to bring all images to one size")
        gray += mode in ("L", "1", "LA")
        resized += size != target
        changes["rotated or flipped as their EXIF orientation says"] += turn in TURNS
        changes["CMYK converted to RGB"] += mode == "CMYK"
        changes["reduced from 16 to 8 bits per channel"] += deep
        changes["animated, first frame used"] += moving
    width, height = target or (0, 0)
    changes[f"scaled and cropped to {width} x {height}"] += resized
    changes["grayscale converted to RGB"] += gray if gray < len(images) else 0
    return (1 if gray == len(images) else 3, height, width)


def _decode(images: Sequence[Encoded], shape: tuple[int, int, int], changes: Counter[str]) -> Tensor:
    """uint8 (N, *shape); images of another size are scaled (bicubic) and cropped at the center."""
    channels, height, width = shape
    pixels = np.empty((len(images), *shape), dtype=np.uint8)
    for index, image in enumerate(images):
        with _opened(image) as opened:
            turn = TURNS.get(_turn(opened, image))
            picture, transparent = flattened(opened, "L" if channels == 1 else "RGB")
            changes["with transparency put on white"] += transparent
            if turn is not None:
                picture = picture.transpose(turn)
            if picture.size != (width, height):
                picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
            array = np.asarray(picture)
            pixels[index] = array if channels == 1 else array.transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def fitted(images: Tensor, side: int) -> Tensor:
    """uint8 (N, C, H, W) with 1 or 3 channels, scaled (bicubic) and cropped at the center to (N, C, side, side)."""
    pixels = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
        array = np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC))
        pixels[index] = array if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _turn(opened: Image.Image, image: Encoded) -> int:
    """The image's EXIF orientation; 1 (upright) if there is none or the metadata is damaged, as in browsers."""
    if opened.format == "PNG" and "exif" not in opened.info:
        # Pillow would decode the pixels to see what follows them
        content = image.content if isinstance(image.content, bytes) else image.content.read_bytes()
        if not any(chunk in content for chunk in LATE_METADATA):
            return 1
    try:
        return int(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises half a dozen types
        return 1


@contextmanager
def _opened(image: Encoded) -> Iterator[Image.Image]:
    content = BytesIO(image.content) if isinstance(image.content, bytes) else image.content
    remedy = "replace or delete it"
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, and of a decompression bomb from 90 million pixels on
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content, formats=IMAGE_FORMATS) as opened:
                yield opened
    except UnidentifiedImageError:
        known = ", ".join(IMAGE_FORMATS)
        raise DataError(f"{image.name} cannot be decoded: not a {known} image; {remedy}") from None
    except Exception as error:
        # Pillow's decoders raise a dozen types on damaged files, OSError and SyntaxError among them
        raise DataError(f"{image.name} cannot be decoded: {one_line(error)}; {remedy}") from None
