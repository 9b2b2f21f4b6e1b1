"""Batches from images in memory: endless and resumable for training, each image once for evaluation.

With weight w_c of class c the loss of a batch of B images is PyTorch's weighted cross-entropy,

    sum_i w_{y_i} l_i / sum_j w_{y_j} = 1/B sum_i f_i l_i,    f_i = w_{y_i} / (1/B sum_j w_{y_j}),

where l_i is the cross-entropy of image i. The right side is a plain mean: with the factors f_i of the whole
batch, the mean over equal shards of the batch is the same number, which the left side is not.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sgenas.data.augmentation import Augmentation
from sgenas.data.images import ImageSet
from sgenas.device import moved
from sgenas.errors import DataError, require


def balanced(labels: Tensor, classes: int) -> Tensor:
    """Class weights w_c = n / (k n_c) against imbalance, as scikit-learn's ``class_weight="balanced"``.

    Args:
        labels: n labels, int64 (n,); every class has one or more.
        classes: Number of classes k.

    Returns:
        float32 (k,). Their mean over the labels is 1, so that the loss keeps its scale.
    """
    counts = torch.bincount(labels, minlength=classes).double()
    return (len(labels) / (classes * counts)).float()


class BatchStream:
    """Endless iterator over batches.

    A batch is (images, labels), float32 (B, C, H, W) and int64 (B,); with class weights it is (images,
    labels, factors), factors float32 (B,) as in the formula of this module. Each pass goes through a new
    permutation of the images and drops the rest that is shorter than a batch. Nothing is drawn before the
    first batch.

    Args:
        images: The images to draw from.
        batch_size: Images per batch, from 1 to ``len(images)``.
        augmentation: Augments each batch.
        generator: On the CPU, used by this stream alone: draws permutations and augmentation.
        class_weights: (k,), weight of each class, or None.
        device: Device of the batches, where they are augmented; that of ``images`` if None.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        augmentation: Augmentation,
        generator: torch.Generator,
        class_weights: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        count = len(images)
        require(batch_size >= 1, "batch_size", ">= 1", batch_size)
        require(batch_size <= count, "batch_size", f"at most {count} (the number of images)", batch_size)
        require(generator.device.type == "cpu", "generator", "on the CPU", generator.device)
        self._images, self._batch_size = images, batch_size
        self._augmentation, self._generator = augmentation, generator
        self._device = device or images.images.device
        self._class_weights = None if class_weights is None else class_weights.to(self._device)
        self._set_order(torch.arange(count))
        self._batch = self.batches_per_pass

    @property
    def batches_per_pass(self) -> int:
        """Full batches in one pass through the images."""
        return len(self._images) // self._batch_size

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self._batch == self.batches_per_pass:
            self._set_order(torch.randperm(len(self._images), generator=self._generator))
            self._batch = 0
        start = self._batch * self._batch_size
        indices = self._device_order[start : start + self._batch_size]
        self._batch += 1
        images = self._augmentation(moved(self._images.images[indices], self._device), self._generator)
        return _with_factors(images, moved(self._images.labels[indices], self._device), self._class_weights)

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream: tensors and integers, copied."""
        return {
            "batch_size": self._batch_size,
            "batch": self._batch,
            "order": self._order.clone(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to the position of ``state_dict``: the next batches are the same as there, bit for bit.

        Raises:
            DataError: If the state is of another stream or damaged; then nothing changes.
        """
        try:
            size, batch, order = state["batch_size"], state["batch"], state["order"].cpu()
            if size != self._batch_size or order.shape != self._order.shape:
                here = f"batch size {self._batch_size} and {len(self._order)} images"
                raise ValueError(f"it must have {here}, got {size} and {tuple(order.shape)}")
            if not torch.equal(order.sort().values, torch.arange(len(order))):
                raise ValueError("its order must be a permutation")
            if not isinstance(batch, int) or not 0 <= batch <= self.batches_per_pass:
                raise ValueError(f"its batch must be from 0 to {self.batches_per_pass}, got {batch}")
            self._generator.set_state(state["generator"].cpu())
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise DataError(f"state of a batch stream cannot be restored: {error}") from None
        self._set_order(order.clone())
        self._batch = batch

    def _set_order(self, order: Tensor) -> None:
        self._order = order
        # one copy per pass instead of one per batch
        self._device_order = moved(order, self._images.images.device)


def _with_factors(images: Tensor, labels: Tensor, class_weights: Tensor | None) -> tuple[Tensor, ...]:
    """(images, labels), or (images, labels, factors) as in the formula of this module."""
    if class_weights is None:
        return images, labels
    weights = class_weights[labels]
    return images, labels, weights / weights.mean()


def ordered_batches(
    images: ImageSet,
    batch_size: int,
    augmentation: Augmentation,
    device: torch.device | None = None,
    class_weights: Tensor | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Every image once, in order, normalized only, in batches of ``batch_size`` or a little more, on ``device``.

    With ``class_weights`` (k,) also the factors of `BatchStream`.

    The remainder is spread over all batches, because a short last batch would have poor batch statistics.
    Fewer images than ``batch_size`` make one batch.
    """
    require(batch_size >= 1, "batch_size", ">= 1", batch_size)
    count = max(1, len(images) // batch_size)
    where = device or images.images.device
    parts = zip(images.images.tensor_split(count), images.labels.tensor_split(count), strict=True)
    return (
        _with_factors(augmentation.plain(moved(part, where)), moved(labels, where), class_weights)
        for part, labels in parts
    )
