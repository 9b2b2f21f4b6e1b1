"""Stratified splits and samples: every class keeps its share.

scikit-learn has both, but draws from NumPy's generators and takes 2 s to import.
"""

import torch
from torch import Tensor

from sgenas.errors import DataError, require


def split_stratified(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Splits images at random within each class.

    The first part has round(fraction * N) images, each class in proportion to its size, as far as every class
    keeps an image in both parts.

    Args:
        labels: int64 (N,), at least two of each class.
        fraction: Share of the first part, in (0, 1).
        generator: On the CPU.

    Returns:
        (first, second): ascending indices, int64, on the CPU.
    """
    require(0 < fraction < 1, "fraction", "in (0, 1)", fraction)
    first = _draw(labels, round(fraction * len(labels)), generator, reserve=1)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[first] = True
    return first, (~chosen).nonzero().squeeze(1)


def sample_stratified(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draws images, each class in proportion to its size as far as every class has one.

    Args:
        labels: int64 (N,), at least one of each class.
        size: Number of images, from the number of classes to N.
        generator: On the CPU.

    Returns:
        Ascending indices, int64 (size,), on the CPU.
    """
    return _draw(labels, size, generator, reserve=0)


def _draw(labels: Tensor, total: int, generator: torch.Generator, reserve: int) -> Tensor:
    """Ascending indices of ``total`` images; ``reserve``: images of each class that are not drawn."""
    labels = labels.cpu()
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) == 0 or int(labels.min()) < 0:
        got = f"{labels.dtype} of {tuple(labels.shape)}"
        raise DataError(f"labels must be int64 >= 0 of shape (N,), not empty, got {got}")
    counts = torch.bincount(labels).tolist()
    if min(counts) <= reserve:
        index = counts.index(min(counts))
        raise DataError(f"class {index} must have at least {reserve + 1} images, got {counts[index]}")
    if not reserve and not len(counts) <= total <= len(labels):
        limits = f"from {len(counts)} (one image per class) to {len(labels)}"
        raise DataError(f"size of a sample must be {limits}, got {total}")
    drawn = []
    for index, part in enumerate(_apportion(counts, total, reserve)):
        members = (labels == index).nonzero().squeeze(1)
        drawn.append(members[torch.randperm(len(members), generator=generator)[:part]])
    return torch.cat(drawn).sort().values


def _apportion(counts: list[int], total: int, reserve: int) -> list[int]:
    """Distributes ``total`` in proportion to ``counts``: each share from 1 to count - reserve.

    Largest remainders first, the lower class on a tie; the sum is ``total`` unless those limits forbid it.
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
