"""The stochastic gradient estimator of the paper: Algorithm 1 with Eq. 6."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.estimators.base import ESTIMATORS, Context, Estimator, require_finite_directions
from sgenas.bilevel.estimators.sge.aggregation import AGGREGATIONS, aggregate
from sgenas.bilevel.estimators.sge.batched import automatic, batched
from sgenas.bilevel.estimators.sge.directions import DIRECTIONS, check, draw, perturbed
from sgenas.bilevel.estimators.sge.projections import Perturbation, from_ends, sequential
from sgenas.bilevel.estimators.sge.smoothing import choose_smoothing, num_probes, probes
from sgenas.bilevel.problem import Cost
from sgenas.bilevel.trainings import Trainings
from sgenas.errors import require, require_choice
from sgenas.fields import option
from sgenas.tree import Tree

COMPUTATIONS: dict[str, Callable[[Perturbation], Tensor]] = {
    "auto": automatic,
    "sequential": sequential,
    "batched": batched,
}
"""How the projections are computed; all give the same numbers up to rounding."""
MOST_DIRECTIONS = 32
"""The most directions that a search chooses."""


@dataclass(frozen=True)
class SGE(Estimator):
    r"""Stochastic gradient estimator of the hypergradient (Algorithm 1 of the paper).

    From the same start, Y^t follows N inner steps at alpha and Y_j^t at alpha + mu u_j, all on the same
    batches. With delta_j = (Y_j^N - Y^N) / mu and v = d L_val(Y^N, alpha) / d w,

        grad = d L_val(Y^N, alpha) / d alpha + (1/Q) sum_j <delta_j, v> u_j                           (Eq. 6).

    The defaults of all options are the paper's estimator, with u_j ~ N(0, I) over all alphas jointly. A
    projection <delta_j, v> differs from the derivative of the N steps along u_j by O(mu), with antithetic
    directions by O(mu^2); the estimate is unbiased up to O(mu^2). With p alphas, the relative MSE of the
    indirect gradient is about (p + 1) / Q; of ``least-squares`` 1 - Q / p for Q < p, and 0 from Q = p on
    (noise in the projections is amplified there, most at Q = p).

    ``num_directions="auto"`` is for a search, which chooses Q again every 10 alpha steps, from 1 to 32: the
    smallest with which the directions add at most ``max_added_variance`` of the variance that the batches give
    the direct gradient anyway. Costs then assume 32.

    ``diagnostics``: ``projections``, (Q,); ``standard_error``, of a mean over independent directions, the
    estimated norm of the indirect gradient's error; ``coefficient`` of the control variate; ``smoothing`` and
    ``noise_floor`` if mu is chosen: mu and the estimated error of a projection; ``chunk`` after an
    out-of-memory error, the number of batched trajectories that still fit.

    Cost: (Q + 1) N + 1 passes and those of the control variate; ``smoothing="auto"`` counts as 5 more
    directions, 10 if antithetic. Memory: one more set of weights, but for batched trajectories.

    Args:
        num_directions: Number of random directions Q, >= 1; even if antithetic. SGE in a search: also ``"auto"``.
        smoothing: Perturbation scale mu in units of alpha, > 0; SGE: or ``"auto"``, chosen at each call.
        directions: Distribution of the directions, all with E[u u^T] = I: ``gaussian``, ``orthogonal`` or
            ``antithetic`` (pairs u, -u, which make central differences).
        control_variate: Deterministic estimator whose indirect gradient is the baseline of a control
            variate: its name, the estimator itself, or None for none.
        aggregate: ``mean`` (Eq. 6) or ``least-squares``: the g that explains the projections best,
            <g, u_j> = <delta_j, v>, and of many the one nearest to the baseline (biased for Q < p).
        computation: ``sequential``, ``batched``, or ``auto``, which batches if it is faster and fits.
        chunk: Perturbed trajectories that are batched at a time, at most; None for as many as fit into 80 % of a
            GPU's free memory, or a quarter of the machine's. Halved, with a MemoryWarning, after an out-of-memory
            error.
        max_added_variance: With ``auto`` directions, the largest variance that they may add, as a share of the
            variance from batch to batch, > 0.

    Raises:
        InvalidValueError: If a setting is out of range.
        DivergenceError: If a loss or a projection is NaN or infinite.

    Example:
        >>> result = SGE(num_directions=8)(problem, state, alphas, inner_batches, outer_batch, seed=0)
    """

    num_directions: int | str = option(10, flag="directions", choices=("auto",))
    smoothing: float | str = 0.01
    directions: str = option("gaussian", flag="direction-kind", choices=tuple(DIRECTIONS))
    control_variate: str | Estimator | None = None
    aggregate: str = option("mean", choices=AGGREGATIONS)
    computation: str = option("auto", choices=tuple(COMPUTATIONS))
    chunk: int | None = None
    max_added_variance: float = 0.25

    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.num_directions, str):
            good = self.num_directions == "auto"
            require(good, "SGE.num_directions", "a whole number >= 1 or 'auto'", self.num_directions)
            good = self.aggregate == "mean" and self.directions != "orthogonal"
            kinds = "a number with orthogonal directions or least squares, whose variance is unknown"
            require(good, "SGE.num_directions", kinds, self.num_directions)
        check("SGE", self.directions, self.most_directions)
        share = self.max_added_variance
        require(0 < share < math.inf, "SGE.max_added_variance", "> 0 and finite", share)
        mu = self.smoothing
        good = mu == "auto" or (isinstance(mu, float | int) and 0 < mu < math.inf)
        require(good, "SGE.smoothing", "> 0 and finite, or 'auto'", mu)
        require_choice("SGE.aggregate", self.aggregate, AGGREGATIONS)
        require_choice("SGE.computation", self.computation, tuple(COMPUTATIONS))
        good = self.chunk is None or (self.computation in ("auto", "batched") and self.chunk >= 1)
        require(good, "SGE.chunk", ">= 1, with computation 'auto' or 'batched'", self.chunk)
        if isinstance(self.control_variate, str):
            names = tuple(name for name in ESTIMATORS if not ESTIMATORS.get(name).draws)
            require_choice("SGE.control_variate", self.control_variate, names)
        variate = self._baseline()
        good = variate is None or (isinstance(variate, Estimator) and not variate.draws)
        require(good, "SGE.control_variate", "None, or a deterministic estimator or its name", variate)

    @property
    def most_directions(self) -> int:
        """Q; with ``auto`` the largest that a search chooses."""
        return MOST_DIRECTIONS if isinstance(self.num_directions, str) else self.num_directions

    def _draw(self, alphas: Tree, generator: torch.Generator) -> Tensor:
        """The directions of a call, (Q, p)."""
        count = self.num_directions
        require(count != "auto", "SGE.num_directions", "a number outside a search, which chooses it", count)
        return draw(self.directions, self.most_directions, alphas, generator)

    def _baseline(self) -> Estimator | None:
        if isinstance(self.control_variate, str):
            return ESTIMATORS.get(self.control_variate)()
        return self.control_variate

    def kept_steps(self, inner_steps: int) -> int:
        baseline = self._baseline()
        return max(1, 0 if baseline is None else baseline.kept_steps(inner_steps))

    def indirect_cost(self, inner_steps: int) -> Cost:
        count = self.most_directions
        if self.smoothing == "auto":
            count += num_probes(self.directions == "antithetic")
        perturbed = Cost(count * inner_steps, count * inner_steps, count * inner_steps)
        baseline = self._baseline()
        return perturbed if baseline is None else perturbed + baseline.indirect_cost(inner_steps)

    def trained_points(self, alphas: Tree, generator: torch.Generator) -> list[Tree]:
        require(self.control_variate is None, "SGE.control_variate", "None for a black box", self.control_variate)
        require(self.computation != "batched", "SGE.computation", "'auto' for a black box", self.computation)
        rows = self._draw(alphas, generator)
        if isinstance(self.smoothing, str):
            # the steps that choose mu come first
            probe = tree.unflatten(draw("gaussian", 1, alphas, generator)[0], alphas)
            return probes(alphas, probe, self.directions == "antithetic")
        return perturbed(alphas, rows, self.smoothing)

    def indirect_gradient(self, context: Context) -> Tree:
        alphas, generator, diagnostics = context.alphas, context.generator, context.diagnostics
        assert generator is not None
        matrix, chunks, mu = self._draw(alphas, generator), list[int](), self.smoothing
        task = Perturbation(context, [], 1.0, self.chunk, chunks)
        if isinstance(mu, str):
            probe = tree.unflatten(draw("gaussian", 1, alphas, generator)[0], alphas)
            chosen = choose_smoothing(task, self._projections, probe, central=self.directions == "antithetic")
            mu, task = chosen.smoothing, replace(task, chunk=min(chunks, default=self.chunk))
            # (new_full, since a copy of a number would wait for a GPU)
            diagnostics |= {name: matrix.new_full((), value) for name, value in vars(chosen).items()}
        task = replace(task, points=perturbed(alphas, matrix, mu), smoothing=mu)
        projections = self._projections(task)
        require_finite_directions(context, projections, task.points)

        estimator, baseline = self._baseline(), None
        if estimator is not None:
            baseline = tree.flatten(estimator.indirect_gradient(replace(context, diagnostics={})))
            finite = partial(tree.require_finite, {f"indirect gradient of the control variate {estimator}": baseline})
            context.checks.add(baseline, finite)
        diagnostics["projections"] = projections
        if baseline is not None or self.aggregate != "mean":
            # a fit takes many small steps, most of which wait for a GPU
            given = (matrix, projections, *([] if baseline is None else [baseline]))
            matrix, projections, *others = context.checks.settle(*given)
            baseline = others[0] if others else None
        found, known = aggregate(matrix, projections, self.directions, baseline, self.aggregate)
        diagnostics |= tree.to(known, tree.tensors(alphas)[0].device)
        if chunks:
            diagnostics["chunk"] = torch.tensor(min(chunks))
        return tree.unflatten(found, alphas)

    def _projections(self, task: Perturbation) -> Tensor:
        """<delta_j, v> of all directions, (Q,)."""
        if isinstance(task.context.problem, Trainings):
            return from_ends(task)
        compute, share = COMPUTATIONS[self.computation], task.context.problem.share
        if share is None:
            return compute(task)
        counter, before = task.context.problem.counter, task.context.problem.counter.total
        mine = replace(task, points=share.mine(task.points))
        # with more processes than directions, some follow none
        nothing = torch.empty(0, dtype=task.context.outer_loss.dtype, device=task.context.outer_loss.device)
        found = share.together(compute(mine) if mine.points else nothing, len(task.points))
        # the passes of all processes: each one counts the same
        passes = len(task.points) * len(task.context.inner_batches)
        counter.total = before + Cost(passes, passes, passes)
        return found
