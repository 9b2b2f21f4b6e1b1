"""Augmentation of whole batches on their device: crop, flip, normalisation and cutout as in DARTS.

The random numbers come from a CPU generator, a few integers per image, and are moved to the device: a CPU
and a CUDA run with one seed see the same batches.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgenas.errors import InvalidValueError

SMALLEST_STD = 1 / 255
"""One grey level: the least standard deviation that `statistics` returns, so that it can be divided by."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crop after zero padding, mirroring, normalisation, cutout. Checked when made.

    `pad`: pixels of black on each side before the crop back to the image's size, as in torchvision's
    RandomCrop. `mirror`: flip half of the images horizontally. `cutout`: side in pixels of a square set to
    zero after normalisation, centred uniformly over the image and clipped at its borders; 0 for none.
    `mean`, `std`: per channel, on the scale on which white is 1.

    Raises InvalidValueError for a field outside its limits.
    """

    pad: int = 4
    mirror: bool = True
    cutout: int = 0
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in ("pad", "cutout"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidValueError(f"augmentation.{field} must be an integer >= 0, got {value!r}")
        if not isinstance(self.mirror, bool):
            raise InvalidValueError(f"augmentation.mirror must be true or false, got {self.mirror!r}")
        for field in ("mean", "std"):
            values: Any = getattr(self, field)
            if not isinstance(values, tuple) or not values or not all(map(_is_finite, values)):
                raise InvalidValueError(
                    f"augmentation.{field} must be a tuple of finite numbers, one per channel, got {values!r}"
                )
        if min(self.std) <= 0:
            raise InvalidValueError(f"augmentation.std must be > 0 in each channel, got {self.std}")
        if len(self.mean) != len(self.std):
            raise InvalidValueError(
                f"augmentation.mean and std must have one number per channel, got {len(self.mean)} and"
                f" {len(self.std)}"
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W), augmented, on the images' device.

        Draws from the CPU `generator`, in this order and always all of it: the crop's top and left edges,
        (2, B) integers from 0 to 2 pad; flips, (B,) from 0 to 1; the cutout's rows, (B,) from 0 to H - 1,
        and columns, (B,) from 0 to W - 1.
        """
        self._check(images)
        batch, _, height, width = images.shape
        top, left = torch.randint(0, 2 * self.pad + 1, (2, batch), generator=generator)
        flip = torch.randint(0, 2, (batch,), generator=generator)
        centre_row = torch.randint(0, height, (batch,), generator=generator)
        centre_column = torch.randint(0, width, (batch,), generator=generator)
        drawn = torch.stack([top, left, flip, centre_row, centre_column])
        top, left, flip, centre_row, centre_column = drawn.to(images.device, non_blocking=True)
        if self.pad or self.mirror:
            images = _crop(images, self.pad, top, left, flip if self.mirror else torch.zeros_like(flip))
        out = self._normalise(images)
        if self.cutout:
            rows = _inside(centre_row, self.cutout, height)
            columns = _inside(centre_column, self.cutout, width)
            out.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0.0)
        return out

    def plain(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W), normalised only, for evaluation."""
        self._check(images)
        return self._normalise(images)

    def _check(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise InvalidValueError(
                f"images must be uint8 of shape (B, {len(self.mean)}, H, W), got {images.dtype} of"
                f" {tuple(images.shape)}"
            )

    def _normalise(self, images: Tensor) -> Tensor:
        scale, shift = _constants(self.mean, self.std, images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel of uint8 (N, C, H, W) over all pixels, on the scale on which white is 1.

    Exact up to float64 rounding: computed from the counts of the 256 grey levels. The standard deviation is
    that of the population, at least 1/255.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise InvalidValueError(
            f"images must be uint8 of shape (N, C, H, W), not empty, got {images.dtype} of"
            f" {tuple(images.shape)}"
        )
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


def _crop(images: Tensor, pad: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Each image cut from its padded self at (top, left) and mirrored where `flip` is 1; all (B,)."""
    batch, channels, height, width = images.shape
    across = torch.arange(width, device=images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None] == 1, width - 1 - across, across)
    # one flat gather: 4 times as fast on the CPU as indexing with (batch, :, rows, columns)
    pixels = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).view(batch, 1, -1)
    padded = F.pad(images, (pad, pad, pad, pad)).view(batch, channels, -1)
    return padded.gather(2, pixels.expand(-1, channels, -1)).view(images.shape)


def _inside(centre: Tensor, side: int, length: int) -> Tensor:
    """(B, length), true where a stretch of `side` pixels around `centre` (B,) covers the pixel."""
    start = (centre - side // 2)[:, None]
    place = torch.arange(length, device=centre.device)
    return (place >= start) & (place < start + side)


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factor and summand, float32 (1, C, 1, 1), that normalise grey levels 0..255 in one step each.

    Kept, so that a batch on a GPU does not wait for two small copies from the host.
    """
    scale = [1 / (255 * deviation) for deviation in std]
    shift = [-average / deviation for average, deviation in zip(mean, std, strict=True)]
    both = torch.tensor([scale, shift], dtype=torch.float32, device=device).view(2, 1, -1, 1, 1)
    return both[0], both[1]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
