"""`sgenas.search`: one function for every space, loss, estimator and optimizer."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from sgenas import losses
from sgenas.bilevel import SGE, Estimator
from sgenas.bilevel.cuda_graphs import replays_on
from sgenas.bilevel.estimators import ESTIMATORS
from sgenas.device import cpu_threads
from sgenas.errors import require, require_counts, require_kinds
from sgenas.losses import Loss
from sgenas.methods import EPOCHS, METHODS, Method
from sgenas.optim import SGD, Adam, InnerOptimizer, require_optimizers
from sgenas.random import generator
from sgenas.run.batches import Stream, has_batch_norm, require_separate
from sgenas.run.callbacks import Callback
from sgenas.run.distributed import Processes, joined
from sgenas.run.faults import explaining_single_rows
from sgenas.run.loggers import Logger
from sgenas.run.run_dir import RunDir, environment
from sgenas.searching.alpha_noise import AlphaNoise
from sgenas.searching.arch import ArchOptimizer
from sgenas.searching.callbacks.collapse import EarlyStopping
from sgenas.searching.callbacks.guards import RangeGuard
from sgenas.searching.describe import describe
from sgenas.searching.loop import Search
from sgenas.searching.objectives import Objectives, require_precision
from sgenas.searching.results import Calibration, SearchResult
from sgenas.searching.schedules import Cosine, Schedule
from sgenas.searching.second_derivatives import require_second_derivatives
from sgenas.searching.selection import Selection
from sgenas.searching.strategies import selection_of
from sgenas.spaces.base import SearchSpace
from sgenas.spaces.costs import Budget
from sgenas.spaces.discretization import Discretization
from sgenas.spaces.modules import ModuleSpace
from sgenas.spaces.regularizers import Regularizer
from sgenas.spaces.relaxations import Relaxation, SinglePath

WEIGHT_OPTIMIZER = SGD(lr=0.025, momentum=0.9, weight_decay=3e-4, grad_clip=5.0)
ARCH_OPTIMIZER = Adam(lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
"""DARTS' settings (arXiv:1806.09055), the defaults of every search."""


def search(
    space: SearchSpace,
    train_data: Any,
    val_data: Any,
    loss: Loss = losses.cross_entropy,
    *,
    method: str | Method = "darts",
    relaxation: Relaxation | None = None,
    regularizer: Regularizer | None = None,
    discretization: Discretization | None = None,
    estimator: str | Estimator = "first-order",
    weight_optimizer: InnerOptimizer | None = None,
    schedule: Schedule | None = None,
    arch_optimizer: ArchOptimizer | None = None,
    trajectory_optimizer: InnerOptimizer | None = None,
    alpha_noise: float = 0.0,
    strategy: str = "gradient",
    selection: str | Selection | None = None,
    epochs: int | None = None,
    warmup_epochs: int | None = None,
    inner_steps: int = 1,
    alpha_every: int = 1,
    batch_size: int | None = None,
    budget: Budget | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = (),
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: bool | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    precision: str = "ieee",
    graphs: bool = True,
    shards: int = 1,
    log_every: int | None = None,
    checkpoint_every: int | None = 100,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    processes: Processes | None = None,
    record: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> SearchResult:
    """Searches for an architecture: trains supernet weights and architecture parameters (alphas) in turn.

    Each step takes N inner steps of the weights on N batches of ``train_data`` and one step of the alphas
    along the estimator's hypergradient of the loss on a batch of ``val_data`` (Algorithm 1 for SGE).

    Args:
        space: What is searched: `sgenas.spaces.darts(...)`, `nasbench201(...)`, `macro(...)`, or `ModuleSpace(model)`.
        train_data: Trains the weights: a Dataset, a DataLoader, or another iterable of batches per epoch.
        val_data: Trains the alphas; starts again whenever it ends.
        loss: loss(model, batch) -> 0-d tensor, pure. The default is for batches (inputs, labels).
        method: Name of a registered method, or a `Method`: relaxation, regularizer, discretization and the
            settings of its source, used where the arguments below are None.
        relaxation: How alphas become mixing weights; None for the one given to the space, else the method's.
        regularizer: Added to the outer loss; None for the method's.
        discretization: How the architecture is derived; None for the one given to the space, else the method's.
        estimator: Name of a registered estimator, or an `Estimator`.
        weight_optimizer: Optimizer of the weights.
        schedule: Learning rate of the weights by epoch; None for a cosine down to the fraction of the rate at which
            the method's source ends, 1 / 25 in DARTS.
        arch_optimizer: Optimizer of the alphas: one of `sgenas.optim`, or a function that makes a torch
            optimizer from a list of tensors (``partial(torch.optim.Adam, lr=3e-4)``).
        trajectory_optimizer: If given, the estimator's inner steps use it and are discarded; the weights
            then train separately, on the same batches.
        alpha_noise: Half width of the uniform noise on the architecture with which the weights train (SDARTS-RS),
            at the end of the search, see `AlphaNoise`; 0 for none.
        strategy: ``"gradient"``; ``"random"`` or ``"evolution"`` train no alphas but the weights of one random
            architecture per step, and measure architectures with them at the end.
        selection: How the final architecture is chosen: name of a registered selection, or a `Selection`; None for
            the strategy's. It measures as the `Evaluation` among the callbacks, else by the loss on ``val_data``.
        epochs: Passes through ``train_data``; None for the method's, else 50.
        warmup_epochs: First epochs, in which the alphas do not move.
        inner_steps: N, inner steps per alpha step. The batches left over at the end of an epoch train the
            weights alone.
        alpha_every: Steps between two alpha steps.
        batch_size: Batch size for Datasets.
        budget: Limits on what the derived network may cost, or a penalty on its expected cost.
        callbacks: See `sgenas.callbacks`.
        loggers: Names (``"tensorboard"``, ``"wandb"``) or `Logger` objects, in addition to metrics.jsonl.
        run_dir: Directory for configuration, metrics, checkpoints and results. If it holds this search (the
            same settings, data, loss and model), the search resumes exactly where its checkpoint stands.
        overwrite: Replace a run that is in ``run_dir``.
        resume: True requires a run in ``run_dir``, and takes one whose model started from other weights; False
            refuses one; None takes either.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: CPU threads; None leaves PyTorch's setting.
        seed: Seed of everything that is drawn here.
        deterministic: Use deterministic algorithms only (matters on a GPU).
        precision: ``"ieee"`` (float32); with the first-order estimator also ``"tf32"`` (on a GPU TF32 in convolutions
            and products of matrices) or ``"bf16"`` (bfloat16 for the layers that accept it).
        graphs: On a GPU, record passes of fixed shapes as CUDA graphs and replay them. The first
            of a kind that cannot be recorded gives a `GraphWarning`; it runs as usual.
        shards: Equal parts per batch; the losses are means over them, and processes share them.
        log_every: Steps between two logged steps; None for 10, or more in long searches.
        checkpoint_every: Steps between two checkpoints, in addition to one per epoch; None for those alone.
        progress: Show progress on standard error.
        stop: Asked after each step; True writes a checkpoint and returns an unfinished result.
        processes: Processes of this search; None for those that torchrun has started.
        record: Plain data for config.json; None for a description of the arguments.
        facts: Additional entries of ``environment`` in config.json.

    Returns:
        The architecture, alphas, weights, history and cost.

    Raises:
        InvalidValueError: If an argument is out of range, or the loss is not pure.
        DataError: If the data is empty.
        RunDirError: If ``run_dir`` holds something else, is in use, or cannot be written.
        CheckpointError: If its checkpoint is damaged.
        DivergenceError: If a loss or gradient becomes NaN or infinite.

    Example:
        >>> space = sgenas.spaces.darts(channels=8, layers=3, num_classes=10)
        >>> result = sgenas.search(space, train_set, val_set, estimator=sgenas.SGE(num_directions=10), epochs=20)
        >>> network = result.derive(channels=36, layers=20)
    """
    row = METHODS.get(method) if isinstance(method, str) else method
    chosen = ESTIMATORS.get(estimator)() if isinstance(estimator, str) else estimator
    require_kinds(
        {
            "estimator": (chosen, Estimator),
            "relaxation": (relaxation, Relaxation),
            "discretization": (discretization, Discretization),
            "regularizer": (regularizer, Regularizer),
            "budget": (budget, Budget),
        }
    )
    require_optimizers({"weight_optimizer": weight_optimizer, "trajectory_optimizer": trajectory_optimizer})
    defaults = _source_settings(row)
    epochs = defaults["epochs"] if epochs is None else epochs
    counts = {"epochs": epochs, "inner_steps": inner_steps, "alpha_every": alpha_every, "shards": shards}
    optional = {"batch_size": batch_size, "threads": threads, "log_every": log_every}
    require_counts({**counts, **optional, "checkpoint_every": checkpoint_every})
    chosen.kept_steps(inner_steps)
    require(0 <= seed < 2**63, "seed", "from 0 to 2^63 - 1", seed)
    require_precision(precision, chosen)
    noise = AlphaNoise(alpha_noise)
    unused = {
        "estimator": chosen,
        "relaxation": relaxation or space.given.get("relaxation"),
        "regularizer": regularizer,
        "arch_optimizer": None if arch_optimizer == ARCH_OPTIMIZER else arch_optimizer,
        "trajectory_optimizer": trajectory_optimizer,
        "alpha_noise": alpha_noise,
        "warmup_epochs": warmup_epochs,
        "inner_steps": inner_steps,
        "alpha_every": alpha_every,
        "budget.penalty": None if budget is None else budget.penalty,
    }
    stops = any(isinstance(each, EarlyStopping) for each in callbacks)
    choice = selection_of(strategy, selection, row, unused, early_stop=stops)
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(threads))
        processes = stack.enter_context(joined(given=processes))
        where = processes.device(device)
        layout = processes.layout(shards)
        require(
            layout.groups == 1 or isinstance(chosen, SGE),
            "shards",
            f"a multiple of the {processes.size} processes with {type(chosen).__name__}, which cannot share directions",
            shards,
        )
        relaxation = relaxation if strategy == "gradient" else SinglePath()
        space = row.apply(space.to(where), relaxation=relaxation, discretization=discretization)
        choice.check(space)
        size = batch_size or defaults["batch_size"]
        drop = {"drop_single_rows": isinstance(space, ModuleSpace) and has_batch_norm(space.modules())}
        train = Stream(train_data, "train_data", size, generator(seed, "inner"), where, **drop)
        val = Stream(val_data, "val_data", size, generator(seed, "outer"), where, **drop)
        require_separate(train, val)
        stack.enter_context(explaining_single_rows())
        optimizer = weight_optimizer or defaults["weight_optimizer"]
        lr = getattr(optimizer, "lr", None)
        require(schedule is None or lr is not None, "schedule", "None for an optimizer without lr", schedule)
        schedule = schedule or Cosine(defaults["final_share"] * (lr or 0.0))
        rises = isinstance(schedule, Cosine) and schedule.final > (lr or 0.0)
        require(not rises, "schedule", f"a cosine to at most lr {lr}", schedule)
        replays = replays_on(where, graphs)
        if replays is not None:
            stack.callback(replays.forget)
        objectives = Objectives(space, loss, precision, where, layout.shards, layout.share, replays=replays)
        costs = None if budget is None or not budget.quantities else space.cost_model(budget, _inputs(train.peek()))
        guarded = any(isinstance(each, RangeGuard) for each in callbacks)
        guards = () if guarded else (RangeGuard(getattr(optimizer, "grad_clip", None)),)
        directory = RunDir(run_dir, writer=processes.first)
        run = Search(
            space,
            train,
            val,
            objectives,
            estimator=chosen,
            weight_optimizer=optimizer,
            schedule=schedule,
            arch_optimizer=arch_optimizer or defaults["arch_optimizer"],
            trajectory_optimizer=trajectory_optimizer,
            regularizer=regularizer or row.regularizer,
            alpha_noise=noise,
            costs=costs,
            selection=choice,
            new_val=lambda: Stream(val_data, "val_data", size, generator(seed, "selection"), where, **drop),
            warmup_epochs=defaults["warmup_epochs"] if warmup_epochs is None else warmup_epochs,
            alpha_every=alpha_every,
            inner_steps=inner_steps,
            seed=seed,
            fingerprint=(facts or {}).get("fingerprint", ""),
            epochs=epochs,
            run_dir=directory,
            device=where,
            callbacks=[*callbacks, *guards],
            loggers=loggers,
            progress=progress,
            processes=processes,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            deterministic=deterministic,
            precision=precision,
        )
        with processes.agreeing():
            stack.enter_context(directory.locked())
            if record is None and directory.exists_on_disk:
                record = describe(
                    run,
                    row,
                    data={"train_data": train_data, "val_data": val_data},
                    arch_optimizer=arch_optimizer or defaults["arch_optimizer"],
                    budget=budget,
                    settings={"batch_size": size, "precision": precision, "shards": shards, "strategy": strategy},
                )
            found = environment(where) | run.facts() | (facts or {})
            if directory.begin("search", record, found, overwrite=overwrite, resume=resume):
                run.load_state_dict(directory.read_checkpoint())
            elif isinstance(space, ModuleSpace):
                checked = (train.peek(), loss, run.state.weights, run.alphas)
                space.verify(*checked)
                require_second_derivatives(space, *checked, chosen)
        run.run(stop)
    return SearchResult(
        space,
        run.architecture,
        run.final_alphas,
        run.state.weights,
        tuple(run.history),
        run.cost,
        run.finished,
        None if run_dir is None else directory.path,
        Calibration(loss, lambda: Stream(train_data, "train_data", size, generator(0, "calibration"), where, **drop)),
    )


def _inputs(batch: Any) -> Any:
    """The model's argument in a batch (inputs, labels, ...), cut to one example: costs are per example."""
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[:1], inputs)


def _source_settings(method: Method) -> dict[str, Any]:
    """The settings of the method's source, on top of DARTS'."""
    settings = dict(method.settings)
    weights = {
        name.partition(".")[2]: value for name, value in settings.items() if name.startswith("weight_optimizer.")
    }
    alphas = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith("arch_optimizer.")}
    weight_optimizer = replace(WEIGHT_OPTIMIZER, **weights)
    return {
        "weight_optimizer": weight_optimizer,
        "arch_optimizer": replace(ARCH_OPTIMIZER, **alphas),
        "final_share": settings.get("lr_min", Cosine().final) / weight_optimizer.lr,
        "batch_size": settings.get("batch_size", 64),
        "warmup_epochs": settings.get("warmup_epochs", 0),
        "epochs": settings.get("epochs", EPOCHS),
    }
