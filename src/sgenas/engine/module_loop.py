"""The loop of a search in a module of one's own: weights and alphas in turn, epoch by epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from sgenas import trees
from sgenas.bilevel import BilevelProblem, Cost, Estimator
from sgenas.engine import parts, point, watch
from sgenas.engine.batches import Batches, Endless
from sgenas.engine.config import AlphaSettings, WeightSettings
from sgenas.engine.deterministic import algorithms, check
from sgenas.engine.meter import Meter
from sgenas.engine.module_costs import ModuleCosts
from sgenas.engine.progress import time_left_bar
from sgenas.errors import DivergenceError, InvalidValueError
from sgenas.spaces.modules import ModuleSpace
from sgenas.trees import Tree

ModelLoss = Callable[[Callable[..., Any], Any], Tensor]
"""loss(model, batch) -> 0-d tensor; `model` is called as the module would be."""
SUMMED = ("outer_loss", "direct_norm", "indirect_norm")


@dataclass(frozen=True)
class ModuleSettings:
    """What `sgenas.engine.module_search.search` was told, checked."""

    method: str
    estimator: Estimator
    epochs: int
    inner_steps: int
    seed: int
    weights: WeightSettings
    alphas: AlphaSettings


class ModuleLoop:
    """A search in the middle of its work; `run` does all of it.

    costs: of the choices, None where nobody asked for them. state, alphas, cost, history: where it stands.
    """

    def __init__(
        self,
        space: ModuleSpace,
        train: Batches,
        val: Batches,
        loss: ModelLoss,
        settings: ModuleSettings,
        costs: ModuleCosts | None = None,
        *,
        deterministic: bool = False,
    ) -> None:
        self.space, self.settings, self._costs = space, settings, costs
        self._train, self._val, self._loss_of = train, val, loss
        self._outer = Endless(val)
        start = space.initial_weights()
        self.state = parts.weight_optimizer(settings.weights, 0, settings.epochs).init(start)
        self.alphas = space.initial_alphas(parts.generator(settings.seed, "alphas"))
        self._estimator = settings.estimator
        self.cost = Cost()
        self.history: list[dict[str, Any]] = []
        self._directions = parts.generator(settings.seed, "directions")
        self._optimizer = parts.alpha_optimizer(settings.alphas, self.alphas)
        self._memory: Tree | None = None
        self.device = next(iter(start.values())).device
        self._deterministic = deterministic
        if deterministic:
            check(self.device)
        self._meter = Meter(self.device)

    def run(self, on_epoch: Callable[[dict[str, Any]], None] | None, progress: bool | None) -> None:
        """The epochs that are left. on_epoch: is given each one's row. progress: whether there is a bar."""
        epochs, done = self.settings.epochs, len(self.history)
        if done == 0:
            self._check()
        numerics = algorithms(self._deterministic, "deterministic"), parts.exact_convolutions(self.device)
        with numerics[0], numerics[1], _bar(progress) as bar, self._meter:
            task = bar.add_task("", total=epochs, completed=done)
            for epoch in range(done, epochs):

                def show(step: int, number: int = epoch + 1) -> None:
                    bar.update(task, description=f"epoch {number}/{epochs}, step {step}")

                row = self._epoch(epoch, show) | self._meter.read()
                bar.update(task, completed=epoch + 1)
                self.history.append(row)
                if on_epoch is not None:
                    on_epoch(row)

    # -- between two epochs -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as plain data and tensors."""
        own = self.cost, self.state, self.alphas, self._optimizer, self._directions, self._memory
        return {
            **point.to_dict(*own),
            "history": self.history,
            "measured": self._meter.read(),
            "outer": self._outer.state_dict(),
            "random": [self._train.random_state(), self._val.random_state()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was taken; raises any of the usual errors when it does not fit."""
        self.history = list(state["history"])
        self._meter.go_on_from(state["measured"])
        own = self.state, self.alphas, self._optimizer, self._directions, self.device
        self.cost, self.state, self._memory = point.go_to(state, *own)
        self._outer.load_state_dict(state["outer"])
        # after the batches that were drawn again: one generator may stand behind both
        for batches, states in zip((self._train, self._val), state["random"], strict=True):
            batches.set_random_state(states)

    # -- the losses ---------------------------------------------------------------------------------------

    def _loss(self, weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        return self._loss_of(self.space.bind(weights, alphas), batch)

    def _problem(self, epoch: int) -> BilevelProblem:
        settings = self.settings
        extra = parts.regulariser(settings.method, settings.alphas, epoch, settings.epochs)
        penalty = None if self._costs is None else self._costs.penalty
        optimizer = parts.weight_optimizer(settings.weights, epoch, settings.epochs)
        return BilevelProblem(self._loss, parts.with_terms(self._loss, extra, penalty), optimizer)

    def _check(self) -> None:
        """The loss must be a function of weights, alphas and batch alone, and of every alpha.

        Raises InvalidValueError where a buffer changes, two passes differ or a choice has no part in it.
        """
        batch = next(iter(self._train))
        buffers = {name: tensor.clone() for name, tensor in self.space.buffers()}
        alphas = trees.leaves(self.alphas)
        loss = self._loss(self.state.weights, alphas, batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InvalidValueError(f"loss must return a 0-d tensor, got {got}")
        for name, tensor in self.space.buffers():
            if not torch.equal(tensor, buffers[name]):
                raise InvalidValueError(
                    f"buffer {name!r} of the model must stay as it is in a pass, got another value: a search"
                    " needs passes that change nothing"
                )
        again = self._loss(self.state.weights, self.alphas, batch)
        if not torch.allclose(loss, again, rtol=1e-5, atol=1e-8, equal_nan=True):
            raise InvalidValueError(
                f"loss must be the same for the same batch, got {loss.item()} and {again.item()}: dropout is"
                " switched off, other random numbers belong into the batch"
            )
        for name, alpha in alphas.items():
            gradient = None
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, [alpha], retain_graph=True, allow_unused=True)
            if gradient is None:
                raise InvalidValueError(f"choice {name!r} must have a part in the loss, got none on a batch")

    # -- the steps ----------------------------------------------------------------------------------------

    def _epoch(self, epoch: int, show: Callable[[int], None]) -> dict[str, Any]:
        problem, warm = self._problem(epoch), epoch < self.settings.alphas.warmup_epochs
        inner_losses: list[Tensor] = []
        sums: dict[str, list[Tensor]] = {name: [] for name in SUMMED}
        batches = iter(self._train)
        count = self.settings.inner_steps
        try:
            while inner := list(islice(batches, count)):
                if not warm and len(inner) < count and not sums["outer_loss"]:
                    raise InvalidValueError(
                        f"inner_steps must be at most the {len(inner)} batches of train_data, got {count}"
                    )
                if warm or len(inner) < count:
                    inner_losses += self._train_weights(problem, inner)
                else:
                    inner_losses += self._move_both(problem, inner, sums)
                show(len(inner_losses))
            mean = torch.stack(inner_losses).mean().item()
            if not math.isfinite(mean):
                raise DivergenceError(f"inner_loss is {mean}")
        except DivergenceError as error:
            raise DivergenceError(
                f"{error} in epoch {epoch + 1}: the search diverged; try a lower lr or alpha_lr"
            ) from None
        means = {name: torch.stack(values).mean().item() if values else None for name, values in sums.items()}
        return self._row(epoch, problem.inner_optimizer.lr, mean, means)

    def _train_weights(self, problem: BilevelProblem, batches: list[Any]) -> tuple[Tensor, ...]:
        trajectory = problem.run(self.state, self.alphas, batches)
        self.state = trajectory.end
        self.cost += Cost(len(batches), len(batches), len(batches))
        return trajectory.losses

    def _move_both(
        self, problem: BilevelProblem, inner: list[Any], sums: dict[str, list[Tensor]]
    ) -> tuple[Tensor, ...]:
        result = self._estimator(
            problem,
            self.state,
            self.alphas,
            inner,
            next(self._outer),
            generator=self._directions,
            memory=self._memory,
        )
        self._estimator = parts.within_memory(self._estimator, result)
        self.state, self._memory = result.state, result.indirect
        self.cost += result.cost
        for name, alpha in self.alphas.items():
            alpha.grad = result.grad[name]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        norms = trees.norm(result.direct), trees.norm(self._memory)
        for name, value in zip(SUMMED, (result.outer_loss, *norms), strict=True):
            sums[name].append(value)
        return result.inner_losses

    def _row(
        self, epoch: int, lr: float, inner_loss: float, means: dict[str, float | None]
    ) -> dict[str, Any]:
        entropies = watch.edge_entropies(self.space.mixing(self.alphas))
        strongest = self.space.strongest(self.alphas)
        chosen = strongest if self._costs is None else self._costs.choices(self.alphas)
        return {
            "epoch": epoch,
            "lr": lr,
            "inner_loss": inner_loss,
            **means,
            "alphas": {name: alpha.tolist() for name, alpha in self.alphas.items()},
            "probabilities": self.space.weights_of_options(self.alphas),
            "entropy": {name: value.item() for name, value in entropies.items()},
            "choices": chosen,
            **({} if self._costs is None else self._costs.of(chosen)),
            "forward": self.cost.forward,
            "backward": self.cost.backward,
        }


def _bar(shown: bool | None) -> Progress:
    """Beside the output, whoever may read that."""
    columns = TextColumn("{task.description}"), BarColumn()
    return time_left_bar(Console(stderr=True), *columns, shown=shown, expand=False)
