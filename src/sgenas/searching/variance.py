r"""How the indirect gradient compares with the direct one, and what an estimator's noise adds to that of the batches.

With the direct gradients d_t of consecutive alpha steps, and the standard error e_t that an estimator with Q
directions reports of itself,

    batch variance V = mean_t ||d_t - d_(t-1)||^2 / 2,
    added variance share = mean_t(Q e_t^2) / (Q V).

The means are exponential, over the last 50 steps or so, and over all steps at the start. V is the variance of d
over everything that a step draws: its batches, the noise of a relaxation, the masks of dropout.

Bias of V: half the mean square of what the expectation of d moves per step is added, which is small as long as the
noise hides the path. The variance of the indirect gradient from batch to batch is left out, and so is its covariance
with the direct one. Batches drawn without replacement are not quite independent: V is larger by a factor of at most
b / (b - 1), b batches per epoch.
"""

import dataclasses
import math
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import SGE, Estimator, FirstOrder, HypergradientResult
from sgenas.run.state import matching
from sgenas.tree import Tree

DIAGNOSTICS = ("standard_error", "smoothing", "noise_floor", "residual")
"""Diagnostics of estimators that a step's row has."""
DECAY = 0.98
FIRST_DIRECTIONS = 10
"""Directions before the first choice, as in the paper."""
CHOOSE_EVERY = 10
"""Alpha steps between two choices of the number of directions, each of which waits for the device."""
MOST = 1e6
"""The largest ratio that a row has: the direct gradient may be zero."""


class GradientStatistics:
    """Running statistics of the gradients of a search, and the number of directions that they ask for.

    ``update`` makes new tensors and never waits for the device, except where it chooses directions.

    Args:
        alphas: Architecture parameters, for sizes and device.
    """

    def __init__(self, alphas: Tree) -> None:
        self._last = torch.zeros_like(tree.flatten(alphas), dtype=torch.float64)
        self._sums = self._last.new_zeros(2, len(self._last))
        """Of the direct and the indirect gradients of this epoch."""
        self._moments = self._last.new_zeros(2)
        """Exponential sums of the variance of one direction, and of V."""
        self._steps = self._single = self._in_epoch = self._directions_in_epoch = 0
        self._directions = FIRST_DIRECTIONS

    def with_directions(self, estimator: Estimator) -> Estimator:
        """The estimator of the next step: with a number instead of ``auto`` directions."""
        return dataclasses.replace(estimator, num_directions=self._directions) if _is_auto(estimator) else estimator

    def update(self, estimator: Estimator, result: HypergradientResult) -> dict[str, Tensor]:
        """Takes in an alpha step; returns what its row says about the gradients.

        Args:
            estimator: As it was requested.
            result: Of ``with_directions(estimator)``.
        """
        norms = {"direct_norm": tree.norm(result.direct), "indirect_norm": tree.norm(result.indirect)}
        said = {name: result.diagnostics[name] for name in DIAGNOSTICS if name in result.diagnostics}
        if isinstance(estimator, FirstOrder):
            return norms
        both = torch.stack([tree.flatten(result.direct), tree.flatten(result.indirect)]).double()
        direct = both[0]
        count = getattr(self.with_directions(estimator), "num_directions", 1)
        self._sums = self._sums + both
        self._in_epoch, self._directions_in_epoch = self._in_epoch + 1, self._directions_in_epoch + count
        error = said.get("standard_error")
        terms = [torch.zeros_like(direct[0]) if error is None else count * error.double().square()]
        terms.append((direct - self._last).square().sum() / 2 if self._steps else torch.zeros_like(direct[0]))
        self._moments = torch.lerp(torch.stack(terms), self._moments, DECAY)
        self._single, self._steps, self._last = self._single + (error is not None), self._steps + 1, direct
        row = norms | _comparison(both) | said
        if self._single and self._steps > 1:
            row["added_variance_share"] = self._share() / count
        if _is_auto(estimator):
            row["num_directions"] = torch.full_like(direct[0], count)
            if self._steps % CHOOSE_EVERY == 0:
                self._directions = self._chosen(estimator)
        return row

    def _share(self) -> Tensor:
        """Estimated added variance share of one direction, 0-d."""
        # what the weights of the terms sum to
        single, batches = (1 - DECAY**count for count in (self._single, self._steps - 1))
        return _ratio(self._moments[0] / single, self._moments[1] / batches)

    def _chosen(self, estimator: Any) -> int:
        """The fewest directions that keep the share below the estimator's bound, from 1 (a pair) to its most."""
        group = 2 if estimator.directions == "antithetic" else 1
        needed = math.ceil(float(self._share()) / estimator.max_added_variance / group) * group
        return int(min(max(needed, group), estimator.most_directions))

    def end_epoch(self, estimator: Estimator) -> dict[str, Any]:
        """What the row of the epoch says, and starts the next one."""
        if not self._in_epoch:
            return {}
        row = {name: value.item() for name, value in _comparison(self._sums).items()}
        if self._single and self._steps > 1:
            mean = self._directions_in_epoch / self._in_epoch
            row["added_variance_share"] = self._share().item() / mean
            if _is_auto(estimator):
                row["num_directions"] = mean
        self._sums = torch.zeros_like(self._sums)
        self._in_epoch = self._directions_in_epoch = 0
        return row

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, as tensors that nothing changes later."""
        return {name.strip("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        for name, now in vars(self).items():
            kept = state[name.strip("_")]
            setattr(self, name, matching(now, kept, now.device, name) if isinstance(now, Tensor) else kept)


def _is_auto(estimator: Estimator) -> TypeGuard[SGE]:
    return isinstance(estimator, SGE) and estimator.num_directions == "auto"


def _comparison(both: Tensor) -> dict[str, Tensor]:
    """Of direct and indirect gradient (2, p): the ratio of their norms, and their cosine; 0 for zero gradients."""
    norms = both.norm(dim=1)
    first, second = both / norms.clamp_min(torch.finfo(both.dtype).tiny)[:, None]
    return {"hypergradient_share": _ratio(norms[1], norms[0]), "cosine": (first @ second).clamp(-1, 1)}


def _ratio(value: Tensor, unit: Tensor) -> Tensor:
    """value / unit, at most MOST, and 0 if both are."""
    return value / torch.maximum(unit, value / MOST).clamp_min(torch.finfo(unit.dtype).tiny)
