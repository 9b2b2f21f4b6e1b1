"""The trainings of one hypergradient of a black box, and how estimators see them."""

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from sgenas import tree
from sgenas.bilevel.one_training import Outcome, Train, run_training, unpack
from sgenas.bilevel.problem import BilevelProblem, Trajectory
from sgenas.bilevel.worker_processes import Executor
from sgenas.errors import InvalidValueError, SgenasError, one_line
from sgenas.files import naming, replacing
from sgenas.fingerprint import describe_function
from sgenas.optim import InnerState
from sgenas.tree import Tree

BASE = "without perturbation"


class TrainingError(SgenasError):
    """A training of a black box raised, died, took too long, or returned unusable weights.

    The traceback of a training that raised is a note of the exception.
    """


class Ledger:
    """Trainings with one seed, by their alphas.

    Args:
        train, seed: The training and its seed.
        threads: CPU threads of each training; None for as many as there are.
        executor: Where they run; None for here, one after the other.
        folder: Where weights are kept; None for ``memory``.
        memory: Packed weights by key.
    """

    def __init__(
        self,
        train: Train,
        seed: int,
        threads: int | None,
        executor: Executor | None,
        folder: Path | None,
        memory: dict[str, bytes],
    ) -> None:
        self._train, self._seed, self._threads, self._executor = train, seed, threads, executor
        self._folder, self._memory, self._fingerprint = folder, memory, describe_function(train, strict=True)
        self._failed: dict[str, tuple[str, Outcome]] = {}
        self._used: dict[str, str] = {}
        self._like: Tree = None
        self.trained = 0

    def complete(self, points: Mapping[str, Tree]) -> None:
        """Runs the trainings of all points that lack one; failures are found by ``weights``.

        Args:
            points: Name for error messages -> alphas.
        """
        missing: dict[str, bytes] = {}
        for name, alphas in points.items():
            key = self._key(alphas)
            if key not in self._used:
                self._used[key] = name
                if not self._kept(key):
                    missing[key] = pickle.dumps(tree.to(alphas, torch.device("cpu")))
        self.trained += len(missing)
        arguments = {key: (self._train, alphas, self._seed, self._threads) for key, alphas in missing.items()}
        if self._executor is None:
            for key, each in arguments.items():
                self._keep(key, run_training(*each))
            return
        futures: dict[Any, str] = {}
        for key, each in arguments.items():
            try:
                futures[self._executor.submit(run_training, *each)] = key
            except Exception as error:
                # (a broken pool takes no more calls)
                self._keep(key, Outcome(None, f"could not be submitted: {type(error).__name__}: {one_line(error)}"))
        # each is kept as soon as it is there, for a resumed call
        ready: Any = as_completed(futures) if all(isinstance(each, Future) for each in futures) else futures
        for future in ready:
            try:
                outcome = future.result()
            except Exception as error:
                cause = f"failed: {type(error).__name__}: {one_line(error)}"
                outcome = Outcome(None, str(error) if isinstance(error, SgenasError) else cause)
            self._keep(futures[future], outcome)

    def weights(self, alphas: Tree) -> Tree:
        """The trained weights at ``alphas``, on the device of its first tensor.

        Raises:
            TrainingError: If the training failed, or its weights have other names or shapes than the first ones.
        """
        self.complete({"of an estimator": alphas})
        key = self._key(alphas)
        if key in self._failed:
            raise self._error(key, alphas)
        packed = self._memory[key] if self._folder is None else self._path(key).read_bytes()
        weights = tree.to(unpack(packed), tree.tensors(alphas)[0].device)
        if self._like is None:
            self._like = weights
        elif not tree.same_structure(weights, self._like):
            self._forget(key)
            self._failed[key] = self._used[key], Outcome(None, f"returned {_difference(weights, self._like)}")
            raise self._error(key, alphas)
        return weights

    def forget_others(self) -> None:
        """Deletes the weights of earlier calls; without a folder, all."""
        self._memory.clear()
        if self._folder is not None:
            for path in self._folder.glob("*.pt"):
                if path.stem not in self._used:
                    path.unlink(missing_ok=True)

    def _error(self, key: str, alphas: Tree) -> TrainingError:
        name, outcome = self._failed[key]
        values = [f"{value:.6g}" for value in tree.flatten(alphas).tolist()]
        shown = ", ".join(values if len(values) <= 10 else [*values[:9], "..."])
        count = len(self._used) - len(self._failed)
        where = "in memory" if self._folder is None else f"in {self._folder}"
        rest = f"; {len(self._failed) - 1} more failed" if len(self._failed) > 1 else ""
        kept = f"{count} finished and are kept {where}"
        error = TrainingError(f"the training {name} at alphas [{shown}] {outcome.cause}{rest}; {kept}")
        if outcome.traceback:
            error.add_note(outcome.traceback)
        return error

    def _key(self, alphas: Tree) -> str:
        digest = hashlib.sha256(f"{self._fingerprint}/{self._seed}/{tree.paths(alphas)}".encode())
        for tensor in tree.tensors(alphas):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            # (by way of bytes, since NumPy has no bfloat16)
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.pt"

    def _kept(self, key: str) -> bool:
        if self._folder is None:
            return key in self._memory
        try:
            unpack(self._path(key).read_bytes())
        except Exception:
            # (torch.load raises many kinds for a damaged file)
            return False
        return True

    def _keep(self, key: str, outcome: Outcome) -> None:
        if outcome.weights is None:
            self._failed[key] = self._used[key], outcome
        elif self._folder is None:
            self._memory[key] = outcome.weights
        else:
            with replacing(self._path(key)) as file:
                file.write(outcome.weights)

    def _forget(self, key: str) -> None:
        self._memory.pop(key, None)
        if self._folder is not None:
            with naming(self._path(key)):
                self._path(key).unlink(missing_ok=True)


def _difference(weights: Tree, like: Tree) -> str:
    got = {path: tuple(value.shape) for path, value in zip(tree.paths(weights), tree.tensors(weights), strict=True)}
    wanted = {path: tuple(value.shape) for path, value in zip(tree.paths(like), tree.tensors(like), strict=True)}
    for path in [*wanted, *got]:
        if got.get(path) != wanted.get(path):
            states = [f"shape {sizes[path]}" if path in sizes else "missing" for sizes in (got, wanted)]
            return f"other weights: {path!r} {states[0]}, and {states[1]} in the training {BASE}"
    return f"weights in another order or container than the training {BASE}"


def no_inner_loss(*_: Any) -> NoReturn:
    """The inner loss of a black box."""
    message = "this estimator needs an inner loss, which a black box lacks; use SGE or EvolutionStrategies"
    raise InvalidValueError(message, field="estimator")


@dataclass(frozen=True)
class Trainings(BilevelProblem):
    """A black box as estimators see it: ``run`` gives trained weights, and there is no inner loss."""

    ledger: Ledger | None = field(default=None, repr=False, compare=False)

    def run(
        self, state: InnerState, alphas: Tree, batches: Sequence[Any], *, keep: int = 0, graphs: bool = False
    ) -> Trajectory:
        """The trained weights at ``alphas``, whatever the state and the batches."""
        assert self.ledger is not None
        return Trajectory(InnerState(floating(self.ledger.weights(alphas))), (), ())

    def ends(self, points: Sequence[Tree]) -> Iterator[Tree | None]:
        """The trained weights at each point, None after a failure; missing ones are trained in parallel."""
        assert self.ledger is not None
        self.ledger.complete({f"of direction {i + 1} of {len(points)}": point for i, point in enumerate(points)})
        for point in points:
            try:
                yield floating(self.ledger.weights(point))
            except TrainingError:
                yield None


def floating(weights: Tree) -> Tree:
    """Whole numbers and truth values as float64, since estimators take derivatives with respect to all weights."""
    return tree.map(lambda value: value if value.is_floating_point() else value.double(), weights)
