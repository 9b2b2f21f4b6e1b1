"""Class weights against imbalance: what each class counts in a loss, so that rare ones are not drowned.

With weight w_c of class c the loss of a batch of B images is PyTorch's weighted cross-entropy,

    sum_i w_{y_i} l_i / sum_j w_{y_j} = 1/B sum_i f_i l_i,    f_i = w_{y_i} / (1/B sum_j w_{y_j}),

l_i the cross-entropy of image i. The right side is a plain mean: once every image has its factor f_i, from
the whole batch, the mean over equal shards of the batch is the same number, which the left side is not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_WEIGHTS = ("none", "balanced")
"""Values of `--class-weights`."""


def balanced(labels: Tensor, classes: int) -> Tensor:
    """w_c = n / (k n_c), float32 (k,): n labels of k classes, n_c of class c; every class has one or more.

    labels: int64 (n,). The mean of w over the labels is 1, so that the size of the loss stays what it was.
    The formula is that of scikit-learn's class_weight="balanced".
    """
    counts = torch.bincount(labels, minlength=classes).double()
    return (len(labels) / (classes * counts)).float()


def factors(class_weights: Tensor, labels: Tensor) -> Tensor:
    """f_i of the module's docstring, (B,), for class weights (k,) and the labels (B,) of a whole batch."""
    each = class_weights[labels]
    return each / each.mean()


def cross_entropy(logits: Tensor, labels: Tensor, factors: Tensor | None = None) -> Tensor:
    """1/B sum_i f_i l_i, a 0-d tensor, for logits (B, k), labels (B,) and factors (B,); f_i = 1 without."""
    if factors is None:
        return F.cross_entropy(logits, labels)
    return (factors * F.cross_entropy(logits, labels, reduction="none")).mean()
