"""Which steps a search takes and what each costs in passes: known before the first of them."""

from dataclasses import dataclass
from functools import cached_property

from sgenas.bilevel import Cost, Estimator
from sgenas.engine.config import SearchConfig
from sgenas.engine.parts import make_estimator
from sgenas.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """The steps of a search with these settings, whose weights train on `images` images; counted from 0.

    An epoch has floor(floor(images / batch) / N) steps, each of N batches. Those of the warm-up and all but
    every `--alpha-every`-th train the weights alone. Raises ConfigError where an epoch would have no step or
    the search no step that moves the alphas.
    """

    config: SearchConfig
    images: int

    def __post_init__(self) -> None:
        batches = self.images // self.config.data.batch_size
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"--inner-steps must be at most the {batches} batches of an epoch,"
                f" got {self.config.estimator.inner_steps}"
            )
        if not self.alpha_steps:
            raise ConfigError(
                f"--alpha-every must be at most the {self.steps} steps of the search, else no alpha moves,"
                f" got {self.config.alphas.alpha_every}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.images // self.config.data.batch_size // self.config.estimator.inner_steps

    @property
    def steps(self) -> int:
        """Steps of the whole search."""
        return self.config.epochs * self.steps_per_epoch

    @cached_property
    def alpha_steps(self) -> int:
        """Those of them that move the alphas."""
        return sum(self.moves_alphas(step) for step in range(self.steps))

    def moves_alphas(self, step: int) -> bool:
        """Whether step number `step` moves the alphas besides the weights."""
        settings = self.config.alphas
        warm = step < settings.warmup_epochs * self.steps_per_epoch
        return not warm and (step + 1) % settings.alpha_every == 0

    @cached_property
    def estimator(self) -> Estimator:
        """The estimator of the settings."""
        return make_estimator(self.config)

    @property
    def training_cost(self) -> Cost:
        """Passes of a step that trains the weights alone: N."""
        inner_steps = self.config.estimator.inner_steps
        return Cost(inner_steps, inner_steps, inner_steps)

    @cached_property
    def alpha_cost(self) -> Cost:
        """Passes of a step that moves the alphas; with `--weights separate` the weights' own N are in it."""
        cost = self.estimator.cost(self.config.estimator.inner_steps)
        return cost + self.training_cost if self.config.weights.weights == "separate" else cost

    def step_cost(self, step: int) -> Cost:
        """Passes of step number `step`: few where it only trains the weights, many where it moves alphas."""
        return self.alpha_cost if self.moves_alphas(step) else self.training_cost

    @property
    def cost(self) -> Cost:
        """Passes of the whole search."""
        training, moving = self.training_cost, self.alpha_cost
        rest = self.steps - self.alpha_steps
        return Cost(
            rest * training.forward + self.alpha_steps * moving.forward,
            rest * training.backward + self.alpha_steps * moving.backward,
            rest * training.inner_steps + self.alpha_steps * moving.inner_steps,
        )
