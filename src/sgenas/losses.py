"""Losses for `sgenas.search`: functions ``loss(model, batch)`` that return a 0-d tensor."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

Loss = Callable[[Callable[..., Any], Any], Tensor]
"""loss(model, batch) -> 0-d tensor. ``model`` is called like the module; the loss must be pure."""


IGNORED = -100
"""The label that cross-entropy leaves out: default of ``ignore_index`` in `torch.nn.functional.cross_entropy`."""


def hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(number of right predictions, number of labels that count), 0-d float64.

    Args:
        logits: Shape (B, classes, ...).
        labels: int64 (B, ...) with `IGNORED` entries left out, or class probabilities in the shape of ``logits``.
    """
    if labels.is_floating_point():
        labels = labels.argmax(dim=1)
    right, counted = logits.argmax(dim=1) == labels, labels != IGNORED
    # float64, since float32 cannot count the pixels of a dataset
    return right.sum(dtype=torch.float64), counted.sum(dtype=torch.float64)


def classification_sums(model: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
    """Sums over a batch ``(inputs, labels, ...)``: cross-entropy as ``loss``, hits as ``accuracy``, and ``count``."""
    inputs, labels = batch[0], batch[1]
    logits = model(inputs)
    # a sum in half precision would round
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    right, count = hits(logits, labels)
    return {"loss": F.cross_entropy(logits, labels, reduction="sum"), "accuracy": right, "count": count}


def loss_sums(loss: Loss, model: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
    """``loss`` of a batch times its rows, and the rows as ``count``, so that batches of any size have a mean."""
    value = loss(model, batch).detach().double()
    rows = torch.full_like(value, rows_of(batch) or 1)
    return {"loss": value * rows, "count": rows}


def rows_of(batch: Any) -> int | None:
    """Length of the first tensor in nested tuples, lists and dicts; None if there is none."""
    tensors = (leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
    return next((len(tensor) for tensor in tensors), None)


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
