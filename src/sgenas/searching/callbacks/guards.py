"""Guards: what to do about NaN and infinity, and warnings when a search leaves its useful range."""

import warnings
from typing import Any

from sgenas import tree
from sgenas.errors import DivergenceError, RangeWarning, require, require_choice
from sgenas.run.callbacks import Callback

POLICIES = ("stop", "skip", "rollback")
MAX_LOST_STEPS = 10
"""Steps that may be lost between two checkpoints: more are no accident."""
MAX_ALPHA = 10.0
"""|alpha| from which softmax and sigmoid are flat: what stands next to it has exp(-10) of its weight."""
MAX_CLIPPING = 10.0
"""Gradient norm in units of grad_clip: beyond it clipping decides the step size, not the learning rate."""
MAX_INDIRECT = 100.0
"""Indirect gradient norm in units of the direct one; ten random directions alone give about 5 for 224 alphas."""


class NaNGuard(Callback):
    """Keeps a search going after a step whose losses, gradients, weights or alphas are NaN or infinite.

    More than 10 such steps between two checkpoints stop the search all the same. Writes ``nonfinite_steps``.

    Args:
        policy: ``"skip"`` leaves the step out; ``"rollback"`` restores weights and alphas of the last
            checkpoint and continues with the next batches.
    """

    def __init__(self, policy: str = "skip") -> None:
        require_choice("on_nonfinite", policy, POLICIES[1:])
        self._policy = policy
        self._kept: dict[str, Any] | None = None
        self._in_epoch = self._recent = 0

    def on_start(self, run: Any) -> None:
        self._kept = run.snapshot()

    def on_step_start(self, run: Any) -> None:
        if self._policy == "skip":
            self._kept = run.snapshot()

    def on_step_end(self, run: Any, values: dict[str, Any]) -> None:
        tree.require_finite({"logged value": values, "weight": run.state.weights, "alpha": run.alphas})

    def on_divergence(self, run: Any, error: DivergenceError) -> bool:
        if self._recent == MAX_LOST_STEPS:
            return False
        self._in_epoch, self._recent = self._in_epoch + 1, self._recent + 1
        run.restore(self._kept)
        run.notes["nonfinite"] = f"{self._policy}: {error}"
        return True

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        row["nonfinite_steps"], self._in_epoch = self._in_epoch, 0

    def on_checkpoint(self, run: Any) -> None:
        self._recent = 0
        if self._policy == "rollback":
            self._kept = run.snapshot()

    def state_dict(self) -> dict[str, Any]:
        return {"in_epoch": self._in_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_epoch = state["in_epoch"]


class RangeGuard(Callback):
    """Warns once per kind when alphas or gradients of an epoch are outside the useful range; on by default.

    Writes ``out_of_range``, the warnings of the epoch, if there are any.

    Args:
        grad_clip: Largest gradient norm of the weights' optimizer; None without clipping.
    """

    def __init__(self, grad_clip: float | None = None) -> None:
        require(grad_clip is None or grad_clip > 0, "grad_clip", "> 0 or None", grad_clip)
        self._grad_clip = grad_clip
        self._warned: set[str] = set()

    def on_epoch_end(self, run: Any, row: dict[str, Any]) -> None:
        found: dict[str, str] = {}
        largest = max(float(alpha.abs().max()) for alpha in run.alphas.values())
        gradient, direct, indirect = (row.get(name) for name in ("weight_grad_norm", "direct_norm", "indirect_norm"))
        if largest > MAX_ALPHA:
            found["alphas"] = (
                f"the largest |alpha| is {largest:.3g}, above {MAX_ALPHA:g}: mixing weights hardly move any more;"
                " try a lower alpha learning rate or more alpha weight decay"
            )
        if gradient is not None and self._grad_clip and gradient > MAX_CLIPPING * self._grad_clip:
            found["gradient"] = (
                f"the mean gradient norm of the weights is {gradient:.3g}, above {MAX_CLIPPING:g} times grad_clip"
                f" = {self._grad_clip:g}: clipping decides the step size; try a lower lr"
            )
        if direct is not None and indirect is not None and indirect > MAX_INDIRECT * direct:
            found["hypergradient"] = (
                f"the mean norm of the indirect gradient is {indirect:.3g}, above {MAX_INDIRECT:g} times that of"
                f" the direct gradient, {direct:.3g}: most of it must be noise; try a larger smoothing or lower lr"
            )
        if found:
            row["out_of_range"] = list(found.values())
        for kind, text in found.items():
            if kind not in self._warned and run.processes.first:
                warnings.warn(text, RangeWarning, stacklevel=2)
            self._warned.add(kind)
