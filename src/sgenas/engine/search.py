"""The search loop: weights and alphas in turn, from the first batch to the derived cell."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgenas import data, trees
from sgenas.bilevel import SGD, SGE, BilevelProblem, Cost, Estimator, EvolutionStrategies, FirstOrder
from sgenas.bilevel.curvature import hessian_operator, largest_eigenvalue
from sgenas.bilevel.inner import InnerState
from sgenas.bilevel.problem import Loss
from sgenas.engine import class_weights, nonfinite, parts, point, precision, watch
from sgenas.engine.budget import CellCosts
from sgenas.engine.config import SearchConfig
from sgenas.engine.loop import Observer, Run, Silent, same_shapes, whole_number
from sgenas.engine.parallel import ALONE, Layout, Processes
from sgenas.engine.ranges import Ranges
from sgenas.engine.run_folder import Recorder, RunFolder
from sgenas.engine.schedule import Schedule
from sgenas.engine.validation import Validation
from sgenas.errors import ConfigError, DataError, DivergenceError, ProcessError
from sgenas.spaces import Genotype, stacked_cross_entropy
from sgenas.trees import Tree

Batch = tuple[Tensor, ...]
"""(images, labels), or (images, labels, factors): float32 (B, C, H, W), int64 (B,), float32 (B,)."""
LOGGED = ("standard_error", "smoothing", "noise_floor", "residual")
"""Diagnostics of the estimators that a step's row has."""


@dataclass(frozen=True)
class SearchResult:
    """What a search came to. `finished` is False where it was stopped and can be resumed from `path`.

    `epochs` holds the epoch rows written by this process, the last one with `val_accuracy`, a fraction.
    """

    path: Path
    genotype: Genotype
    finished: bool
    epochs: tuple[dict[str, Any], ...]


class Search(Run):
    """A search in the middle of its work. Made from its settings; nothing is written before `run`.

    layout: how several `processes` divide the work; made from the settings for one alone. images: in place of
    those that `--data` names.
    """

    noun = "search"
    remedy = "a lower --lr or --alpha-lr"
    smaller = "a lower --batch-size or --channels, or with sge --computation streamed"
    summed = ("inner_loss", "outer_loss", "weight_grad_norm", "direct_norm", "indirect_norm")
    config: SearchConfig

    def __init__(
        self,
        config: SearchConfig,
        folder: RunFolder,
        processes: Processes = ALONE,
        layout: Layout | None = None,
        images: data.ImageData | None = None,
    ) -> None:
        self.layout = layout or processes.layout(config.data.data_parallel)
        self.table = parts.load_table(config)
        super().__init__(config, folder, test=False, processes=processes, images=images)
        self.split = self._split()
        training, validation = (self.images.train.subset(part) for part in self.split.values())
        augmentation = parts.make_augmentation(config, self.images, training)
        self.space = parts.make_space(config, self.images)
        self.costs = CellCosts(config, self.space, self.images)
        self._class_weights = parts.class_weights(config, self.images, self.device)
        self._logits, self._stacked_logits = parts.forward_passes(config, self.space, self.device)
        # data sets are often stored class by class, and batches of one class have misleading statistics
        shuffled = torch.randperm(len(validation), generator=parts.generator(config.seed, "evaluate"))
        training, validation = training.to(self.device), validation.subset(shuffled).to(self.device)
        batch_size = config.data.batch_size
        for part, name in ((training, "train"), (validation, "validate")):
            if len(part) < batch_size:
                raise ConfigError(
                    f"--batch-size must be at most the {len(part)} images that {name}, got {batch_size}"
                )
        self.inner_stream = data.BatchStream(
            training, batch_size, augmentation, parts.generator(config.seed, "inner")
        )
        self.outer_stream = data.BatchStream(
            validation, batch_size, augmentation, parts.generator(config.seed, "outer")
        )
        self._validation = Validation(validation, batch_size, augmentation)
        self.schedule = Schedule(config, len(training))
        self.steps_per_epoch = self.schedule.steps_per_epoch

        self.estimator = parts.make_estimator(config, self.layout.share)
        self.directions = parts.generator(config.seed, "directions")
        self.alphas = self._to_device(self.space.initial_alphas(parts.generator(config.seed, "alphas")))
        parts.check_blocks(config, self.alphas)
        self.alpha_optimizer = self._alpha_optimizer()
        self.state = self._weight_optimizer().init(
            self._to_device(dict(self.space.supernet.named_parameters()))
        )

        self.cost = Cost()
        self._history = [trees.clone(self.alphas)]
        self._eigenvalues: list[tuple[int, float]] = []
        self._stopped_at: int | None = None
        self._memory: Tree | None = None
        self._losses = nonfinite.Losses()
        self._kept = self._moment()
        self._ranges = Ranges(quiet=not processes.first)

    def describe(self) -> dict[str, Any]:
        """What the search was given: classes, images in each part, sizes; plain data."""
        found = {}
        if isinstance(self.estimator, SGE | EvolutionStrategies):
            found["smoothing"] = self.estimator.smoothing
        return {
            "classes": list(self.images.classes),
            "images": {name: len(part) for name, part in self.split.items()},
            "weights": trees.size(self.state.weights),
            "alphas": trees.size(self.alphas),
            "activation": parts.activation(self.config),
            "processes": self.processes.size,
            **self.costs.describe(),
        } | found

    def check_precision(self) -> dict[str, Any]:
        """What bfloat16 does to the hypergradient on the first batches; {} where nothing is rounded.

        Takes no batch from the streams. Raises ConfigError where that is more than `precision.LIMIT`.
        """
        if self.config.precision == "float32" or isinstance(self.estimator, FirstOrder):
            return {}
        before = self.inner_stream.state_dict(), self.outer_stream.state_dict()
        inner = [self.next_batch(self.inner_stream) for _ in range(self.config.estimator.inner_steps)]
        outer = self.next_batch(self.outer_stream)
        self.inner_stream.load_state_dict(before[0])
        self.outer_stream.load_state_dict(before[1])
        exact = copy.copy(self)
        exact.config = dataclasses.replace(self.config, precision="float32")
        exact._logits, exact._stacked_logits = parts.forward_passes(exact.config, self.space, self.device)
        optimizer = self._weight_optimizer()
        low, start = self._trajectory(self._problem(optimizer))
        high, _ = exact._trajectory(exact._problem(optimizer))
        with self.numerics():
            return precision.check(self.config, self.estimator, low, high, start, self.alphas, inner, outer)

    # -- making the parts ---------------------------------------------------------------------------------

    def _split(self) -> dict[str, Tensor]:
        fraction, labels = self.config.data.train_fraction, self.images.train.labels
        draw = parts.generator(self.config.seed, "split")
        try:
            first, second = data.split_stratified(labels, fraction, draw)
        except DataError as error:
            raise parts.data_error(self.config, error) from None
        return {"training": first, "validation": second}

    def _to_device(self, tree: Tree) -> Tree:
        return parts.to_device(tree, self.device)

    def _alpha_optimizer(self) -> torch.optim.Optimizer:
        return parts.alpha_optimizer(self.config.alphas, self.alphas)

    def _weight_optimizer(self) -> SGD:
        return parts.weight_optimizer(self.config.weights, self.epoch, self.config.epochs)

    def learning_rate(self) -> float:
        """Of the weights in the present epoch."""
        return self._weight_optimizer().lr

    # -- the mathematics of one step ----------------------------------------------------------------------

    def next_batch(self, stream: data.BatchStream) -> Batch:
        """The next of a stream as the losses take it: (images, labels), with class weights also factors."""
        return self._with_factors(next(stream))

    def _with_factors(self, batch: tuple[Tensor, Tensor]) -> Batch:
        if self._class_weights is None:
            return batch
        return (*batch, class_weights.factors(self._class_weights, batch[1]))

    def _loss(self, weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
        """Cross-entropy of the supernet on a batch: L_train on training images, L_val on validation ones."""
        images, labels, *factors = batch
        return class_weights.cross_entropy(self._logits(weights, alphas, images), labels, *factors)

    def _outer_loss(self) -> Loss:
        """`_loss` with what the method adds to it in this epoch, and the expected cost."""
        extra = parts.regulariser(self.config.method, self.config.alphas, self.epoch, self.config.epochs)
        return parts.with_terms(self._loss, extra, self.costs.penalty)

    def _stacked_loss(self, weights: Tree, alphas: Tree, batch: Batch) -> Tensor:
        """`_loss` of M members at once, (M,)."""
        images, labels, *factors = batch
        return stacked_cross_entropy(self._stacked_logits(weights, alphas, images), labels, *factors)

    def _problem(self, optimizer: SGD) -> BilevelProblem:
        shards = self.layout.shards
        return BilevelProblem(self._loss, self._outer_loss(), optimizer, self._stacked_loss, shards)

    def _take_step(self) -> dict[str, Tensor]:
        """N inner steps and, where it is due, one step of the alphas; what there is to log, as tensors.

        Nothing where the step was not finite and `--on-nonfinite` says to go on.
        """
        policy = self.config.on_nonfinite
        if policy == "stop":
            return self._step()
        before = self._moment() if policy == "skip" else self._kept
        try:
            values = self._step()
            made = {"what is logged:": values, "the weights": self.state.weights, "the alphas": self.alphas}
            nonfinite.require_finite(made)
        except DivergenceError as error:
            self._losses.count(str(error))
            self._go_back_to(before)
            self._notes["nonfinite"] = f"{policy}: {error}"
            return {}
        return values

    def _moment(self) -> nonfinite.Moment:
        return nonfinite.Moment.now(self.state, self.alphas, self.alpha_optimizer, self._memory)

    def _go_back_to(self, moment: nonfinite.Moment) -> None:
        moment.restore(self.alphas, self.alpha_optimizer)
        self.state, self._memory = moment.state, moment.memory

    def _step(self) -> dict[str, Tensor]:
        problem = self._problem(self._weight_optimizer())
        inner = [self.next_batch(self.inner_stream) for _ in range(self.config.estimator.inner_steps)]
        if not self.schedule.moves_alphas(self.step):
            return {"inner_loss": self._train_weights(problem, inner)} | self._gradient_norm()

        outer = self.next_batch(self.outer_stream)
        separate = self.config.weights.weights == "separate"
        own, start = self._trajectory(problem)
        result = self.estimator(
            own, start, self.alphas, inner, outer, generator=self.directions, memory=self._memory
        )
        self._narrow(parts.within_memory(self.estimator, result))
        nonfinite.require_finite({"the hypergradient of the alphas": result.grad})
        indirect = self._memory = result.indirect
        for name, alpha in self.alphas.items():
            alpha.grad = result.grad[name]
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)
        if separate:
            inner_loss = self._train_weights(problem, inner)
        else:
            self.state = result.state
            inner_loss = torch.stack(result.inner_losses).mean()
        found = {
            "inner_loss": inner_loss,
            "outer_loss": result.outer_loss,
            "direct_norm": trees.norm(result.direct),
            "indirect_norm": trees.norm(indirect),
            "alpha_min": torch.stack([alpha.min() for alpha in self.alphas.values()]).min(),
            "alpha_max": torch.stack([alpha.max() for alpha in self.alphas.values()]).max(),
        }
        found |= self._gradient_norm()
        return found | {name: result.diagnostics[name] for name in LOGGED if name in result.diagnostics}

    def _gradient_norm(self) -> dict[str, Tensor]:
        norm = self.state.grad_norm
        return {} if norm is None else {"weight_grad_norm": norm}

    def _narrow(self, estimator: Estimator) -> None:
        if estimator is not self.estimator:
            self.estimator = estimator
            self._notes["chunk"] = self._chunk

    @property
    def _chunk(self) -> int | None:
        return self.estimator.chunk if isinstance(self.estimator, SGE) else None

    def _trajectory(self, training: BilevelProblem) -> tuple[BilevelProblem, InnerState]:
        """The problem whose inner steps the estimator takes, `training` or its own, and where they start."""
        settings = self.config.weights
        if settings.weights == "separate" and settings.trajectory_lr is not None:
            start = InnerState(self.state.weights, {}, self.state.step)
            return self._problem(SGD(settings.trajectory_lr)), start
        return training, self.state

    def _train_weights(self, problem: BilevelProblem, batches: list[Batch]) -> Tensor:
        trajectory = problem.run(self.state, self.alphas, batches)
        self.state = trajectory.end
        return torch.stack(trajectory.losses).mean()

    def evaluate(self, genotype: Genotype | None = None) -> tuple[float, float]:
        """(mean loss, accuracy) of the supernet on the validation images, not augmented, batch statistics.

        With a genotype: of that cell alone, with the supernet's weights.
        """
        if genotype is None:
            return self._validation.test(
                lambda images: self._logits(self.state.weights, self.alphas, images), self.processes
            )
        chosen = self._to_device(self.space.one_hot(genotype))
        return self._validation.test(
            lambda images: self.space.mixed_logits(self.state.weights, chosen, images), self.processes
        )

    def eigenvalue(self) -> float:
        """The largest of the outer loss' Hessian in the alphas, on the first batch of validation images."""
        loss, batch = self._outer_loss(), self._with_factors(next(self._validation.batches()))
        matvec = hessian_operator(lambda alphas: loss(self.state.weights, alphas, batch), self.alphas)
        draw = parts.generator(self.config.seed, f"eigenvalue {self.epoch}")
        start = torch.randn(trees.size(self.alphas), generator=draw)
        return largest_eigenvalue(matvec, start.to(self.device))

    # -- the loop -----------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the search has stopped early."""
        return self.epoch >= self.config.epochs or self._stopped_at is not None

    @property
    def genotype(self) -> Genotype:
        """The cell of the moment; after an early stop the cell of the epoch that it went back to."""
        alphas = self.alphas if self._stopped_at is None else self._history[self._stopped_at + 1]
        return self.costs.derive(alphas)

    def run(self, observer: Observer, stop: Callable[[], bool]) -> SearchResult:
        """Steps until the last epoch is done or `stop` says so; writes the run folder on the way."""
        try:
            rows = self._loop(observer if self.processes.first else Silent(), stop)
        except ProcessError as error:
            raise ProcessError(
                f"{error}; the last checkpoint is {self.folder.checkpoint_path}: go on, on any number of"
                f" processes, with `sgenas resume {self.folder.path}`"
            ) from None
        return SearchResult(self.folder.path, self.genotype, self.finished, rows)

    @property
    def work_done(self) -> float:
        """Forward passes, not steps: a step of the warm-up is many times cheaper than one of sge."""
        return self.cost.forward

    @property
    def work_total(self) -> float:
        return self.schedule.cost.forward

    def _count_step(self) -> None:
        self.cost += self.schedule.step_cost(self.step)
        super()._count_step()

    def _end_epoch(self, recorder: Recorder, observer: Observer) -> dict[str, Any]:
        val_loss, val_accuracy = self.evaluate()
        genotype = self.costs.derive(self.alphas)
        row = {
            "kind": "epoch",
            "epoch": self.epoch,
            "step": self.step,
            "inner_loss": self._mean("inner_loss"),
            "outer_loss": self._mean("outer_loss"),
            "weight_grad_norm": self._mean("weight_grad_norm"),
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            **self._signs(genotype, val_accuracy),
            **self.meter.read(),
            "forward": self.cost.forward,
            "backward": self.cost.backward,
            "inner_steps": self.cost.inner_steps,
            "images": round(self.cost.forward * self.config.data.batch_size),
            "cell": {name: str(cell) for name, cell in genotype.cells},
        }
        outside = self._ranges.look(
            max(alpha.abs().max().item() for alpha in self.alphas.values()),
            self._mean("weight_grad_norm"),
            self.config.weights.grad_clip,
            self._mean("direct_norm"),
            self._mean("indirect_norm"),
        )
        if outside:
            row["out_of_range"] = outside
        if self.config.on_nonfinite != "stop":
            row["nonfinite_steps"] = self._losses.in_epoch
        self._require_finite(row)
        self._history.append(trees.clone(self.alphas))
        if self.config.watch.early_stop:
            earliest = self.config.watch.early_stop_from - 1
            self._stopped_at = watch.early_stop(self._eigenvalues, earliest)
            if self._stopped_at is not None:
                row["stopped_early_with_epoch"] = self._stopped_at
                genotype = self.genotype
        self._losses.in_epoch = 0
        self._next_epoch()
        self.folder.write_arrays("alphas.npz", watch.alpha_arrays(self.space, self._history))
        self.folder.write_genotype(genotype)
        recorder.write(row)
        observer.row(row, genotype)
        return row

    def _signs(self, genotype: Genotype, val_accuracy: float) -> dict[str, Any]:
        """Of an epoch: how near to a collapse, and how good the cell of the moment truly is where known."""
        settings, number = self.config.watch, self.epoch + 1
        row: dict[str, Any] = {
            f"skips_{name}": count for name, count in watch.skip_connections(genotype).items()
        }
        row |= self.costs.of(genotype)
        if self.costs.penalty is not None:
            row["cost_penalty"] = self.costs.penalty(self.alphas).item()
        entropies = watch.edge_entropies(self.space.mixing(self.alphas))
        row |= {f"entropy_{name}": edges.mean().item() for name, edges in entropies.items()}
        if settings.derived_every and number % settings.derived_every == 0:
            _, row["derived_accuracy"] = self.evaluate(genotype)
            row["accuracy_gap"] = val_accuracy - row["derived_accuracy"]
        if settings.eigenvalue_every and number % settings.eigenvalue_every == 0:
            row["eigenvalue"] = self.eigenvalue()
            self._eigenvalues.append((self.epoch, row["eigenvalue"]))
        if self.table is not None:
            row |= watch.true_accuracies(self.table, genotype)
        return row

    # -- checkpoints --------------------------------------------------------------------------------------

    def _norms(self) -> dict[str, float]:
        norms = {"norm of the weights": self.state.weights, "norm of the alphas": self.alphas}
        return {name: trees.norm(tree).item() for name, tree in norms.items()}

    def _saved(self) -> None:
        self._losses.recent = 0
        if self.config.on_nonfinite == "rollback":
            self._kept = self._moment()

    def state_dict(self) -> dict[str, Any]:
        # not among what all processes have alike: each may be short of memory by itself
        return super().state_dict() | {"chunk": self._chunk}

    def _own_state(self) -> dict[str, Any]:
        own = self.cost, self.state, self.alphas, self.alpha_optimizer, self.directions, self._memory
        return {
            **point.to_dict(*own),
            "nonfinite_steps": self._losses.in_epoch,
            "inner_stream": self.inner_stream.state_dict(),
            "outer_stream": self.outer_stream.state_dict(),
            "history": self._history,
            "eigenvalues": [list(pair) for pair in self._eigenvalues],
            "stopped_at": self._stopped_at,
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        if isinstance(self.estimator, SGE):
            self.estimator = dataclasses.replace(self.estimator, chunk=state.get("chunk"))
        own = self.state, self.alphas, self.alpha_optimizer, self.directions, self.device
        self.cost, self.state, self._memory = point.go_to(state, *own)
        self.inner_stream.load_state_dict(state["inner_stream"])
        self.outer_stream.load_state_dict(state["outer_stream"])
        self._history = [same_shapes(self.alphas, self._to_device(alphas)) for alphas in state["history"]]
        self._eigenvalues = [(epoch, value) for epoch, value in state["eigenvalues"]]
        stopped = state["stopped_at"]
        if stopped is not None and whole_number(state, "stopped_at") > len(self._history) - 2:
            raise ValueError(f"stopped_at must be an epoch before the last, got {stopped}")
        self._stopped_at = stopped
        self._losses.in_epoch = state["nonfinite_steps"]
        self._kept = self._moment()
