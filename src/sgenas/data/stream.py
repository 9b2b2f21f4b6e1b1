"""Batches from an image set in memory: endless and resumable for training, each image once to evaluate."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sgenas.data.augment import Augmentation
from sgenas.data.images import ImageSet
from sgenas.errors import DataError, InvalidValueError


class BatchStream:
    """Endless iterator over batches (images, labels): float32 (B, C, H, W) and int64 (B,), on data's device.

    Each pass goes through a new permutation of the images and drops the rest that is shorter than a batch.
    Permutations and augmentation are drawn from `generator`, which the stream has to itself. Nothing is
    drawn before the first batch.

    Raises DataError for a batch size outside 1 .. len(data), InvalidValueError for a generator on a GPU.
    """

    def __init__(
        self, data: ImageSet, batch_size: int, augmentation: Augmentation, generator: torch.Generator
    ) -> None:
        if not 1 <= batch_size <= len(data):
            raise DataError(f"batch size must be from 1 to the {len(data)} images, got {batch_size}")
        if generator.device.type != "cpu":
            raise InvalidValueError(f"generator must be on the cpu, got one on {generator.device}")
        self._data = data
        self._batch_size = batch_size
        self._augmentation = augmentation
        self._generator = generator
        self._set_order(torch.arange(len(data)))
        self._batch = self.batches_per_pass

    @property
    def batches_per_pass(self) -> int:
        """Whole batches in one pass through the images."""
        return len(self._data) // self._batch_size

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self._batch == self.batches_per_pass:
            self._set_order(torch.randperm(len(self._data), generator=self._generator))
            self._batch = 0
        start = self._batch * self._batch_size
        indices = self._device_order[start : start + self._batch_size]
        self._batch += 1
        images = self._augmentation(self._data.images[indices], self._generator)
        return images, self._data.labels[indices]

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, as tensors and integers; a copy, for torch.save with weights only."""
        return {
            "batch_size": self._batch_size,
            "batch": self._batch,
            "order": self._order.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the place of `state_dict`: the next batches are those that followed there, bit for bit.

        Raises DataError, and changes nothing, where the state is of another batch size or number of images
        or is damaged.
        """
        expected = {"batch_size", "batch", "order", "generator"}
        if set(state) != expected:
            raise DataError(f"stream state must have the keys {sorted(expected)}, got {sorted(state)}")
        for key, kind in (("batch_size", int), ("batch", int), ("order", Tensor), ("generator", Tensor)):
            if not isinstance(state[key], kind):
                got = type(state[key]).__name__
                raise DataError(f"{key} in the stream state must be of type {kind.__name__}, got {got}")
        batch_size, batch, order = state["batch_size"], state["batch"], state["order"]
        if batch_size != self._batch_size:
            raise DataError(f"batch size of the stream state must be {self._batch_size}, got {batch_size}")
        if order.shape != self._order.shape:
            raise DataError(
                f"stream state must be of {len(self._order)} images, got one of {tuple(order.shape)}"
            )
        if not torch.equal(order.cpu().sort().values, torch.arange(len(order))):
            raise DataError("order in the stream state must be a permutation, got one with repeats")
        if not 0 <= batch <= self.batches_per_pass:
            raise DataError(
                f"batch in the stream state must be from 0 to {self.batches_per_pass}, got {batch}"
            )
        try:
            self._generator.set_state(state["generator"].cpu())
        except (RuntimeError, TypeError) as error:
            raise DataError(f"generator in the stream state cannot be restored: {error}") from None
        self._set_order(order.cpu().clone())
        self._batch = batch

    def _set_order(self, order: Tensor) -> None:
        self._order = order
        # one copy a pass instead of one a batch
        self._device_order = order.to(self._data.images.device)


def ordered_batches(
    data: ImageSet, batch_size: int, augmentation: Augmentation
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, normalised only, in batches of `batch_size` or a little more.

    The images that are over are spread over all batches: a short last one would have poor batch statistics.
    Fewer images than `batch_size` make one batch. Shapes as in `BatchStream`. Raises DataError for a batch
    size below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch size must be at least 1, got {batch_size}")
    count = max(1, len(data) // batch_size)
    parts = zip(data.images.tensor_split(count), data.labels.tensor_split(count), strict=True)
    return ((augmentation.plain(images), labels) for images, labels in parts)
