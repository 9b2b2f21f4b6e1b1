"""The training of a network: steps of a torch optimizer, a test after each epoch, exact resume."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sgenas import tree
from sgenas.bilevel import Shards
from sgenas.device import arithmetic
from sgenas.errors import InvalidValueError, require
from sgenas.optim import SGD, Adam, AdamW, InnerOptimizer
from sgenas.random import generator, seed_of
from sgenas.run.batches import Stream
from sgenas.run.loop import Loop
from sgenas.run.state import matching
from sgenas.spaces.kernels import subsampled
from sgenas.training.ema import MovingAverage
from sgenas.training.objectives import Arithmetic, Objective, measure
from sgenas.training.schedules import WarmupCosine
from sgenas.training.sharding import ShardedGradient

TrainOptimizer = InnerOptimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""SGD, Adam or AdamW of `sgenas.optim`, or a function from the list of parameters to a torch optimizer."""

TORCH_OPTIMIZERS = {SGD: torch.optim.SGD, Adam: torch.optim.Adam, AdamW: torch.optim.AdamW}


class Training(Loop):
    """A training in the middle of its work. `sgenas.train` makes and runs one; callbacks get it.

    Args:
        network: Network to train, in place.
        train: Its training batches.
        test: Returns the batches to test it on, after each epoch; or None.
        objective: What is minimized and measured.
        arithmetic: Device, precision and memory format.
        optimizer: Optimizer of the weights.
        schedule: Learning-rate schedule.
        drop_path: Probability of drop path at the end, rising linearly by epoch from 0.
        ema: Decay rate of an exponential moving average of the weights, which is then tested; or None.
        seed: Seed of drop path and of layers such as dropout.
        fingerprint: Of the data; a checkpoint with another one is refused.
        shards: How batches are cut, see `ShardedGradient`; None for not at all.
        **loop: See `Loop`.

    Attributes:
        network: The network that takes the steps.
        average: The moving average of its weights, or None.
        best_test_accuracy: Largest test accuracy so far.
    """

    noun: ClassVar[str] = "training"
    lower: ClassVar[str] = "a lower lr"
    smaller: ClassVar[str] = "a lower batch_size or a smaller network"
    mean_prefix: ClassVar[str] = "train_"

    def __init__(
        self,
        network: nn.Module,
        train: Stream,
        test: Callable[[], Iterable[Any]] | None,
        objective: Objective,
        arithmetic: Arithmetic,
        *,
        optimizer: TrainOptimizer,
        schedule: WarmupCosine,
        drop_path: float,
        ema: float | None,
        seed: int,
        fingerprint: str = "",
        shards: Shards | None = None,
        **loop: Any,
    ) -> None:
        self.summed = objective.names  # type: ignore[misc]
        super().__init__(device=arithmetic.device, precision=arithmetic.precision, **loop)
        self._train, self.test_batches, self._objective, self._arithmetic = train, test, objective, arithmetic
        self.streams = (train,)
        self._schedule, self._drop_path, self._fingerprint = schedule, drop_path, fingerprint
        require(0 <= drop_path < 1, "drop_path", "in [0, 1)", drop_path)
        require(not drop_path or self.epochs > 1, "epochs", "> 1 with drop path (0 in the first)", self.epochs)
        self._can_drop = hasattr(network, "drop_path_generator")
        require(not drop_path or self._can_drop, "drop_path", "0 with a network without drop path", drop_path)
        stepwise = schedule.interval == "step" and train.length is None
        require(not stepwise, "schedule", "epoch with data of unknown length", schedule.interval)
        self.network = arithmetic.place(network)
        self._model = arithmetic.model(self.network)
        self.average = None if ema is None else MovingAverage(self.network, ema)
        self._drop_path_draws = generator(seed, "drop path")
        if self._can_drop:
            # also without drop path: an earlier training may have left its own
            self.network.drop_path_generator = self._drop_path_draws  # type: ignore[assignment]
        self._grad_clip = getattr(optimizer, "grad_clip", None)
        self._optimizer = make_optimizer(optimizer, list(self.network.parameters()))
        for group in self._optimizer.param_groups:
            schedule.check(self.epochs, group["lr"])
            group.setdefault("initial_lr", group["lr"])
        self._random = [torch.Generator().manual_seed(seed_of(seed, "layers")).get_state()]
        if self.device.type == "cuda":
            draws = torch.Generator(self.device).manual_seed(seed_of(seed, "layers"))
            self._random.append(draws.get_state())
        self._sharded: ShardedGradient | None = None
        if shards is not None:
            drawing = [self._drop_path_draws, torch.default_generator]
            if self.device.type == "cuda":
                drawing.append(torch.cuda.default_generators[self.device.index or 0])
            self._sharded = ShardedGradient(self.network, self._model, objective, shards, self.processes, drawing)
        self.best_test_accuracy = 0.0

    @property
    def result(self) -> nn.Module:
        """The network that is tested: the moving average of the weights if there is one."""
        return self.network if self.average is None else self.average.network

    # -- what a step does -----------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int | None:
        return self._train.length

    def learning_rate(self) -> float:
        return self._rate(self._optimizer.param_groups[0])

    def _rate(self, group: dict[str, Any]) -> float:
        now = (self.epoch, self.epochs, self.step_in_epoch, self.steps_per_epoch)
        return self._schedule(group["initial_lr"], *now)

    def drop_path(self) -> float:
        """The probability of this epoch: p epoch / epochs, as in the DARTS code."""
        return self._drop_path * self.epoch / self.epochs

    def take_step(self) -> dict[str, Tensor]:
        """One step of the optimizer; the values to log."""
        batch = next(self._train)
        self.network.train()
        if self._can_drop:
            self.network.drop_path = self.drop_path()  # type: ignore[assignment]
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(group)
        with self._own_random_state():
            if self._sharded is not None:
                values = self._sharded(batch)
            else:
                values = self._objective.train(self._model, batch)
                self._optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(values["loss"])
        if self._grad_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._grad_clip)
        self._optimizer.step()
        if self.average is not None:
            self.average.update(self.network)
        return tree.detach(values)

    @contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Dropout and the like draw from this training's state instead of PyTorch's global generators."""
        gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if gpu else []):
            torch.set_rng_state(self._random[0])
            if gpu:
                torch.cuda.set_rng_state(self._random[1], self.device)
            yield
            self._random = [torch.get_rng_state()]
            if gpu:
                self._random.append(torch.cuda.get_rng_state(self.device))

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        computed = arithmetic(self.device, self._precision, deterministic=self._deterministic, fastest=True)
        with computed, subsampled(self.network):
            yield

    # -- what an epoch measures -----------------------------------------------------------------------------

    def test(self) -> dict[str, float]:
        """``test_loss`` and, for a classifier, ``test_accuracy`` of `result`; empty without test data."""
        if self.test_batches is None:
            return {}
        return measure(self._objective, self._arithmetic, self.result, self.test_batches(), self.processes)

    def end_epoch(self) -> dict[str, Any]:
        row: dict[str, Any] = self.test()
        if "test_accuracy" in row:
            self.best_test_accuracy = max(self.best_test_accuracy, row["test_accuracy"])
            row["best_test_accuracy"] = self.best_test_accuracy
        return row | {"drop_path": self.drop_path(), "forward": self.step, "backward": self.step}

    # -- checkpoints ----------------------------------------------------------------------------------------

    def finite_norms(self) -> dict[str, Tensor]:
        return {"norm of the weights": tree.norm(tree.detach(dict(self.network.named_parameters())))}

    def own_state(self) -> dict[str, Any]:
        average = self.average
        return {
            "fingerprint": self._fingerprint,
            "network": dict(self.network.state_dict()),
            "average": None if average is None else dict(average.network.state_dict()),
            "average_updates": 0 if average is None else average.updates,
            "optimizer": self._optimizer.state_dict(),
            "train": self._train.state_dict(),
            "drop_path": self._drop_path_draws.get_state(),
            "random": self._random,
            "best_test_accuracy": self.best_test_accuracy,
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self._fingerprint:
            raise InvalidValueError("it was saved with other data", field="train_data")
        load_weights(self.network, state["network"])
        if self.average is not None:
            load_weights(self.average.network, state["average"])
            self.average.updates = state["average_updates"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._train.load_state_dict(state["train"])
        self._train.restore_generators(state["train"])
        self._drop_path_draws.set_state(state["drop_path"])
        # a run from a CPU has no state of a GPU, which keeps that of the seed
        saved = [random.cpu() for random in state["random"]][: len(self._random)]
        self._random[: len(saved)] = saved
        self.best_test_accuracy = state["best_test_accuracy"]


def load_weights(network: nn.Module, weights: tree.TensorDict) -> None:
    """Loads a checkpoint's weights; ValueError unless names and shapes are those of ``network``."""
    expected = dict(network.state_dict())
    first = next(iter(expected.values()), torch.empty(0))
    network.load_state_dict(matching(expected, weights, first.device, "weights"))


def make_optimizer(optimizer: TrainOptimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer with the settings of ``optimizer``, without its gradient clipping."""
    make: Any = TORCH_OPTIMIZERS.get(type(optimizer))
    if make is not None:
        settings = dataclasses.asdict(optimizer)  # type: ignore[call-overload]
        del settings["grad_clip"]
        return make(parameters, **settings)
    good = callable(optimizer) and not hasattr(optimizer, "init")
    require(good, "optimizer", "SGD, Adam, AdamW or a function of parameters", optimizer)
    return optimizer(parameters)  # type: ignore[operator]
