"""Whether an estimator that takes differences bears low precision: measured before the first step."""

import dataclasses
from typing import Any

from sgenas.bilevel import BilevelProblem, Estimator, rounding
from sgenas.bilevel.inner import InnerState
from sgenas.engine.config import SearchConfig
from sgenas.engine.parts import seed_of
from sgenas.errors import ConfigError
from sgenas.trees import Tree

LIMIT = 0.1
"""Of the indirect part's length, what rounding may move it by: one measurement is right within a factor of
about two, and rounding then still adds less than a twentieth to the squared length."""


def check(
    config: SearchConfig,
    estimator: Estimator,
    low: BilevelProblem,
    high: BilevelProblem,
    state: InnerState,
    alphas: Tree,
    inner_batches: list[Any],
    outer_batch: Any,
) -> dict[str, Any]:
    """`bilevel.rounding.measure` of the problem in `--precision` beside that in float32, for config.json.

    Raises ConfigError, with the figures, where rounding moves the indirect part by more than LIMIT of it.
    """
    seed = seed_of(config.seed, "rounding")
    found = rounding.measure(estimator, low, high, state, alphas, inner_batches, outer_batch, seed=seed)
    # (written so that nan is refused too)
    if not found.share <= LIMIT:
        smoothing = getattr(estimator, "smoothing", None)
        step = "" if smoothing is None else f" with --smoothing {smoothing}"
        raise ConfigError(
            f"--precision must be float32 with --estimator {config.estimator.estimator}{step}, got"
            f" {config.precision}: on the first batches its rounding moves the indirect part of the"
            f" hypergradient by {found.noise_floor:.1e}, and the part is {found.length:.1e} long (at most"
            f" {LIMIT:g} of that is accepted)"
        )
    return {"rounding": dataclasses.asdict(found)}
