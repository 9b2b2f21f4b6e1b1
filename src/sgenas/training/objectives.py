"""What a training minimizes and measures: a classifier's cross-entropy and accuracy, or any loss."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sgenas.errors import require, require_choice
from sgenas.losses import Loss

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, eq=False)
class Classification:
    """Cross-entropy and accuracy of batches (inputs, labels), labels int64 (B,).

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
        return {"loss": loss, "accuracy": (logits.detach().argmax(dim=1) == labels).float().mean()}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing)

    def test(self, model: Callable[..., Any], batch: Any) -> tuple[dict[str, Tensor], int]:
        """({name: sum over the batch}, number of summands)."""
        inputs, labels = batch
        logits = model(inputs)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).sum()}, len(labels)


@dataclass(frozen=True)
class AnyLoss:
    """A loss(model, batch) -> 0-d tensor; its test value is the mean over batches."""

    loss: Loss
    names: ClassVar[tuple[str, ...]] = ("loss",)

    def train(self, model: Callable[..., Any], batch: Any) -> dict[str, Tensor]:
        return {"loss": self.loss(model, batch)}

    def test(self, model: Callable[..., Any], batch: Any) -> tuple[dict[str, Tensor], int]:
        return self.train(model, batch), 1


Objective = Classification | AnyLoss


@dataclass(frozen=True)
class Arithmetic:
    """How a network is computed.

    Args:
        device: Device of weights and batches.
        precision: ``"float32"`` (on a GPU TF32 in convolutions), ``"bfloat16"`` for the layers that autocast
            accepts, or ``"auto"``: bfloat16 on a GPU and float32 on a CPU.
        channels_last: Memory format of weights and images: faster, but a network that calls ``view`` on a
            feature map does not accept it.
    """

    device: torch.device
    precision: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, PRECISIONS)

    def place(self, network: nn.Module) -> nn.Module:
        """``network`` itself, moved to the device and into the memory format."""
        if self.channels_last:
            # typed for tensors only upstream
            return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(self.device)

    def model(self, network: nn.Module) -> Callable[..., Any]:
        """``network`` as a function in this precision; its outputs are float32 (or wider)."""
        rounded = self.precision == "bfloat16" or (self.precision == "auto" and self.device.type == "cuda")

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.channels_last:
                args = pytree.tree_map_only(Tensor, _channels_last, args)
            with torch.autocast(self.device.type, torch.bfloat16) if rounded else nullcontext():
                outputs = network(*args, **kwargs)
            return pytree.tree_map_only(Tensor, _float, outputs) if rounded else outputs

        return call


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@torch.no_grad()
def measure(
    objective: Objective, arithmetic: Arithmetic, network: nn.Module, batches: Iterable[Any]
) -> dict[str, float]:
    """{``test_<name>``: mean over all batches}, with the network in evaluation mode."""
    model, training = arithmetic.model(network), network.training
    totals: dict[str, Tensor] = {}
    count = 0
    try:
        network.eval()
        for batch in batches:
            batch = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(arithmetic.device), batch)
            sums, size = objective.test(model, batch)
            totals = {name: totals[name] + value for name, value in sums.items()} if totals else sums
            count += size
    finally:
        network.train(training)
    require(count > 0, "test_data", "at least one batch", count)
    return {f"test_{name}": total.item() / count for name, total in totals.items()}
