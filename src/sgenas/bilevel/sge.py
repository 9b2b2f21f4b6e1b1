"""The stochastic gradient estimator of the paper: Algorithm 1 with Eq. 6."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import control_variates, projections, vectorised
from sgenas.bilevel.averaging import COMBINATIONS, average
from sgenas.bilevel.blocks import BLOCKS
from sgenas.bilevel.control_variates import VARIATES, Known, Variate
from sgenas.bilevel.directions import check, draw, gaussian
from sgenas.bilevel.divergence import require_finite, require_finite_projections
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import BilevelProblem
from sgenas.bilevel.projections import Perturbation
from sgenas.bilevel.result import Cost, HypergradientResult
from sgenas.bilevel.sharing import Share, cut, rows
from sgenas.bilevel.smoothing import choose, probes
from sgenas.errors import InvalidValueError
from sgenas.trees import Tree

COMPUTATIONS: dict[str, Callable[[Perturbation], Tensor]] = {
    "auto": vectorised.automatic,
    "loop": projections.loop,
    "streamed": projections.streamed,
    "vectorised": vectorised.vectorised,
    "directional": projections.directional,
    "difference": projections.difference,
}
"""name -> how the projections are computed, see `sgenas.bilevel.projections`."""


@dataclass(frozen=True)
class SGE:
    r"""Stochastic gradient estimator: the Jacobian d w / d alpha is measured along random directions.

    Directions u_j ~ N(0, I), j = 1..Q, over all alphas jointly. From the same start, Y^t follows N inner
    steps at alpha and Y_j^t at alpha + mu u_j, all on the same batches. With delta_j = (Y_j^N - Y^N) / mu and
    v = d L_val(Y^N, alpha) / d w,

        grad = d L_val(Y^N, alpha) / d alpha + (1/Q) sum_j <delta_j, v> u_j                           (Eq. 6).

    num_directions: Q. smoothing: mu, in units of alpha, or "auto": chosen anew at every call from how far
    differences along one more direction agree, see `smoothing`. computation: how the projections <delta_j, v>
    are computed, one of COMPUTATIONS; all but `difference` give the same numbers up to rounding; in the last
    inner step `directional` takes a derivative along v, the others the gradient. chunk: for `vectorised` and
    `auto`, the perturbed trajectories at a time, at most (None: what fits); half as many where memory runs
    out all the same, which is said by a MemoryWarning and by "chunk" in `diagnostics`. memory_limit: for
    `vectorised` and `auto`, GiB that trajectories side by side may take (None: 80 % of a GPU's free memory,
    a quarter of the machine's on a CPU). batch_fraction: share f of each inner batch, its first images, on
    which the perturbed trajectories run, paired with an unperturbed one on the same part; v and the result's
    state come from the whole batches. What is measured is then the Jacobian of the steps on the part:
    cheaper, noisier.

    directions: how the u_j are drawn, a name in `directions.KINDS`; all have E[u u^T] = I. `orthogonal` ones
    share no component (with Q = p they see everything once), `antithetic` ones are Q / 2 pairs u, -u, whose
    differences are central: error O(mu^2) instead of O(mu). control_variate: guesses of the indirect part
    that take noise out, see `control_variates`: names in VARIATES (`finite-difference`, two more passes;
    `one-sided`, one more; `memory`, the estimate before this one, given as memory=...) or functions of a
    `control_variates.Known`.
    blocks: what is perturbed together, a name in `blocks.BLOCKS`. With B blocks each is estimated by itself
    from its share of the directions, Q / B dealt in turn, the other blocks being held.
    combine: how projections become a gradient, a name in `averaging.COMBINATIONS`. `least-squares` is the g
    that explains them best, <g, u_j> = <delta_j, v>, and of many the one next to what the variates guess (to
    0 without any): g's part in the space that the directions span, so a biased estimate for Q < p, and no
    further away than the guess but for what kinks and smoothing do to the projections. All are off by
    default: then it is the paper's.

    share: where several processes make the estimate together, the part of the directions that this one
    follows (None: all). Only projections travel between them, and each comes to the same result.

    A single <delta_j, v> is off the derivative of the N steps along u_j by O(mu), the estimate is unbiased up
    to O(mu^2). With p alphas in all, its indirect part g has relative error about sqrt((p + 1) / Q); in a
    block of p_b alphas with q_b directions the squared error is (p_b + 1) / q_b ||g_b||^2, where without
    blocks it is (p_b ||g||^2 + ||g_b||^2) / Q: blocks keep the noise of large parts out of the small ones.
    Least squares: 1 - Q / p for Q < p, 0 from Q = p on (there noise in the projections is amplified, most at
    Q = p).
    `diagnostics`: "projections" holds <delta_j, v>, (Q,); "standard_error", of a mean over independent
    directions (and pairs), the estimated length of the indirect part's error; "coefficients", with variates,
    c (K,), of blocks (B, K); "smoothing" and "noise_floor", where it is chosen, mu and the estimated error of
    a projection.

    Cost: (Q + 1) N + 1 forward and backward passes, those of the variates more (with f < 1,
    N more, all perturbed ones at f of the price); `directional` and `difference` have no backward pass in
    the last step of a perturbed trajectory, `directional` a forward one that counts twice. mu "auto": as 5
    more directions, 10 with antithetic ones. Memory: one more set of weights at a time, but for trajectories
    side by side. Raises InvalidValueError for Q < 1, mu <= 0, unknown directions, an odd number of antithetic
    ones, unknown blocks or fewer directions than them, an unknown combination, an unknown variate or one of a
    wrong shape, an unknown computation, f outside (0, 1], a chunk < 1 or a memory limit <= 0 or either
    without effect, batches that cannot be cut, and a missing generator; DivergenceError for what is not
    finite.
    """

    num_directions: int = 10
    smoothing: float | str = 0.01
    computation: str = "auto"
    chunk: int | None = None
    memory_limit: float | None = None
    batch_fraction: float = 1.0
    directions: str = "gaussian"
    control_variate: tuple[str | Variate, ...] = ()
    blocks: str = "joint"
    combine: str = "mean"
    share: Share | None = None

    def __post_init__(self) -> None:
        check("SGE", self.directions, self.num_directions)
        if isinstance(self.smoothing, str):
            if self.smoothing != "auto":
                raise InvalidValueError(f"SGE.smoothing must be a number or 'auto', got {self.smoothing!r}")
        elif not 0 < self.smoothing < float("inf"):
            raise InvalidValueError(f"SGE.smoothing must be > 0 and finite, got {self.smoothing}")
        if self.computation not in COMPUTATIONS:
            known = ", ".join(COMPUTATIONS)
            raise InvalidValueError(f"SGE.computation must be one of {known}, got {self.computation!r}")
        beside = self.computation in ("auto", "vectorised")
        if self.chunk is not None and not (beside and self.chunk >= 1):
            raise InvalidValueError(
                "SGE.chunk must be >= 1 and only applies with computation 'auto' or 'vectorised', got"
                f" {self.chunk}"
            )
        if self.memory_limit is not None and not (beside and 0 < self.memory_limit < float("inf")):
            raise InvalidValueError(
                "SGE.memory_limit must be > 0 and only applies with computation 'auto' or 'vectorised', got"
                f" {self.memory_limit}"
            )
        if not 0 < self.batch_fraction <= 1:
            raise InvalidValueError(f"SGE.batch_fraction must be in (0, 1], got {self.batch_fraction}")
        if self.blocks not in BLOCKS:
            raise InvalidValueError(f"SGE.blocks must be one of {', '.join(BLOCKS)}, got {self.blocks!r}")
        if self.combine not in COMBINATIONS:
            known = ", ".join(COMBINATIONS)
            raise InvalidValueError(f"SGE.combine must be one of {known}, got {self.combine!r}")
        for variate in self.control_variate:
            if isinstance(variate, str) and variate not in VARIATES:
                raise InvalidValueError(
                    f"SGE.control_variate must be among {', '.join(VARIATES)}, got {variate!r}"
                )
        if {"finite-difference", "one-sided"} <= set(self.control_variate):
            raise InvalidValueError(
                "SGE.control_variate must have one of finite-difference and one-sided, got both"
            )

    @property
    def _named_variates(self) -> list[control_variates.Named]:
        return [VARIATES[variate] for variate in self.control_variate if isinstance(variate, str)]

    @property
    def guessing_passes(self) -> int:
        """Forward and backward passes of the control variates that have a name."""
        return sum(variate.passes for variate in self._named_variates)

    def cost(self, inner_steps: int) -> Cost:
        """(Q + 1) N + 1 passes, (Q + 1) N steps; see the class for what changes that."""
        count = self.num_directions
        if self.smoothing == "auto":
            count += probes(self.directions == "antithetic")
        perturbed, unperturbed = count * inner_steps, inner_steps + 1
        guessing = self.guessing_passes
        forward = backward = perturbed + guessing
        if self.computation in ("directional", "difference"):
            # a last step in forward mode, or by two passes
            forward, backward = forward + count, backward - count
        if self.computation == "difference":
            # the unperturbed slope, once for every call of it
            forward += 4 if self.smoothing == "auto" else 2
        if self.batch_fraction == 1:
            steps = perturbed + inner_steps
            return Cost(forward + unperturbed, backward + unperturbed, steps)
        part, steps = self.batch_fraction, perturbed + 2 * inner_steps
        return Cost(
            part * (forward + inner_steps) + unperturbed, part * (backward + inner_steps) + unperturbed, steps
        )

    def __call__(
        self,
        problem: BilevelProblem,
        state: InnerState,
        alphas: Tree,
        inner_batches: Sequence[Any],
        outer_batch: Any,
        *,
        generator: torch.Generator | None = None,
        memory: Tree | None = None,
    ) -> HypergradientResult:
        if generator is None:
            raise InvalidValueError("SGE needs generator=torch.Generator() for its directions, got None")
        batches = inner_batches
        if self.batch_fraction < 1:
            batches = [_part(batch, self.batch_fraction) for batch in inner_batches]
        # what a pass keeps in memory says how many fit side by side; a pass that is taken anyway is measured
        measured_limit = self.chunk is None or self.memory_limit is not None
        counts = self.computation == "vectorised" and measured_limit
        # (torch.func inside a loss does not bear the hooks, so `auto` measures only where it may need it)
        counts |= self.computation == "auto" and problem.stacked_inner_loss is not None
        saved = vectorised.SavedMemory()
        guessing = any(variate.alpha_gradient for variate in self._named_variates)
        with saved if counts and batches is inner_batches else contextlib.nullcontext():
            trajectory = problem.run(state, alphas, inner_batches, alpha_gradient=guessing)
        end, losses = trajectory.end, trajectory.losses
        outer_loss, v, direct = problem.outer_gradients(end.weights, alphas, outer_batch)
        require_finite(losses, outer_loss)
        if batches is not inner_batches:
            with saved if counts else contextlib.nullcontext():
                trajectory = problem.run(state, alphas, batches, alpha_gradient=guessing)

        drawn = draw(self.directions, self.num_directions, alphas, generator, self.blocks)
        chunks: list[int] = []
        task = Perturbation(
            problem,
            state,
            alphas,
            drawn.trees(alphas),
            1.0 if isinstance(self.smoothing, str) else self.smoothing,
            batches,
            trajectory,
            v,
            self.chunk,
            self.memory_limit,
            saved.peak,
            on_smaller_chunk=chunks.append,
        )
        diagnostics: dict[str, Tensor] = {}
        if isinstance(self.smoothing, str):
            # as long as the directions of a block
            probe = trees.scale(gaussian(1, alphas, generator)[0], len(drawn.blocks) ** -0.5)
            choice = choose(task, self._projections, probe, central=self.directions == "antithetic")
            task = replace(task, smoothing=choice.smoothing, chunk=min(chunks, default=self.chunk))
            diagnostics = {name: outer_loss.new_tensor(value) for name, value in vars(choice).items()}
        measured = self._projections(task)
        require_finite_projections(task, measured)

        known = Known(problem, alphas, batches, trajectory, v, memory)
        guesses = control_variates.guesses(self.control_variate, known)
        found = average(drawn, measured, [trees.flatten(guess) for guess in guesses], self.combine)
        diagnostics["projections"] = measured
        if chunks:
            diagnostics["chunk"] = outer_loss.new_tensor(min(chunks))
        if guesses:
            joint = self.blocks == "joint"
            diagnostics["coefficients"] = found.coefficients[0] if joint else found.coefficients
        if found.variance is not None:
            diagnostics["standard_error"] = found.variance.sqrt()
        grad = trees.add(direct, trees.unflatten(found.gradient, alphas))
        cost = self.cost(len(inner_batches))
        return HypergradientResult(grad, direct, end, losses, outer_loss, cost, diagnostics)

    def _projections(self, task: Perturbation) -> Tensor:
        """<delta_j, v> of all directions, (Q,)."""
        compute, share = COMPUTATIONS[self.computation], self.share
        if share is None:
            return compute(task)
        mine = replace(task, directions=share.mine(task.directions), neighbours=share.neighbours)
        # more processes than directions: some follow none
        found = compute(mine) if mine.directions else next(iter(task.v.values())).new_zeros(0)
        return share.together(found, len(task.directions))


def _part(batch: Any, fraction: float) -> Any:
    """The first `fraction` of a batch, rounded up: every tensor in it cut along its first dimension."""
    return cut(batch, 0, math.ceil(fraction * rows(batch, "SGE.batch_fraction")))
