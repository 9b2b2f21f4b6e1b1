"""Drawing images class by class, so that every class keeps its share: splits and samples of a label list."""

import torch
from torch import Tensor

from sgenas.errors import DataError, InvalidValueError


def split_stratified(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cuts the images in two at random, within each class: (first, second), ascending indices, int64.

    `labels` is int64 (N,). The first part holds round(fraction * N) images, each class in proportion to its
    size, as far as every class can keep an image in both parts. The indices are on the CPU, and depend on
    the labels and the CPU `generator` alone.

    Raises InvalidValueError for a fraction outside (0, 1), DataError for a class with fewer than two images.
    """
    if not 0 < fraction < 1:
        raise InvalidValueError(f"fraction must be between 0 and 1, both excluded, got {fraction!r}")
    labels, counts = _counted(labels)
    for index, count in enumerate(counts):
        if count < 2:
            raise DataError(f"class {index} must have at least 2 images to be split, got {count}")
    parts = _apportion(counts, round(fraction * len(labels)), reserve=1)
    first = _draw(labels, parts, generator)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[first] = True
    return first, (~chosen).nonzero().squeeze(1)


def sample_stratified(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Ascending indices, int64 (size,), of a random sample, at least one image of each class.

    `labels` is int64 (N,), with at least one image in each class 0 .. max. Classes are in proportion to
    their sizes as far as each can have an image. The indices are on the CPU, and depend on the labels and
    the CPU `generator` alone.

    Raises DataError for a size below the number of classes or above N, or a class without an image.
    """
    labels, counts = _counted(labels)
    if 0 in counts:
        raise DataError(f"class {counts.index(0)} must have at least 1 image to be sampled, got 0")
    if not len(counts) <= size <= len(labels):
        raise DataError(
            f"sample size must be from {len(counts)} (one image per class) to {len(labels)}, got {size}"
        )
    return _draw(labels, _apportion(counts, size, reserve=0), generator)


def _counted(labels: Tensor) -> tuple[Tensor, list[int]]:
    """The labels on the CPU, and the number of images of each class 0 .. max."""
    labels = labels.cpu()
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) == 0 or int(labels.min()) < 0:
        raise DataError(
            f"labels must be int64 of shape (N,), N >= 1, none negative, got {labels.dtype} of"
            f" {tuple(labels.shape)}"
        )
    return labels, torch.bincount(labels).tolist()


def _draw(labels: Tensor, parts: list[int], generator: torch.Generator) -> Tensor:
    drawn = []
    for index, part in enumerate(parts):
        members = (labels == index).nonzero().squeeze(1)
        drawn.append(members[torch.randperm(len(members), generator=generator)[:part]])
    return torch.cat(drawn).sort().values


def _apportion(counts: list[int], total: int, reserve: int) -> list[int]:
    """Shares out `total` in proportion to `counts`: each share from 1 to count - reserve.

    Largest remainders first, the lower class on a tie; the sum is `total` unless those limits forbid it.
    """
    images = sum(counts)
    shares = [min(max(total * count // images, 1), count - reserve) for count in counts]

    def shortfall(index: int) -> tuple[int, int]:
        # scaled by `images` to stay in integers, which are exact
        return total * counts[index] - shares[index] * images, -index

    while sum(shares) < total:
        growing = [index for index, share in enumerate(shares) if share < counts[index] - reserve]
        if not growing:
            break
        shares[max(growing, key=shortfall)] += 1
    while sum(shares) > total:
        shrinking = [index for index, share in enumerate(shares) if share > 1]
        if not shrinking:
            break
        shares[min(shrinking, key=shortfall)] -= 1
    return shares
