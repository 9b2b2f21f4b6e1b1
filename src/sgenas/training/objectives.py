"""What a training minimizes and measures: a classifier's cross-entropy and accuracy, or any loss."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sgenas import device
from sgenas.device import moved_batch, rounded
from sgenas.errors import require, require_choice
from sgenas.functional import evaluating
from sgenas.losses import IGNORED, Loss, classification_sums, hits, loss_sums
from sgenas.run.distributed import ALONE, Processes

PRECISIONS = ("auto", *device.PRECISIONS)


@dataclass(frozen=True, eq=False)
class Classification:
    """Cross-entropy and accuracy of batches (inputs, labels).

    Labels are int64 (B,), or (B, H, W) for a class per pixel; -100 is left out of losses and accuracies. Class
    probabilities (B, classes) are labels too, and their largest entry is the class of an accuracy.

    A network that returns a pair in training mode has an auxiliary head: the loss is that of the first logits
    plus ``auxiliary_weight`` times that of the second. Tests use neither smoothing nor weights.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        auxiliary_weight: Weight of the auxiliary head's loss, >= 0.
        class_weights: float32 (classes,), as the ``weight`` of `torch.nn.functional.cross_entropy`; or None.
    """

    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.4
    class_weights: Tensor | None = None
    names: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        weight = self.auxiliary_weight
        require(0 <= weight < math.inf, "auxiliary_weight", ">= 0 and finite", weight)

    def train(self, model: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
        """{name: mean over the batch}; the loss is differentiable."""
        inputs, labels = batch
        output = model(inputs)
        logits = output[0] if isinstance(output, tuple) else output
        loss = self._cross_entropy(logits, labels)
        if isinstance(output, tuple):
            loss = loss + self.auxiliary_weight * self._cross_entropy(output[1], labels)
        right, count = hits(logits.detach(), labels)
        return {"loss": loss, "accuracy": (right / count).float()}

    def weights(self, batch: Any) -> dict[str, Tensor]:
        """What the sums over a batch are divided by: weight and number of its labels that count; else its rows."""
        labels = batch[1]
        if labels.is_floating_point():
            return {}
        counted = (labels != IGNORED).double()
        weighted = counted if self.class_weights is None else counted * self.class_weights[labels.clamp_min(0)]
        return {"loss": weighted.sum(), "accuracy": counted.sum()}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing)

    def test(self, model: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
        """{name: sum over the batch}, with the number of summands as ``count``."""
        return classification_sums(model, batch)


@dataclass(frozen=True)
class AnyLoss:
    """A loss(model, batch) -> 0-d tensor; its test value is the mean over batches by their rows."""

    loss: Loss
    names: ClassVar[tuple[str, ...]] = ("loss",)

    def train(self, model: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
        return {"loss": self.loss(model, batch)}

    def weights(self, batch: Any) -> dict[str, Tensor]:
        return {}

    def test(self, model: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
        return loss_sums(self.loss, model, batch)


Objective = Classification | AnyLoss


@dataclass(frozen=True)
class Arithmetic:
    """How a network is computed.

    Args:
        device: Device of weights and batches.
        precision: One of `sgenas.device.PRECISIONS`, or ``"auto"``: bf16 on a GPU and ieee on a CPU. A training takes
            no small differences, so TF32 is accurate enough.
        channels_last: Memory format of weights and images: faster, but a network that calls ``view`` on a
            feature map does not accept it.
    """

    device: torch.device
    precision: str = "tf32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, PRECISIONS)
        if self.precision == "auto":
            object.__setattr__(self, "precision", "bf16" if self.device.type == "cuda" else "ieee")

    def place(self, network: nn.Module) -> nn.Module:
        """``network`` itself, moved to the device and into the memory format."""
        if self.channels_last:
            # typed for tensors only upstream
            return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(self.device)

    def model(self, network: nn.Module) -> Callable[..., Any]:
        """``network`` as a function in this precision; its outputs are float32 (or wider)."""
        function = rounded(network, self.precision, self.device)
        if not self.channels_last:
            return function
        return lambda *args, **kwargs: function(*pytree.tree_map_only(Tensor, _channels_last, args), **kwargs)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@torch.no_grad()
def measure(
    objective: Objective,
    arithmetic: Arithmetic,
    network: nn.Module,
    batches: Iterable[Any],
    processes: Processes = ALONE,
) -> dict[str, float]:
    """{``test_<name>``: mean over all batches, which processes share}, with the network in evaluation mode."""
    model = arithmetic.model(network)

    def tested(batch: Any) -> dict[str, Tensor]:
        return objective.test(model, moved_batch(batch, arithmetic.device))

    with evaluating(network):
        means = processes.means(batches, tested, "test_data")
    return {f"test_{name}": mean for name, mean in means.items()}
