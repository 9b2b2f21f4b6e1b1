"""`sgenas.train`: trains any module, a derived network for example."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from sgenas.device import cpu_threads
from sgenas.digests import digest, without_addresses
from sgenas.errors import require, require_counts
from sgenas.fingerprint import describe_data, describe_function, describe_model
from sgenas.losses import Loss
from sgenas.optim import SGD
from sgenas.random import generator
from sgenas.run.batches import Stream, has_batch_norm, require_batches
from sgenas.run.callbacks import Callback
from sgenas.run.distributed import Processes, joined
from sgenas.run.faults import explaining_single_rows
from sgenas.run.loggers import Logger
from sgenas.run.run_dir import RunDir, environment
from sgenas.spaces.genotype import Genotype
from sgenas.training.loop import Training, TrainOptimizer
from sgenas.training.objectives import AnyLoss, Arithmetic, Classification
from sgenas.training.schedules import WarmupCosine

OPTIMIZER = SGD(lr=0.025, momentum=0.9, weight_decay=3e-4, grad_clip=5.0)
"""DARTS' settings for training a derived cell (arXiv:1806.09055)."""


@dataclass(frozen=True)
class TrainResult:
    """What a training came to.

    Attributes:
        path: The run directory, if there is one.
        genotype: The cells of the network, if it was built from a genotype.
        network: The trained network (the moving average of its weights if there is one).
        history: One row per epoch, as in metrics.jsonl; ``test_accuracy`` is a fraction.
        finished: False if it was stopped and can be resumed.
    """

    path: Path | None
    genotype: Genotype | None
    network: nn.Module
    history: tuple[dict[str, Any], ...]
    finished: bool


def train(
    network: nn.Module,
    train_data: Any,
    test_data: Any = None,
    loss: Loss | None = None,
    *,
    epochs: int,
    batch_size: int = 96,
    optimizer: TrainOptimizer = OPTIMIZER,
    schedule: WarmupCosine | None = None,
    label_smoothing: float = 0.0,
    auxiliary_weight: float = 0.4,
    class_weights: Tensor | None = None,
    drop_path: float = 0.0,
    ema: float | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = (),
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: bool | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    precision: str = "tf32",
    channels_last: bool = False,
    shards: int = 1,
    log_every: int | None = None,
    checkpoint_every: int | None = 500,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    processes: Processes | None = None,
    record: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    genotype: Genotype | None = None,
) -> TrainResult:
    """Trains a network from its present weights, in place, and tests it after each epoch.

    Args:
        network: Any module: what `SearchResult.derive()` returns, or your own.
        train_data: A Dataset, a DataLoader, or another iterable of batches per epoch. Give a shuffling
            DataLoader a ``generator``, so that a training resumes exactly.
        test_data: The same for tests, or a function that returns the batches of one pass; None for none.
        loss: loss(model, batch) -> 0-d tensor. None for classifiers: cross-entropy of batches (inputs,
            labels), with accuracies; the next three arguments belong to it.
        epochs: Passes through ``train_data``.
        batch_size: Batch size for Datasets.
        optimizer: SGD, Adam or AdamW of `sgenas.optim`, or a function that makes a torch optimizer from a
            list of parameters (``partial(torch.optim.RMSprop, lr=1e-3)``).
        schedule: Learning-rate schedule; None for a cosine from the optimizer's rate to 0, by epoch.
        label_smoothing: Share of the target that is spread evenly over all classes.
        auxiliary_weight: Weight of the second output's loss, for networks that return a pair in training.
        class_weights: float32 (classes,), weight of each class in the training loss.
        drop_path: Probability of drop path at the end, rising by epoch from 0; for networks of cells.
        ema: Decay rate of an exponential moving average of the weights, which is then tested and returned.
        callbacks: See `sgenas.run.callbacks`.
        loggers: Names (``"tensorboard"``, ``"wandb"``) or `Logger` objects, in addition to metrics.jsonl.
        run_dir: Directory for configuration, metrics and checkpoints. If it holds this training, the training
            resumes exactly where its checkpoint stands.
        overwrite: Replace a run that is in ``run_dir``.
        resume: True requires a run in ``run_dir``, False refuses one; None takes either.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: CPU threads; None leaves PyTorch's setting.
        seed: Seed of everything that is drawn here: order of Datasets, drop path, dropout.
        deterministic: Use deterministic algorithms only (matters on a GPU).
        precision: ``"ieee"`` (float32), ``"tf32"`` (on a GPU TF32 in convolutions and products of matrices), ``"bf16"``
            (bfloat16 for the layers that accept it), or ``"auto"``: bf16 on a GPU and ieee on a CPU.
        channels_last: Channels-last weights and images: faster for convolutions, but a network that calls
            ``view`` on a feature map does not accept it.
        shards: Equal parts per batch. The loss is their mean, each part has its own batch statistics, and the processes
            that torchrun starts share them. On one process, a way to train with batches that its memory cannot hold.
        log_every: Steps between two logged steps; None for 10, or more in long trainings.
        checkpoint_every: Steps between two checkpoints, in addition to one per epoch; None for those alone.
        progress: Show progress on standard error.
        stop: Asked after each step; True writes a checkpoint and returns an unfinished result.
        processes: Processes of this training; None for those that torchrun has started.
        record: Plain data for config.json; None for a description of the arguments.
        facts: Additional entries of ``environment`` in config.json; ``fingerprint`` identifies the data.
        genotype: The cells of the network, for the run directory and the result.

    Raises:
        InvalidValueError: If an argument is out of range.
        DataError: If the data is empty.
        RunDirError: If ``run_dir`` holds something else, is in use, or cannot be written.
        CheckpointError: If its checkpoint is damaged.
        DivergenceError: If the loss becomes NaN or infinite.
        ProcessError: If another process ends, does not answer, or comes to other weights.

    Example:
        >>> network = search_result.derive(channels=36, layers=20)
        >>> result = sgenas.train(network, train_set, test_set, epochs=100, run_dir="runs/trained")
        >>> result.history[-1]["test_accuracy"]
    """
    counts = {"epochs": epochs, "batch_size": batch_size, "shards": shards}
    require_counts({**counts, "threads": threads, "log_every": log_every, "checkpoint_every": checkpoint_every})
    require(0 <= seed < 2**63, "seed", "from 0 to 2^63 - 1", seed)
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(threads))
        processes = stack.enter_context(joined(given=processes))
        where, layout = processes.device(device), processes.layout(shards)
        require(layout.groups == 1, "shards", f"a multiple of the {processes.size} processes", shards)
        stack.enter_context(explaining_single_rows())
        if class_weights is not None:
            class_weights = class_weights.to(where)
        classification = Classification(label_smoothing, auxiliary_weight, class_weights)
        schedule = schedule or WarmupCosine()
        directory = RunDir(run_dir, writer=processes.first)
        run = Training(
            network,
            Stream(
                train_data,
                "train_data",
                batch_size,
                generator(seed, "training batches"),
                where,
                drop_single_rows=has_batch_norm(network.modules()),
            ),
            None if test_data is None else _passes(test_data, batch_size, seed),
            classification if loss is None else AnyLoss(loss),
            Arithmetic(where, precision, channels_last),
            optimizer=optimizer,
            schedule=schedule,
            drop_path=drop_path,
            ema=ema,
            seed=seed,
            fingerprint=(facts or {}).get("fingerprint", ""),
            shards=layout.shards,
            epochs=epochs,
            run_dir=directory,
            processes=processes,
            callbacks=callbacks,
            loggers=loggers,
            progress=progress,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            deterministic=deterministic,
        )
        if record is None and directory.exists_on_disk:
            described = {
                "network": type(network).__name__,
                "batch_size": batch_size,
                "loss": loss or (label_smoothing, auxiliary_weight),
                "optimizer": optimizer,
                "schedule": schedule,
                "epochs": epochs,
                "seed": seed,
                "drop_path": drop_path,
                "ema": ema,
                "precision": precision,
                "shards": shards,
            }
            record = {
                "source": "python",
                **{name: _plain(value) for name, value in described.items()},
                "model": describe_model(network, weights=False),
                "train_data": describe_data(train_data),
                "test_data": describe_function(test_data) if callable(test_data) else describe_data(test_data),
                "code": digest([loss, optimizer, class_weights]),
            }
        about = environment(where) | {"weights": sum(each.numel() for each in network.parameters())}
        about |= {"processes": processes.size} | (facts or {})
        with processes.agreeing():
            stack.enter_context(directory.locked())
            if directory.begin("training", record, about, overwrite=overwrite, resume=resume):
                run.load_state_dict(directory.read_checkpoint())
            elif genotype is not None:
                directory.write_text("genotype.json", genotype.to_json())
        run.run(stop)
    return TrainResult(directory.path if run_dir else None, genotype, run.result, tuple(run.history), run.finished)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else without_addresses(repr(value))


def _passes(source: Any, batch_size: int, seed: int) -> Callable[[], Iterable[Any]]:
    """A function that gives the test batches of one pass."""
    if callable(source):
        return source
    require_batches(source, "test_data")
    rows = hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, list | tuple)
    if rows or isinstance(source, IterableDataset):
        # a loader without a generator draws its workers' seed from the global one
        return lambda: DataLoader(source, batch_size, generator=generator(seed, "test batches"))
    again = isinstance(source, Iterable) and not isinstance(source, Iterator)
    require(again, "test_data", "a Dataset, or iterable once per epoch", type(source).__name__)
    return lambda: source
