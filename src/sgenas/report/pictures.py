"""Draws images of a data set: a row of them for each class."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sgenas.data import ImageData
from sgenas.report.figures import house_style, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_CLASS = 10
MOST_CLASSES = 25
INCHES = 0.6
"""Side of the longer edge of an image."""


def draw_pictures(images: ImageData) -> "Figure":
    """Up to 10 training images of each class, from all over it, in rows with the classes' names.

    The same data set gives the same figure. Of more than 25 classes it shows the first 25, and says so.
    """
    from matplotlib.figure import Figure

    shown = images.classes[:MOST_CLASSES]
    rows = [_chosen(images, label) for label in range(len(shown))]
    mosaic = _mosaic(rows)
    longer = max(images.height, images.width)
    width = PER_CLASS * INCHES * images.width / longer
    height = len(rows) * INCHES * images.height / longer
    with house_style():
        figure = Figure(figsize=(width + 2.2, height + 0.7), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255)
        pitch = images.height + _gap(images.height)
        axes.set_yticks([row * pitch + images.height / 2 for row in range(len(rows))])
        axes.set_yticklabels([plain(_short(name)) for name in shown])
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        title = f"training images of {_short(images.name, 50)}"
        if len(shown) < len(images.classes):
            title += f", the first {len(shown)} classes of {len(images.classes)}"
        axes.set_title(plain(title), fontsize=9)
    return figure


def _chosen(images: ImageData, label: int) -> NDArray[np.uint8]:
    """Images (n, C, H, W) of a class, evenly from its first to its last."""
    members = (images.train.labels == label).nonzero().squeeze(1)
    places = torch.linspace(0, len(members) - 1, min(PER_CLASS, len(members))).round().long()
    return images.train.images[members[places]].cpu().numpy()


def _mosaic(rows: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """(rows, columns) of pixels, with a third axis for colours; white between the images."""
    _, channels, height, width = rows[0].shape
    down, across = height + _gap(height), width + _gap(width)
    mosaic = np.full((len(rows) * down, PER_CLASS * across, channels), 255, dtype=np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = row * down, column * across
            mosaic[top : top + height, left : left + width] = picture.transpose(1, 2, 0)
    return mosaic[..., 0] if channels == 1 else mosaic


def _gap(side: int) -> int:
    return max(1, side // 16)


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
