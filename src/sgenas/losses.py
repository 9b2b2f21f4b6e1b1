"""Losses for `sgenas.search`: functions ``loss(model, batch)`` that return a 0-d tensor."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Callable[..., Any], Any], Tensor]
"""loss(model, batch) -> 0-d tensor. ``model`` is called like the module; the loss must be pure."""


def cross_entropy(model: Callable[..., Any], batch: Any) -> Tensor:
    """Mean cross-entropy of a classifier.

    Args:
        model: Called with the first element of the batch; returns logits (B, classes).
        batch: ``(inputs, labels)``, or ``(inputs, labels, factors)`` where factors (B,) multiply the loss of
            each example. labels is int64 (B,).
    """
    inputs, labels, *factors = batch
    logits = model(inputs)
    if not factors:
        return F.cross_entropy(logits, labels)
    return (factors[0] * F.cross_entropy(logits, labels, reduction="none")).mean()


def mean_squared_error(model: Callable[..., Any], batch: Any) -> Tensor:
    """Mean of squared differences between ``model(batch[0])`` and ``batch[1]``."""
    return F.mse_loss(model(batch[0]), batch[1])
