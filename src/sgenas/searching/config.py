"""Configuration of a search on images: what the command line, config.json and `table1` are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from sgenas import data, methods, tree
from sgenas.bilevel import SGE, Estimator, EvolutionStrategies, FirstOrder
from sgenas.data import ImageData, SearchImageSettings
from sgenas.device import PRECISIONS, fastest_threads
from sgenas.errors import require, require_choice, require_counts
from sgenas.fields import option
from sgenas.methods import METHODS
from sgenas.optim import SGD, InnerOptimizer
from sgenas.random import generator
from sgenas.run.callbacks import Callback
from sgenas.run.config import Configuration, merged, to_plain
from sgenas.run.distributed import Processes, joined
from sgenas.run.run_dir import RunDir
from sgenas.searching import api
from sgenas.searching.alpha_noise import AlphaNoise
from sgenas.searching.callbacks.collapse import require_can_stop
from sgenas.searching.callbacks.guards import POLICIES
from sgenas.searching.images import ImageParts
from sgenas.searching.loop import Search
from sgenas.searching.objectives import require_precision
from sgenas.searching.results import SearchResult
from sgenas.searching.schedules import Cosine
from sgenas.searching.selection import Selection
from sgenas.searching.strategies import STRATEGIES, UNUSED, selection_of
from sgenas.spaces import TABLES, DartsSettings, Discretization, Regularizer, Relaxation
from sgenas.spaces.cell_space import CellSettings
from sgenas.spaces.costs import Budget

Found = TypeVar("Found")

PASSED_ON = (
    *("strategy", "method", "epochs", "warmup_epochs", "inner_steps", "alpha_every", "alpha_noise"),
    *("seed", "device", "precision", "graphs", "deterministic", "log_every", "checkpoint_every"),
    *("estimator", "weight_optimizer", "arch_optimizer", "relaxation", "regularizer", "discretization", "selection"),
    "budget",
)
"""Settings that are arguments of `sgenas.search` of the same name."""


@dataclass(frozen=True)
class SearchConfig(Configuration):
    """A search for a cell on images.

    Args:
        strategy: What is searched with: gradient, the alphas of a method; or random or evolution, which train the
            supernet on one random architecture per step and then measure candidates with its weights.
        method: Search method.
        epochs: Passes through the images that train the weights.
        warmup_epochs: First epochs, in which only the weights train.
        inner_steps: N, steps of the weights per step of the alphas.
        alpha_every: Steps between two that move the alphas.
        lr_min: Learning rate of the weights that the cosine schedule falls to.
        trajectory_lr: If set, the estimator takes plain gradient steps of this size that are discarded, and
            the weights train separately, as in the paper; if None its own steps train the weights.
        alpha_noise: Half width of the uniform noise on the architecture with which the weights train, at the end of
            the search (SDARTS-RS: 0.3); 0 for none.
        seed: The same seed gives the same run on the same machine and number of threads.
        device: auto (a GPU if there is one), cpu, cuda or cuda:1.
        threads: CPU threads; if None one or all, whichever is faster at the start.
        precision: ieee (float32); with the first-order estimator also tf32 (on a GPU TF32 in convolutions and products
            of matrices) or bf16 (bfloat16 for the layers that accept it).
        graphs: On a GPU, record passes of fixed shapes as CUDA graphs and replay them.
        deterministic: Only deterministic operations; matters on a GPU.
        on_nonfinite: If a loss or gradient is NaN or infinite: stop, skip the step, or roll back to the last
            checkpoint and continue with the next batches.
        log_every: Steps between two logged steps; if None 10, or more in long searches.
        checkpoint_every: Steps between two checkpoints; there is one per epoch too.
        logger: Also log to tensorboard or wandb.
        derived_every: Epochs between two measurements of the derived cell with the supernet's weights; 0 for
            never.
        eigenvalue_every: Epochs between two measurements of the largest eigenvalue of the outer loss' Hessian
            in the alphas, at 40 to 90 passes each; 0 for never.
        early_stop: Stop when that eigenvalue rises too fast, and take the cell from before.
        early_stop_from: First epoch, counted from 1, whose cell an early stop may take.
        table: File of tabulated accuracies, logged for the derived cell: CSV (nasbench201) or JSON
            (nasbench-macro).
        data: Images.
        space: Search space.
        estimator: Hypergradient estimator.
        weight_optimizer: Optimizer of the weights.
        arch_optimizer: Optimizer of the alphas.
        relaxation: How alphas become mixing weights; the method's if None.
        regularizer: Added to the outer loss; the method's if None.
        discretization: How the cell is derived; the method's if None.
        selection: How the final architecture is chosen; the strategy's if None.
        budget: Limits on what the derived network may cost.
    """

    strategy: str = option("gradient", choices=STRATEGIES)
    method: str = "darts"
    epochs: int = 50
    warmup_epochs: int = 0
    inner_steps: int = 1
    alpha_every: int = 1
    lr_min: float = 0.001
    trajectory_lr: float | None = None
    alpha_noise: float = 0.0
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str = option("ieee", choices=PRECISIONS)
    graphs: bool = True
    deterministic: bool = False
    on_nonfinite: str = option("stop", choices=POLICIES)
    log_every: int | None = None
    checkpoint_every: int = 100
    logger: str | None = None
    derived_every: int = 1
    eigenvalue_every: int = 0
    early_stop: bool = False
    early_stop_from: int = 10
    table: str | None = None
    data: SearchImageSettings = field(default_factory=SearchImageSettings)
    space: CellSettings = field(default_factory=DartsSettings)
    estimator: Estimator = field(default_factory=FirstOrder)
    weight_optimizer: InnerOptimizer = api.WEIGHT_OPTIMIZER
    arch_optimizer: InnerOptimizer = api.ARCH_OPTIMIZER
    relaxation: Relaxation | None = None
    regularizer: Regularizer | None = None
    discretization: Discretization | None = None
    selection: Selection | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in UNUSED if hasattr(self, name)}
        own, usual = (to_plain(each) for each in (self.arch_optimizer, api.ARCH_OPTIMIZER))
        del values["arch_optimizer"]
        values |= {f"arch_optimizer.{name}": value for name, value in own.items() if value != usual.get(name)}
        values["budget.penalty"] = self.budget.penalty
        selection_of(self.strategy, self.selection, METHODS.get(self.method), values, early_stop=self.early_stop)
        counts = ("epochs", "inner_steps", "alpha_every", "checkpoint_every", "early_stop_from", "log_every", "threads")
        require_counts({name: getattr(self, name) for name in counts})
        self.estimator.kept_steps(self.inner_steps)
        for name in ("derived_every", "eigenvalue_every"):
            require(getattr(self, name) >= 0, name, ">= 0", getattr(self, name))
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed)
        limit = f"from 0 to epochs - 1 = {self.epochs - 1} (methods have their own)"
        require(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", limit, self.warmup_epochs)
        lr = getattr(self.weight_optimizer, "lr", float("inf"))
        require(0 <= self.lr_min <= lr, "lr_min", f"from 0 to the learning rate {lr}", self.lr_min)
        rate = self.trajectory_lr
        require(rate is None or 0 < rate < float("inf"), "trajectory_lr", "> 0 and finite", rate)
        AlphaNoise(self.alpha_noise)
        require_precision(self.precision, self.estimator)
        require_choice("on_nonfinite", self.on_nonfinite, POLICIES)
        if self.early_stop:
            require(self.eigenvalue_every > 0, "early_stop", "False without eigenvalue_every", True)
            require_can_stop(self.epochs, self.eigenvalue_every, self.early_stop_from)
        tabulated = self.table is None or self.space.name in TABLES
        require(tabulated, "table", f"None without space {' or '.join(TABLES)}", self.table)

    @classmethod
    def of_method(
        cls,
        method: str = "darts",
        settings: Mapping[str, Any] | None = None,
        *,
        preset: str = "source",
        base: Self | None = None,
    ) -> Self:
        """The configuration of a method.

        Args:
            method: Name of the method.
            settings: Changes by dotted path: ``{"estimator.name": "sge", "estimator.num_directions": 4}``.
            preset: ``"source"`` for the settings of the method's source, ``"paper"`` for the SGE paper's,
                ``"nasbench201"`` for a search of that benchmark in minutes on a CPU.
            base: Start from this configuration instead.
        """
        given = dict(settings or {})
        if base is None:
            require_choice("preset", preset, methods.PRESETS)
            own = _paths(methods.preset(method, preset))
            if given.get("strategy", "gradient") != "gradient":
                # other strategies have no alphas, and a selection of their own
                unused = (*UNUSED, "selection")
                own = {path: value for path, value in own.items() if path.partition(".")[0] not in unused}
            plain = merged(cls().to_dict(), {"method": method, **own})
        else:
            plain = base.to_dict()
        plain = merged(plain, given)
        config = cls.from_dict(plain)
        return config if base is not None or preset == "paper" else config._recommended(given)

    def _recommended(self, given: Mapping[str, Any]) -> Self:
        """Settings that suit estimators that take differences, unless they were given.

        Perturbed passes see the kinks of ReLU and max pooling as noise: hence SiLU, and larger perturbations
        where max pooling stays. Evidence: docs/benchmarks/evidence.md.
        """
        if not isinstance(self.estimator, SGE | EvolutionStrategies):
            return self
        space, estimator = self.space, self.estimator
        if "space.activation" not in given:
            space = replace(space, activation="silu")
        if "estimator.smoothing" not in given:
            smooth = space.activation != "relu" and getattr(space, "pooling", "smooth") == "smooth"
            estimator = replace(estimator, smoothing=0.01 if smooth else 0.1)
        return replace(self, space=space, estimator=estimator)

    def run(
        self,
        run_dir: str | Path | None = None,
        *,
        images: ImageData | None = None,
        overwrite: bool = False,
        resume: bool | None = None,
        callbacks: Sequence[Callback] = (),
        stop: Callable[[], bool] = lambda: False,
        processes: Processes | None = None,
        progress: bool = True,
    ) -> SearchResult:
        """Runs the search with `sgenas.search`.

        Args:
            run_dir: Run directory; None for no files.
            images: Images from Python (`sgenas.data.from_dataset`) instead of ``data.data``.
            overwrite: Replace a run that is in ``run_dir``.
            resume: True requires a run there, False refuses one.
            callbacks: In addition to those of the configuration.
            stop: Asked after each step; True ends the search with a checkpoint.
            processes: Processes that share the search; None for those that torchrun has started.
            progress: Show progress on standard error.
        """
        config = replace(self, data=data.absolute_paths(self.data, images))
        if config.table is not None:
            config = replace(config, table=str(Path(config.table).expanduser().absolute()))
        with joined(given=processes) as here:
            device = here.device(config.device)
            parts = here.build(lambda: ImageParts(config, images, device))
            directory = RunDir(run_dir)
            continues = resume is not False and not overwrite and directory.has_run
            threads = self.threads or self._default_threads(parts, here, directory if continues else None)
            return api.search(
                parts.space,
                parts.train,
                parts.val,
                **{name: getattr(self, name) for name in PASSED_ON},
                schedule=Cosine(self.lr_min),
                trajectory_optimizer=None if self.trajectory_lr is None else SGD(self.trajectory_lr),
                batch_size=self.data.batch_size,
                callbacks=[*parts.callbacks, *callbacks],
                loggers=() if self.logger is None else (self.logger,),
                run_dir=run_dir,
                overwrite=overwrite,
                resume=resume,
                threads=threads,
                shards=self.data.data_parallel,
                progress=progress,
                stop=stop,
                processes=here,
                record=config.to_dict(),
                facts=parts.facts,
            )

    def _default_threads(self, parts: "ImageParts", processes: Processes, resumed: RunDir | None) -> int | None:
        """One or all threads, whichever takes a pass of the supernet faster; of a resumed run what it had."""
        if resumed is not None:
            recorded = resumed.read_config()["environment"].get("threads")
            return recorded if isinstance(recorded, int) else None
        if parts.device.type != "cpu" or processes.size > 1:
            # processes of a machine share its cores, and must not choose differently
            return None
        space = METHODS.get(self.method).apply(parts.space, relaxation=self.relaxation)
        weights, alphas = (
            draw(generator(self.seed, "threads")) for draw in (space.initial_weights, space.initial_alphas)
        )
        images, labels, *_ = next(iter(parts.batches()))

        def one_pass() -> None:
            leaves = tree.leaves(weights)
            loss = torch.nn.functional.cross_entropy(space.bind(leaves, alphas)(images), labels)
            torch.autograd.grad(loss, list(leaves.values()))

        return fastest_threads(one_pass)


def before_first_step(
    config: SearchConfig, act: Callable[[Search], Found], *, images: ImageData | None = None
) -> Found:
    """``act(search)`` for the search of ``config``, which then ends without a step or a file."""
    found: list[Found] = []

    class Once(Callback):
        def on_start(self, run: Search) -> None:
            found.append(act(run))
            run.request_stop()

    config.run(None, images=images, callbacks=[Once()], progress=False)
    return found[0]


def _paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a method as dotted paths of `SearchConfig`."""
    renamed = {"batch_size": "data.batch_size"} | {
        name: f"{name}.name" for name in ("space", "estimator", "arch_optimizer", "selection")
    }
    return {renamed.get(name, name): value for name, value in settings.items()}
