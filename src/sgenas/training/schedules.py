"""The learning-rate schedule of a training: warm-up and cosine, changing per epoch or per step."""

import math
from dataclasses import dataclass

from sgenas.errors import require, require_choice

INTERVALS = ("epoch", "step")


@dataclass(frozen=True)
class WarmupCosine:
    """A linear warm-up to lr, then a cosine from lr to ``lr_min``.

    With time t in epochs, d between two changes, and W of E epochs of warm-up:

        lr (t + d) / W                                                  if t < W
        lr_min + (lr - lr_min) (1 + cos(pi (t - W) / (E - W))) / 2      otherwise

    Args:
        lr_min: Learning rate that the cosine falls to, >= 0.
        interval: Whether the rate changes at each ``"epoch"`` or at each ``"step"``.
        warmup: W, epochs of warm-up.
    """

    lr_min: float = 0.0
    interval: str = "epoch"
    warmup: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.lr_min < math.inf, "lr_min", ">= 0 and finite", self.lr_min)
        require_choice("schedule", self.interval, INTERVALS)
        require(self.warmup >= 0, "warmup", ">= 0", self.warmup)

    def check(self, epochs: int, lr: float) -> None:
        """Raises InvalidValueError unless the schedule fits a training of that length and learning rate."""
        require(self.warmup < epochs, "warmup", f"below the {epochs} epochs", self.warmup)
        require(self.lr_min <= lr, "lr_min", f"at most the learning rate {lr}", self.lr_min)

    def __call__(self, lr: float, epoch: int, epochs: int, step: int, steps: int | None) -> float:
        """The rate of ``step`` (from 0, of ``steps`` per epoch) in ``epoch`` (from 0, of ``epochs``)."""
        if self.interval == "epoch" or steps is None:
            change, time = 1.0, float(epoch)
        else:
            change = 1 / steps
            time = epoch + step * change
        if time < self.warmup:
            return lr * min(1.0, (time + change) / self.warmup)
        done = (time - self.warmup) / (epochs - self.warmup)
        return self.lr_min + (lr - self.lr_min) * (1 + math.cos(math.pi * done)) / 2
