"""What a dataset contains, in numbers: sizes, class counts, imbalance, channel statistics, origin."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from sgenas.data.augmentation import statistics
from sgenas.data.images import ImageData

MOST_ROWS = 20
"""Classes that `str` lists."""
IMBALANCED = 2.0
"""Imbalance from which class weights are suggested."""


@dataclass(frozen=True)
class DatasetSummary:
    """Contents of a dataset.

    ``classes`` holds {name, train, test} per class, counts of images (test None without test images);
    ``mean`` and ``std`` are per channel over the training images, white is 1; ``imbalance`` is the ratio of
    the largest class to the smallest.
    """

    data: str
    origin: str
    train_images: int
    test_images: int | None
    channels: int
    height: int
    width: int
    horizontal_flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    imbalance: float
    classes: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Lines of text; of more than 20 classes the 10 largest and the 10 smallest."""
        tests = "no" if self.test_images is None else f"{self.test_images:,}"
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        lines = [
            ("data", self.data),
            ("from", self.origin),
            ("images", f"{self.train_images:,} training, {tests} test; {len(self.classes)} classes"),
            ("size", f"{self.width} x {self.height} pixels, {self.channels} channels"),
            ("mean", f"{mean}, standard deviation {std} (white is 1)"),
            ("flips", "keep the class" if self.horizontal_flip else "may change the class: not used"),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join([*(f"{name:<8}{value}" for name, value in lines), "", *self._class_lines()])

    def _class_lines(self) -> list[str]:
        rows = sorted(self.classes, key=lambda row: -row["train"])
        lines = [f"{'class':<32}{'training':>10}{'share':>9}{'test':>8}"]
        for row in rows if len(rows) > MOST_ROWS else self.classes:
            share = f"{100 * row['train'] / self.train_images:.1f} %"
            test = "-" if row["test"] is None else f"{row['test']:,}"
            lines.append(f"{row['name'][:30]:<32}{row['train']:>10,}{share:>9}{test:>8}")
        if len(rows) > MOST_ROWS:
            half = MOST_ROWS // 2
            lines[half + 1 : -half] = [f"... {len(rows) - MOST_ROWS} more"]
        most, least = rows[0], rows[-1]
        advice = "; consider balanced class weights" if self.imbalance >= IMBALANCED else ""
        counts = f"{most['train']:,} images of {most['name']}, {least['train']:,} of {least['name']}"
        return [*lines, f"imbalance {self.imbalance:.3g}: {counts}{advice}"]


def summarize(images: ImageData) -> DatasetSummary:
    """Counts what is in ``images``."""
    count = len(images.classes)
    train = torch.bincount(images.train.labels, minlength=count).tolist()
    test: list[int | None] = [None] * count
    if images.test is not None:
        test = torch.bincount(images.test.labels, minlength=count).tolist()
    mean, std = statistics(images.train.images)
    rows = zip(images.classes, train, test, strict=True)
    return DatasetSummary(
        data=images.name,
        origin=images.origin,
        train_images=len(images.train),
        test_images=None if images.test is None else len(images.test),
        channels=images.channels,
        height=images.height,
        width=images.width,
        horizontal_flip=images.horizontal_flip,
        mean=mean,
        std=std,
        imbalance=max(train) / min(train),
        classes=tuple({"name": name, "train": ours, "test": theirs} for name, ours, theirs in rows),
        notes=images.notes,
    )
