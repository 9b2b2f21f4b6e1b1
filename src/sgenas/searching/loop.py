"""The search: weights and architecture parameters in turn, for every space, loss and estimator."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel import Cost, Estimator, HypergradientResult
from sgenas.bilevel.problem import Penalty
from sgenas.errors import InvalidValueError, require
from sgenas.optim import InnerOptimizer, InnerState, with_lr
from sgenas.random import Seed, generator, seed_of
from sgenas.run.batches import Stream
from sgenas.run.loop import Loop
from sgenas.run.state import matching, matching_slots
from sgenas.searching import results
from sgenas.searching.alpha_noise import AlphaNoise
from sgenas.searching.arch import ArchOptimizer, make_arch_optimizer
from sgenas.searching.objectives import Objectives, Seeded
from sgenas.searching.schedules import Schedule
from sgenas.searching.selection.base import AlphaSelection, Selection, choose
from sgenas.searching.variance import GradientStatistics
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.costs import CostModel
from sgenas.spaces.regularizers import Regularizer
from sgenas.tree import TensorDict, Tree


class Search(Loop):
    """A search in the middle of its work. `sgenas.search` makes and runs one; callbacks get it.

    Attributes:
        space: The space, with the parts of the method.
        state: Weights and slots of their optimizer.
        alphas: Architecture parameters, by table.
        cost: Passes so far.
        fingerprint: Of the data; a checkpoint with another one is refused.
        alpha_history: Alphas before the first epoch and after each.
        selection: How the final architecture is chosen.
        candidates: What the selection has measured, one row each.
        chosen: What it has chosen; None before.
    """

    noun: ClassVar[str] = "search"
    lower: ClassVar[str] = "a lower learning rate of weights or alphas"
    smaller: ClassVar[str] = "a lower batch_size or a smaller supernet"
    summed: ClassVar[tuple[str, ...]] = ("inner_loss", "outer_loss", "weight_grad_norm", "direct_norm", "indirect_norm")

    def __init__(
        self,
        space: SearchSpace,
        train: Stream,
        val: Stream,
        objectives: Objectives,
        *,
        estimator: Estimator,
        weight_optimizer: InnerOptimizer,
        schedule: Schedule,
        arch_optimizer: ArchOptimizer,
        trajectory_optimizer: InnerOptimizer | None,
        regularizer: Regularizer | None,
        alpha_noise: AlphaNoise,
        costs: CostModel | None,
        selection: Selection,
        new_val: Callable[[], Stream],
        warmup_epochs: int,
        alpha_every: int,
        inner_steps: int,
        seed: int,
        fingerprint: str,
        **loop: Any,
    ) -> None:
        super().__init__(**loop)
        self.space, self.costs, self.selection = space, costs, selection
        self.loss, self.new_val = objectives.loss, new_val
        self.candidates: list[dict[str, Any]] = []
        self.chosen: Any = None
        self._train, self._val, self._objectives, self.streams = train, val, objectives, (train, val)
        self.estimator, self._weight_optimizer, self._schedule = estimator, weight_optimizer, schedule
        self._trajectory_optimizer, self._regularizer = trajectory_optimizer, regularizer
        self._alpha_every, self.inner_steps = alpha_every, inner_steps
        self._warmup_epochs = warmup_epochs if space.relaxation.learns else self.epochs
        self.alpha_noise, self.seed, self.fingerprint = alpha_noise, seed, fingerprint
        limit = f"from 0 to epochs - 1 = {self.epochs - 1} (methods have their own)"
        require(0 <= warmup_epochs < self.epochs, "warmup_epochs", limit, warmup_epochs)
        results.require_alpha_steps(self, train.length)
        self._rounds = 0
        self.state = weight_optimizer.init(tree.to(space.initial_weights(generator(seed, "weights")), self.device))
        self.alphas: TensorDict = tree.to(space.initial_alphas(generator(seed, "alphas")), self.device)
        self._arch_optimizer = make_arch_optimizer(arch_optimizer, self.alphas)
        self._penalty: Any = None if costs is None or costs.penalty(self.alphas) is None else costs.penalty
        self._directions, self._noise = generator(seed, "directions"), generator(seed, "relaxation")
        self.statistics = GradientStatistics(self.alphas)
        self.cost = Cost()
        self.alpha_history: list[TensorDict] = [tree.clone(self.alphas)]
        self._selected: int | None = None

    def facts(self) -> dict[str, Any]:
        """What config.json says about the search besides its settings."""
        found = {"weights": tree.size(self.state.weights), "alphas": tree.size(self.alphas)}
        found["processes"] = self.processes.size
        if hasattr(self.estimator, "smoothing"):
            found["smoothing"] = self.estimator.smoothing
        return found | ({} if self.costs is None else self.costs.describe())

    # -- what a step does -----------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int | None:
        """Groups of N batches in a pass through the training data; a smaller last group trains the weights."""
        return None if self._train.length is None else math.ceil(self._train.length / self.inner_steps)

    def _moves_alphas(self, batches: int) -> bool:
        """Whether this step, with that many inner batches, moves the alphas too; counts what may move them."""
        if self.epoch < self._warmup_epochs or batches < self.inner_steps:
            return False
        self._rounds += 1
        return self._rounds % self._alpha_every == 0

    def learning_rate(self) -> float | None:
        lr = getattr(self._weight_optimizer, "lr", None)
        return None if lr is None else self._schedule(lr, self.epoch, self.epochs)

    def weight_optimizer(self) -> InnerOptimizer:
        """The weights' optimizer with the learning rate of this epoch."""
        lr = self.learning_rate()
        return self._weight_optimizer if lr is None else with_lr(self._weight_optimizer, lr)

    def penalties(self) -> list[Penalty]:
        """What this step adds to the outer loss: the method's regularizer and the expected cost."""
        found: list[Any] = [] if self._regularizer is None else [self._regularizer.at_step(self.step)]
        return found if self._penalty is None else [*found, self._penalty]

    def objectives(self) -> Objectives:
        """The losses with the relaxation of this epoch."""
        return self._objectives.at_epoch(self.space, self.epoch, self.epochs)

    def take_step(self) -> dict[str, Tensor]:
        """N inner steps and, if it is due, one step of the alphas; the values to log."""
        inner = [self._seeded(next(self._train), 0)]
        while len(inner) < self.inner_steps and not self._train.at_end:
            inner.append(self._seeded(next(self._train), len(inner)))
        objectives, optimizer = self.objectives(), self.weight_optimizer()
        noise = objectives.space.draw_noise(self.alphas, self._noise)
        problem = objectives.problem(optimizer, self.penalties(), noise)
        if not self._moves_alphas(len(inner)):
            trajectory = problem.run(self.state, self.alphas, inner)
            self.state = trajectory.end
            self.cost += Cost(len(inner), len(inner), len(inner))
            return {"inner_loss": torch.stack(trajectory.losses).mean()} | self._gradient_norm()

        outer, start, own = self._seeded(next(self._val), -1), self.state, problem
        if self._trajectory_optimizer is not None:
            own = dataclasses.replace(problem, inner_optimizer=self._trajectory_optimizer)
            start = self._trajectory_optimizer.init(self.state.weights)
        estimator = self.statistics.with_directions(self.estimator)
        result = estimator(own, start, self.alphas, inner, outer, generator=self._directions)
        self._keep_chunk(result)
        result.require_finite()
        measured = self.statistics.update(self.estimator, result)
        self.cost += result.cost
        for name, alpha in self.alphas.items():
            alpha.grad = result.grad[name]
        self._arch_optimizer.step()
        self._arch_optimizer.zero_grad(set_to_none=True)
        losses = result.inner_losses
        if self._trajectory_optimizer is None:
            self.state = result.state
        else:
            # its steps are discarded: the weights train on the same batches, with the alphas as they are now
            trajectory = problem.run(self.state, self.alphas, inner)
            self.state, losses = trajectory.end, trajectory.losses
            self.cost += Cost(len(inner), len(inner), len(inner))
        return {
            "inner_loss": torch.stack(losses).mean(),
            "outer_loss": result.outer_loss,
            **measured,
            "alpha_min": torch.stack([alpha.min() for alpha in self.alphas.values()]).min(),
            "alpha_max": torch.stack([alpha.max() for alpha in self.alphas.values()]).max(),
            **self._gradient_norm(),
        }

    def _seeded(self, batch: Any, number: int) -> Seeded:
        """The batch with what the network draws on it, and the noise of the inner loss (``number`` < 0: outer)."""
        seed = Seed(seed_of(self.seed, f"network/{self.step}/{number}"))
        noise = None if number < 0 else self.alpha_noise.draw(self.space, self.alphas, seed, self.epoch, self.epochs)
        return Seeded(batch, seed, noise)

    def _gradient_norm(self) -> dict[str, Tensor]:
        return {} if self.state.grad_norm is None else {"weight_grad_norm": self.state.grad_norm}

    def _keep_chunk(self, result: HypergradientResult) -> None:
        """After memory ran out, later steps begin with the smaller chunk that was enough."""
        chunk = result.diagnostics.get("chunk")
        if chunk is not None:
            self.estimator = dataclasses.replace(self.estimator, chunk=int(chunk.item()))  # type: ignore[type-var]
            self.notes["chunk"] = int(chunk.item())

    # -- what an epoch measures -----------------------------------------------------------------------------

    def end_epoch(self) -> dict[str, Any]:
        if self.epoch == 0:
            results.require_alpha_steps(self, self._train.taken)
        if self.epoch + 1 == self.epochs and not isinstance(self.selection, AlphaSelection):
            self.save_checkpoint()
        self.alpha_history.append(tree.clone(self.alphas))
        if self.epoch + 1 == self.epochs:
            choose(self)
        return results.epoch_row(self)

    def end_early(self) -> dict[str, Any]:
        choose(self)
        return results.result_row(self)

    def _end_epoch(self) -> None:
        super()._end_epoch()
        if self.finished:
            choose(self)  # for a callback that ended the search when it saw the row
        results.write_results(self)

    @property
    def architecture(self) -> Any:
        """The selected architecture, before the selection the derived one; within the budget if there is one."""
        return self.derive(self.final_alphas) if self.chosen is None else self.chosen

    @property
    def final_alphas(self) -> TensorDict:
        """The current alphas, or those of the epoch that a callback has selected."""
        return self.alphas if self._selected is None else self.alpha_history[self._selected + 1]

    def derive(self, alphas: TensorDict) -> Any:
        """The architecture of ``alphas``."""
        return self.space.derive(alphas) if self.costs is None else self.costs.derive(alphas)

    def select_epoch(self, epoch: int) -> None:
        """Makes the architecture of ``epoch`` (from 0) the result; for callbacks that stop a search early."""
        self._selected = epoch

    def supernet(self, mixing: Tree | None = None) -> Callable[..., Any]:
        """The supernet at the current weights and alphas, or with given mixing weights."""
        weights, space = self.state.weights, self.space.without_dropout().seeded(self.seed)
        bound = space.bind(weights, self.alphas) if mixing is None else space.bind_mixing(weights, mixing)
        return self._objectives.model(bound)

    def outer_objective(self, batch: Any) -> Callable[[Tree], Tensor]:
        """alphas -> L_val at the current weights on ``batch``, penalties included."""
        problem = self.objectives().problem(self.weight_optimizer(), self.penalties(), None)
        return lambda alphas: problem.outer_objective(self.state.weights, alphas, self._seeded(batch, -1))

    # -- progress and checkpoints ---------------------------------------------------------------------------

    @property
    def work_done(self) -> float:
        """Forward passes: a warm-up step is many times cheaper than one with SGE."""
        return self.cost.forward

    @property
    def work_total(self) -> float | None:
        if self._train.length is None:
            return None
        return max(self.work_done, self.predicted_cost(self.statistics.with_directions(self.estimator)).forward)

    def predicted_cost(self, estimator: Estimator | None = None) -> Cost:
        """Passes of the whole search, at most; for training data of known length."""
        training = results.training_cost(self, self.epochs, self._warmup_epochs, estimator=estimator)
        return training + self.selection.cost(self, self._val.length or 0)

    def alphas_cost(self, estimator: Estimator | None = None) -> Cost:
        """Passes of a step that moves the alphas, at most."""
        separate = self._trajectory_optimizer is not None
        return results.alphas_cost(estimator or self.estimator, self.inner_steps, separate=separate)

    def finite_norms(self) -> dict[str, Tensor]:
        return {"norm of the weights": tree.norm(self.state.weights), "norm of the alphas": tree.norm(self.alphas)}

    def snapshot(self) -> dict[str, Any]:
        """What a step changes apart from the data's position, as tensors that nothing changes later."""
        return {
            "weights": self.state.weights,
            "slots": self.state.slots,
            "inner_step": self.state.step,
            "alphas": tree.clone(self.alphas),
            "arch_optimizer": copy.deepcopy(self._arch_optimizer.state_dict()),
            "statistics": self.statistics.state_dict(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes back to ``snapshot``."""
        weights = matching(self.state.weights, snapshot["weights"], self.device, "weights")
        slots = matching_slots(self.state.slots, snapshot["slots"], self.device, snapshot["inner_step"])
        self.state = InnerState(weights, slots, snapshot["inner_step"])
        for name, alpha in matching(self.alphas, snapshot["alphas"], self.device, "alphas").items():
            self.alphas[name].copy_(alpha)
            self.alphas[name].grad = None
        # a copy: the optimizer goes on in the tensors that it is given
        self._arch_optimizer.load_state_dict(copy.deepcopy(snapshot["arch_optimizer"]))
        self.statistics.load_state_dict(snapshot["statistics"])

    def own_state(self) -> dict[str, Any]:
        return {
            **self.snapshot(),
            "fingerprint": self.fingerprint,
            "cost": [self.cost.forward, self.cost.backward, self.cost.inner_steps],
            "directions": self._directions.get_state(),
            "noise": self._noise.get_state(),
            "rounds": self._rounds,
            "streams": [stream.state_dict() for stream in self.streams],
            "alpha_history": self.alpha_history,
            "selected": self._selected,
            "candidates": self.candidates,
            "chosen": None if self.chosen is None else self.space.architecture_to_dict(self.chosen),
        }

    def local_state(self) -> dict[str, Any]:
        # each process may run out of memory by itself
        return {"chunk": getattr(self.estimator, "chunk", None), "findings": self._objectives.findings.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise InvalidValueError("it was saved with other data", field="train_data")
        self.restore(state)
        self.cost = Cost(*state["cost"])
        self._directions.set_state(state["directions"])
        self._noise.set_state(state["noise"])
        self._rounds = int(state["rounds"])
        for stream, kept in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(kept)
        for stream, kept in zip(self.streams, state["streams"], strict=True):
            stream.restore_generators(kept)
        self.alpha_history = [matching(self.alphas, each, self.device, "alphas") for each in state["alpha_history"]]
        self._selected = state["selected"]
        self.candidates, chosen = list(state.get("candidates", ())), state.get("chosen")
        self.chosen = None if chosen is None else self.space.architecture_from_dict(chosen)
        self._objectives.findings.load_state_dict(state["local"]["findings"])
        if hasattr(self.estimator, "chunk"):
            self.estimator = dataclasses.replace(self.estimator, chunk=state["local"]["chunk"])  # type: ignore[type-var]
