"""Bilevel problems whose inner problem is solved by any training procedure."""

import contextlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sgenas import tree
from sgenas.bilevel.estimators import SGE, Estimator, HypergradientResult
from sgenas.bilevel.one_training import Train
from sgenas.bilevel.plain_kernels import PlainBatchNorm
from sgenas.bilevel.problem import Loss
from sgenas.bilevel.trainings import BASE, Ledger, Trainings, floating, no_inner_loss
from sgenas.bilevel.worker_processes import Executor, WorkerProcesses
from sgenas.errors import InvalidValueError, one_line, require
from sgenas.files import locked
from sgenas.optim import SGD, InnerState
from sgenas.random import seeded
from sgenas.tree import Tree


@dataclass
class BlackBoxProblem:
    """Outer variables of a training procedure that cannot be differentiated.

    SGE needs nothing of the inner problem but trained weights at perturbed alphas (Eq. 5 and 6 of the paper),
    and evolution strategies need the outer loss there. Each hypergradient takes Q + 1 trainings, which share a
    seed (common random numbers): with it, Python's, NumPy's and PyTorch's global generators are seeded before
    each training and each outer loss.

    Suited to 1 to 50 outer variables on which the weights depend smoothly at the scale of the smoothing mu. The
    relative MSE of the indirect gradient is then about (p + 1) / Q. A dependence with jumps (early stopping,
    sampling, trees) needs a larger mu. If the weights are no smooth function of alpha at any scale, use
    ``EvolutionStrategies`` or a search without derivatives.

    Args:
        train: ``train(alphas, seed)`` returns the trained weights: a module (its state dict is used), or nested
            dicts, lists and tuples of tensors and NumPy arrays, of the same names and shapes at all alphas.
            ``alphas`` is a copy on the CPU.
        outer_loss: L_val(weights, alphas, batch), 0-d; for SGE differentiable in the weights. ``weights`` is what
            ``train`` returned, with tensors for arrays and a state dict for a module, on the device of the alphas.
        workers: Trainings at a time, each in a process of its own. ``train`` must then be importable or picklable.
        executor: Runs trainings in place of ``workers``: a ``concurrent.futures`` executor, dask's ``Client``, or
            ``RayExecutor``.
        threads: CPU threads of each training. None: 1 with several workers, else all that PyTorch uses. The same
            number of threads gives the same numbers with any number of workers.
        timeout: Seconds after which a training fails and its process is killed; None for no limit. Not with an
            executor.
        run_dir: Directory for trained weights. The same call then resumes with those that have finished; a
            completed call deletes those of earlier calls. They are recognized by alphas, seed, and the code, constants
            and arguments of ``train``, not by files that it reads. None: weights are held in
            memory.

    Example:
        >>> problem = BlackBoxProblem(train, outer_loss, workers=4, run_dir="runs/mixture")
        >>> result = problem.hypergradient(alphas, validation, estimator=SGE(8, smoothing=0.1), seed=step)
        >>> result.backward()
    """

    train: Train
    outer_loss: Loss
    workers: int = 1
    executor: Executor | None = None
    threads: int | None = None
    timeout: float | None = None
    run_dir: str | Path | None = None
    _own: WorkerProcesses | None = field(default=None, init=False, repr=False)
    _memory: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require(callable(self.train), "BlackBoxProblem.train", "a function (alphas, seed) -> weights", self.train)
        good = isinstance(self.workers, int) and self.workers >= 1
        require(good, "BlackBoxProblem.workers", "a whole number >= 1", self.workers)
        require(self.threads is None or self.threads >= 1, "BlackBoxProblem.threads", "None or >= 1", self.threads)
        alone = self.executor is None or self.workers == 1
        require(alone, "BlackBoxProblem.workers", "1 with an executor", self.workers)
        good = self.timeout is None or (self.timeout > 0 and self.executor is None)
        require(good, "BlackBoxProblem.timeout", "None, or > 0 without an executor", self.timeout)
        if self._processes():
            try:
                pickle.dumps(self.train)
            except Exception as error:
                raise InvalidValueError(
                    f"BlackBoxProblem.train must be picklable for worker processes, such as a function of a module "
                    f"({one_line(error)})",
                    field="BlackBoxProblem.train",
                ) from None

    def hypergradient(
        self,
        alphas: Tree,
        outer_batch: Any = None,
        *,
        estimator: Estimator | None = None,
        seed: int = 0,
        training_seed: int | None = None,
    ) -> HypergradientResult:
        """Trains at ``alphas`` and at perturbed ones, and estimates the hypergradient.

        ``result.state.weights`` are the weights trained at ``alphas``, ``result.diagnostics["trainings"]`` counts
        the trainings that this call ran.

        Args:
            alphas: The outer variables, a tree of floating-point tensors.
            outer_batch: Passed to the outer loss.
            estimator: ``SGE``, ``EvolutionStrategies`` or ``FirstOrder``; ``SGE()`` if None.
            seed: Seed of the random directions.
            training_seed: Seed of all trainings of this call; ``seed`` if None.

        Raises:
            InvalidValueError: If an argument is unsuitable, or the estimator needs an inner loss.
            TrainingError: If a training failed; the others have then finished, and are kept for the next call.
            DivergenceError: If an outer loss or a projection is NaN or infinite.
        """
        chosen = SGE() if estimator is None else estimator
        seeds = seed, seed if training_seed is None else training_seed
        for name, value in zip(("seed", "training_seed"), seeds, strict=True):
            require(isinstance(value, int) and 0 <= value < 2**63, name, "a whole number from 0 to 2^63 - 1", value)
        require(tree.size(alphas) >= 1, "alphas", "at least one number", alphas)
        problem = Trainings(no_inner_loss, self.outer_loss, SGD(lr=1.0))
        # (there are no weights yet)
        problem.check(InnerState(alphas), alphas, seeds)
        start = tree.detach(alphas)
        others = chosen.trained_points(start, torch.Generator().manual_seed(seed))
        if others is None:
            no_inner_loss()
        points = {BASE: start} | {f"of direction {i + 1} of {len(others)}": each for i, each in enumerate(others)}
        with self._folder() as folder, self._executor() as executor:
            threads = 1 if self.threads is None and self.workers > 1 else self.threads
            ledger = Ledger(self.train, seeds[1], threads, executor, folder, self._memory)
            ledger.complete(points)
            weights = ledger.weights(start)
            loss = _outer_loss(self.outer_loss, weights, seeds[1])
            problem = replace(problem, outer_loss=loss, ledger=ledger)
            state = InnerState(floating(weights))
            result = chosen(problem, state, alphas, [seeds[1]], outer_batch, seed=seed if chosen.draws else None)
            ledger.forget_others()
        diagnostics = result.diagnostics | {"trainings": torch.tensor(ledger.trained)}
        return replace(result, state=InnerState(weights), diagnostics=diagnostics)

    def close(self) -> None:
        """Ends the worker processes; the next call starts others."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _processes(self) -> bool:
        return self.executor is None and (self.workers > 1 or self.timeout is not None)

    @contextlib.contextmanager
    def _executor(self) -> Iterator[Executor | None]:
        if self._processes() and self._own is None:
            self._own = WorkerProcesses(self.workers, self.timeout)
        try:
            yield self._own or self.executor
        except (KeyboardInterrupt, SystemExit):
            # an interrupt must not wait for trainings
            self.close()
            raise

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path | None]:
        if self.run_dir is None:
            yield None
            return
        folder = Path(self.run_dir) / "trainings"
        with locked(folder / "trainings.lock", f"the black box in {self.run_dir}"):
            yield folder


def _outer_loss(outer_loss: Loss, like: Tree, seed: int) -> Loss:
    """The loss of weights in the dtypes of ``like``."""

    def loss(weights: Tree, alphas: Tree, batch: Any) -> Tensor:
        with seeded(seed), PlainBatchNorm():
            return outer_loss(tree.map(lambda value, other: value.to(other.dtype), weights, like), alphas, batch)

    return loss
