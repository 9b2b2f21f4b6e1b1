"""Augmentation of whole batches on their device: crop, horizontal flip, normalization, cutout, as in DARTS.

The random numbers are a few integers per image from a CPU generator, moved to the device: a CPU and a CUDA
run with one seed see the same batches.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sgenas.device import moved
from sgenas.errors import require

SMALLEST_STD = 1 / 255
"""One gray level, so that the standard deviation of a constant channel can be divided by."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crop after zero padding, horizontal flip, normalization, cutout.

    Args:
        pad: Pixels of black on each side before the crop to the image's size (``RandomCrop``).
        horizontal_flip: Whether to flip half of the images.
        cutout: Side in pixels of a square that is set to zero after normalization, centered uniformly over
            the image and clipped at its borders; 0 for none.
        mean: Mean per channel; white is 1.
        std: Standard deviation per channel, > 0.

    Raises:
        InvalidValueError: If a field is out of range.
    """

    pad: int = 4
    horizontal_flip: bool = True
    cutout: int = 0
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        require(type(self.pad) is int and self.pad >= 0, "Augmentation.pad", "an integer >= 0", self.pad)
        good = type(self.cutout) is int and self.cutout >= 0
        require(good, "Augmentation.cutout", "an integer >= 0", self.cutout)
        good = len(self.mean) > 0 and all(map(math.isfinite, self.mean))
        require(good, "Augmentation.mean", "finite numbers, one per channel", self.mean)
        good = len(self.std) == len(self.mean) and all(0 < value < math.inf for value in self.std)
        require(good, "Augmentation.std", "finite numbers > 0, one per channel", self.std)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, C, H, W) -> augmented float32 (B, C, H, W), on the images' device.

        Draws from the CPU ``generator`` in this order, whatever the settings: the crop's top and left edges,
        (2, B) integers from 0 to 2 pad; flips, (B,) from 0 to 1; rows (B,) from 0 to H - 1 and columns (B,)
        from 0 to W - 1 of the cutout's center.
        """
        _check(images, len(self.mean))
        batch, channels, height, width = images.shape
        top, left = torch.randint(0, 2 * self.pad + 1, (2, batch), generator=generator)
        flip = torch.randint(0, 2, (batch,), generator=generator)
        center_row = torch.randint(0, height, (batch,), generator=generator)
        center_column = torch.randint(0, width, (batch,), generator=generator)
        # small numbers are worked out on the CPU: on a GPU every operation costs the same, however small
        places: list[Tensor] = []
        gathers = self.pad or self.horizontal_flip
        if gathers:
            across = torch.arange(width)
            mirrored = torch.where(flip[:, None] == 1, width - 1 - across, across) if self.horizontal_flip else across
            rows = (top[:, None] + torch.arange(height)) * (width + 2 * self.pad)
            places += [rows, left[:, None] + mirrored]
        if self.cutout:
            places += [_covered(center_row, self.cutout, height), _covered(center_column, self.cutout, width)]
        there = moved(torch.cat(places, dim=1), images.device) if places else None
        if there is not None and gathers:
            # one flat gather: 4 times as fast on the CPU as indexing with (batch, :, rows, columns)
            rows, columns = there[:, :height], there[:, height : height + width]
            pixels = (rows[:, :, None] + columns[:, None, :]).view(batch, 1, -1)
            padded = F.pad(images, 4 * (self.pad,)).view(batch, channels, -1)
            images = padded.gather(2, pixels.expand(-1, channels, -1)).view(images.shape)
        out = self.plain(images)
        if there is not None and self.cutout:
            covered = there[:, -height - width :].bool()
            out.masked_fill_(covered[:, None, :height, None] & covered[:, None, None, height:], 0.0)
        return out

    def plain(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W), normalized only, for evaluation."""
        _check(images, len(self.mean))
        scale, shift = _constants(self.mean, self.std, images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel of uint8 (N, C, H, W) over all pixels; white is 1.

    Exact up to float64 rounding, from the counts of the 256 gray levels. The standard deviation is that of
    the population, at least 1/255.
    """
    _check(images, images.shape[1] if images.ndim == 4 and images.numel() else 0)
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).to("cpu", torch.float64)
        shares = counts / counts.sum()
        mean = float((shares * levels).sum())
        variance = float((shares * (levels - mean) ** 2).sum())
        means.append(mean)
        stds.append(max(math.sqrt(variance), SMALLEST_STD))
    return tuple(means), tuple(stds)


def _check(images: Tensor, channels: int) -> None:
    good = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == channels
    form = f"uint8 of shape (B, {channels or 'C'}, H, W), not empty"
    require(good, "images", form, f"{images.dtype} of {tuple(images.shape)}")


def _covered(center: Tensor, side: int, length: int) -> Tensor:
    """(B, length), True where ``side`` pixels around ``center`` (B,) cover the pixel."""
    start = (center - side // 2)[:, None]
    position = torch.arange(length)
    return (position >= start) & (position < start + side)


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand, float32 (1, C, 1, 1), that normalize gray levels 0..255 in one step each.

    Cached, so that a batch on a GPU does not wait for two small copies from the host.
    """
    scale = [1 / (255 * deviation) for deviation in std]
    shift = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
    both = moved(torch.tensor([scale, shift], dtype=torch.float32).view(2, 1, -1, 1, 1), device)
    return both[0], both[1]
