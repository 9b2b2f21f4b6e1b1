"""Settings of a search: typed, checked when made, JSON both ways. The field docs are the command's help."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

from sgenas.bilevel.averaging import COMBINATIONS
from sgenas.bilevel.blocks import BLOCKS
from sgenas.bilevel.directions import KINDS
from sgenas.bilevel.sge import COMPUTATIONS
from sgenas.engine.budget_settings import BudgetSettings
from sgenas.engine.class_weights import CLASS_WEIGHTS
from sgenas.engine.nonfinite import POLICIES
from sgenas.engine.settings import Checked, by_group, flag, read, require
from sgenas.errors import ConfigError, InvalidValueError
from sgenas.methods import METHODS, Method, preset
from sgenas.spaces.darts import OPERATION_SETS
from sgenas.spaces.fair_darts import BENCHMARK_DERIVATIONS, DERIVATIONS
from sgenas.spaces.genotype import MOST_NODES
from sgenas.spaces.nonlinearity import ACTIVATIONS, POOLINGS

ESTIMATOR_NAMES = (
    "first-order",
    "second-order",
    "sge",
    "unrolled",
    "neumann",
    "conjugate-gradient",
    "evolution",
)
READERS: dict[str, tuple[str, ...]] = {
    "directions": ("sge", "evolution"),
    "smoothing": ("sge", "evolution"),
    "direction_kind": ("sge", "evolution"),
    "computation": ("sge",),
    "memory_limit": ("sge",),
    "batch_fraction": ("sge",),
    "control_variate": ("sge",),
    "blocks": ("sge",),
    "combine": ("sge",),
    "last_steps": ("unrolled",),
    "products": ("neumann", "conjugate-gradient"),
    "damping": ("neumann", "conjugate-gradient"),
    "scale": ("neumann",),
    "tolerance": ("conjugate-gradient",),
}
"""Setting -> the estimators that it is for; `inner_steps` is for all."""
SPACE_NAMES = ("darts", "nasbench201")
FORWARD_MODE = {
    "estimator": ("unrolled", "neumann", "conjugate-gradient"),
    "computation": ("directional",),
}
"""Setting -> its values that take forward-mode derivatives: torch.compile and autocast cannot follow."""
WEIGHT_MODES = ("trajectory", "separate")
ALPHA_OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("float32", "bfloat16")
CONTROL_VARIATES: dict[str, tuple[str, ...]] = {
    "none": (),
    "finite-difference": ("finite-difference",),
    "one-sided": ("one-sided",),
    "memory": ("memory",),
    "both": ("finite-difference", "memory"),
}
"""name -> variates of `sgenas.bilevel.control_variates`."""
AUGMENTATIONS = ("auto", "none")


@dataclass(frozen=True)
class ImageSettings(Checked):
    """Images: where they come from and how they are changed."""

    data: str = "cifar10"
    """data set: digits, cifar10, cifar100, svhn, fashion_mnist, parquet:DIR_OR_FILES, folder:DIR (one folder
    a class) or hf:PATH_OR_NAME (Hugging Face)"""
    data_dir: str | None = None
    """folder of the downloaded data sets; ~/.cache/sgenas if not set"""
    train_images: int | None = None
    """use only so many training images, drawn evenly over the classes; all if not set"""
    image_size: int | None = None
    """side in pixels that images of folder, parquet and hf are brought to, scaled and cut to a square; if not
    set all must have one size"""
    batch_size: int = 64
    """images in a batch"""
    augment: str = "auto"
    """auto: random crops, and mirroring where it keeps the class; none: images as they are"""
    cutout: int = 0
    """side in pixels of a square that is blanked in each training image"""
    class_weights: str = "none"
    """what an image counts in the losses: none (all alike), or balanced (n / (k n_c) with n training images
    of k classes, n_c of its own), against imbalance; accuracies count all images alike"""

    def __post_init__(self) -> None:
        require(bool(self.data), "data", "the name of a data set", self.data)
        self._at_least("train_images", 2)
        self._at_least("image_size", 1)
        # a batch of one image has no batch statistics
        self._at_least("batch_size", 2)
        self._one_of("augment", AUGMENTATIONS)
        self._at_least("cutout", 0)
        self._one_of("class_weights", CLASS_WEIGHTS)


@dataclass(frozen=True)
class DataSettings(ImageSettings):
    """Images: half of the training images trains the weights, the other half the alphas."""

    train_fraction: float = 0.5
    """share of the images that trains the weights; the rest trains the alphas"""
    batch_size: int = 64
    """images in a batch, inner and outer"""
    data_parallel: int = 1
    """D: take the mean over D equal shards of each batch, each normalised by itself; processes that torchrun
    has started share them out, as far as their number and D have a common divisor"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("data_parallel", 1)
        shards = self.data_parallel
        require(
            self.batch_size % shards == 0,
            "batch_size",
            f"a multiple of --data-parallel {shards}",
            self.batch_size,
        )
        # a shard of one image has no batch statistics
        most = self.batch_size // 2
        require(shards <= most, "data_parallel", f"at most half of --batch-size, {most}", shards)
        require(0 < self.train_fraction < 1, "train_fraction", "in (0, 1)", self.train_fraction)


@dataclass(frozen=True)
class SpaceSettings(Checked):
    """Search space: the size of the supernet and what may stand on an edge."""

    space: str = "darts"
    """darts (a normal and a reduction cell), or nasbench201 (one small cell whose true accuracy is known)"""
    channels: int = 16
    """channels of the first cell"""
    cells: int = 5
    """nasbench201: N, cells in each of the 3 stages"""
    layers: int = 8
    """number of cells"""
    nodes: int = 4
    """computed nodes of a cell"""
    operations: str | None = None
    """operation set: darts (8 of them, with `none`) or paper (7, without); the method's own if not set"""
    partial_channels: int | None = None
    """pc-darts: K, 1 / K of the channels go through the operations; 4 if not set"""
    derivation: str | None = None
    """fair-darts, how the cell is read: top2 (the DARTS rule), threshold (of those edges the strong ones) or
    threshold-edges (on every edge up to 2 strong operations); threshold if not set. In nasbench201: strongest
    (on every edge the strongest operation; if not set) or threshold (none where it is not strong)"""
    threshold: float | None = None
    """fair-darts: least weight of what is strong; 0.85 if not set"""
    activation: str = "auto"
    """what bends the search network: relu, silu or softplus; auto: silu with sge and evolution, whose
    differences see the jumps of ReLU's gradient as noise, else relu. The derived cell keeps ReLU"""
    pooling: str = "hard"
    """darts, max pooling in the search network: hard, or smooth (log-mean-exp). The derived cell keeps the
    maximum"""

    def __post_init__(self) -> None:
        self._one_of("space", SPACE_NAMES)
        in_darts = self.space == "darts"
        for name in ("layers", "nodes", "operations", "pooling"):
            self._default_unless(name, in_darts, "--space darts")
        self._default_unless("cells", not in_darts, "--space nasbench201")
        self._at_least("cells", 1)
        self._at_least("channels", 2)
        self._at_least("partial_channels", 1)
        if self.derivation is not None:
            self._one_of("derivation", DERIVATIONS if in_darts else BENCHMARK_DERIVATIONS)
        self._one_of("activation", ("auto", *ACTIVATIONS))
        self._one_of("pooling", POOLINGS)
        value = self.threshold
        require(value is None or 0 < value < 1, "threshold", "in (0, 1)", value)
        self._at_least("layers", 3)
        self._at_least("nodes", 1)
        require(self.nodes <= MOST_NODES, "nodes", f"<= {MOST_NODES}", self.nodes)
        if self.operations is not None:
            self._one_of("operations", tuple(OPERATION_SETS))


@dataclass(frozen=True)
class EstimatorSettings(Checked):
    """Hypergradient: how the derivative of the outer loss with respect to the alphas is found."""

    estimator: str = "sge"
    """first-order (direct part only), second-order (DARTS' finite difference), sge (Algorithm 1), unrolled
    (exact), neumann or conjugate-gradient (implicit differentiation), evolution (a black box)"""
    inner_steps: int = 1
    """N: steps of the weights for one step of the alphas"""
    directions: int = 10
    """Q: random directions of sge and evolution"""
    smoothing: float | str | None = None
    """mu: step along a direction of sge or evolution, in units of alpha; auto (sge): chosen at every step of
    the alphas from how far differences agree, at the price of 5 more directions. If not set 0.01 in a smooth
    search network, and 0.1 where ReLU or hard pooling bend it, whose jumps drown smaller steps"""
    computation: str = "auto"
    """how sge computes its projections: auto, loop, streamed, vectorised and directional give the same
    numbers at different cost; difference is an approximation"""
    memory_limit: float | None = None
    """GiB that directions computed side by side (auto, vectorised) may take; if not set 80 % of a GPU's free
    memory, or a quarter of the machine's, where auto takes only small passes side by side"""
    batch_fraction: float = 1.0
    """share of each batch on which sge's perturbed steps run: cheaper, noisier"""
    direction_kind: str = "gaussian"
    """directions of sge and evolution: gaussian (the paper's), orthogonal, sphere, or antithetic (pairs u,
    -u)"""
    blocks: str = "joint"
    """what sge perturbs together: joint (all alphas, the paper's), table, or edge; each block gets its share
    of the directions, and its noise comes from its own part of the gradient alone"""
    control_variate: str = "none"
    """what takes noise out of sge: none (the paper's), finite-difference (second-order's term; 2 more
    passes), one-sided (half of that difference; 1 more pass), memory (the estimate before) or both
    (finite-difference and memory)"""
    combine: str = "mean"
    """how sge makes a gradient of its projections: mean (the paper's), unbiased, with the noise of p / Q; or
    least-squares, what explains them best, next to what the control variate guesses (to 0 without one)"""
    last_steps: int | None = None
    """unrolled: walk back so many of the inner steps, the last ones; all if not set"""
    products: int = 10
    """neumann, conjugate-gradient: products with the Hessian, at most"""
    damping: float = 0.0
    """neumann, conjugate-gradient: added to the eigenvalues of the Hessian, against negative ones"""
    scale: float | None = None
    """neumann: step of the series; the learning rate of the inner steps if not set"""
    tolerance: float = 1e-6
    """conjugate-gradient: stop where the residual is that part of the right side"""

    def __post_init__(self) -> None:
        self._one_of("estimator", ESTIMATOR_NAMES)
        self._at_least("inner_steps", 1)
        self._at_least("directions", 1)
        if isinstance(self.smoothing, str):
            sge = self.estimator == "sge"
            wanted = "auto or a number > 0" if sge else "a number > 0"
            require(sge and self.smoothing == "auto", "smoothing", wanted, self.smoothing)
        else:
            self._positive("smoothing")
        self._one_of("computation", tuple(COMPUTATIONS))
        self._positive("memory_limit")
        require(0 < self.batch_fraction <= 1, "batch_fraction", "in (0, 1]", self.batch_fraction)
        self._one_of("direction_kind", tuple(KINDS))
        self._one_of("control_variate", tuple(CONTROL_VARIATES))
        if self.direction_kind == "antithetic":
            require(
                self.directions % 2 == 0, "directions", "even with antithetic directions", self.directions
            )
        self._one_of("blocks", tuple(BLOCKS))
        self._one_of("combine", tuple(COMBINATIONS))
        self._at_least("last_steps", 1)
        require(
            self.last_steps is None or self.last_steps <= self.inner_steps,
            "last_steps",
            f"at most --inner-steps {self.inner_steps}",
            self.last_steps,
        )
        self._at_least("products", 1)
        self._not_negative("damping")
        self._positive("scale")
        self._fraction("tolerance")
        for name, readers in READERS.items():
            self._default_unless(name, self.estimator in readers, f"--estimator {' or '.join(readers)}")
        beside = self.computation in ("auto", "vectorised")
        self._default_unless("memory_limit", beside, "--computation auto or vectorised")


@dataclass(frozen=True)
class WeightSettings(Checked):
    """Weights: stochastic gradient descent with a learning rate that falls by a cosine, epoch by epoch."""

    weights: str = "trajectory"
    """trajectory: the estimator's own steps train the weights; separate: its steps are thrown away and the
    weights are trained beside it, on the same batches"""
    lr: float = 0.025
    """learning rate of the first epoch"""
    lr_min: float = 0.001
    """learning rate that the cosine falls to"""
    momentum: float = 0.9
    """momentum"""
    weight_decay: float = 3e-4
    """weight decay"""
    grad_clip: float | None = 5.0
    """largest norm of the gradient ("None": no clipping)"""
    trajectory_lr: float | None = 0.01
    """p: with --weights separate, step size of the estimator's plain gradient steps ("None": its steps
    are those of the weights, momentum and decay included)"""

    def __post_init__(self) -> None:
        self._one_of("weights", WEIGHT_MODES)
        self._positive("lr")
        self._not_negative("lr_min")
        require(self.lr_min <= self.lr, "lr_min", f"at most --lr {self.lr}", self.lr_min)
        self._fraction("momentum")
        self._not_negative("weight_decay")
        self._positive("grad_clip")
        self._positive("trajectory_lr")
        self._default_unless("trajectory_lr", self.weights == "separate", "--weights separate")


@dataclass(frozen=True)
class AlphaSettings(Checked):
    """Alphas: the optimiser that follows the hypergradient."""

    alpha_optimizer: str = "adam"
    """adam (DARTS) or sgd (the paper's Algorithm 1, there with --alpha-lr 0.01)"""
    alpha_lr: float = 3e-4
    """learning rate of the alphas; the paper's q"""
    alpha_weight_decay: float = 1e-3
    """weight decay of the alphas"""
    alpha_beta1: float = 0.5
    """first moment of adam"""
    alpha_beta2: float = 0.999
    """second moment of adam"""
    regulariser_weight: float | None = None
    """factor of what the method adds to the outer loss (fair-darts: zero-one loss, 10; beta-darts: beta
    decay, rising to 50 over the epochs); the method's own if not set"""
    zero_one: str | None = None
    """fair-darts, form of the zero-one loss: squared or absolute; squared if not set"""
    warmup_epochs: int = 0
    """epochs at the start in which only the weights are trained"""
    alpha_every: int = 1
    """move the alphas at every so many steps of the weights"""

    def __post_init__(self) -> None:
        self._one_of("alpha_optimizer", ALPHA_OPTIMIZERS)
        self._positive("alpha_lr")
        self._not_negative("alpha_weight_decay")
        for name in ("alpha_beta1", "alpha_beta2"):
            self._fraction(name)
            self._default_unless(name, self.alpha_optimizer == "adam", "--alpha-optimizer adam")
        if self.regulariser_weight is not None:
            self._not_negative("regulariser_weight")
        if self.zero_one is not None:
            self._one_of("zero_one", ("squared", "absolute"))
        self._at_least("warmup_epochs", 0)
        self._at_least("alpha_every", 1)


@dataclass(frozen=True)
class WatchSettings(Checked):
    """Watching: what is measured beside the search, at the end of an epoch, to see whether it collapses."""

    table: str | None = None
    """nasbench201: CSV file of true accuracies, of which those of the cell of the moment are logged"""
    derived_every: int = 1
    """epochs between two measurements of the derived cell with the supernet's weights (0: never)"""
    eigenvalue_every: int = 0
    """epochs between two measurements of the largest eigenvalue of the outer loss' Hessian in the alphas, on
    one batch, at about 100 passes each (0: never)"""
    early_stop: bool = False
    """stop where the mean of 5 eigenvalues is 1.3 times that of 4 measurements before, and take that cell"""
    early_stop_from: int = 10
    """first epoch, counted from 1, whose cell an early stop may take"""

    def __post_init__(self) -> None:
        self._at_least("derived_every", 0)
        self._at_least("eigenvalue_every", 0)
        self._at_least("early_stop_from", 1)
        self._default_unless("early_stop", self.eigenvalue_every > 0, "--eigenvalue-every")
        self._default_unless("early_stop_from", self.early_stop, "--early-stop")


@dataclass(frozen=True)
class SearchConfig(Checked):
    """Search a cell: differentiable architecture search with the stochastic gradient estimator.

    Raises ConfigError for a setting outside what it accepts or without effect.
    """

    method: str = "darts"
    """search method: darts, pc-darts, fair-darts or beta-darts"""
    epochs: int = 50
    """passes through the images that train the weights; what is over after the last full N batches of one
    is carried into the next"""
    seed: int = 0
    """the same seed gives the same run on the same machine and number of threads (on a GPU with
    --deterministic; else sums may be added in another order there)"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1"""
    precision: str = "float32"
    """float32, or bfloat16 for the layers that bear it. Estimators that take differences are measured in both
    on the first batches; where rounding moves the indirect part by more than a tenth, bfloat16 is refused"""
    deterministic: bool = False
    """only operations that give the same result every time: on a GPU slower; one that has no such form ends
    the run and is named. On a CPU all have it, and results are the same without"""
    compile: bool = False
    """compile the supernet with torch.compile: minutes at the start, for fewer and larger kernels"""
    on_nonfinite: str = "stop"
    """where a loss or derivative is not finite: stop; skip (that step is left out); or rollback (weights and
    alphas go back to the last checkpoint, the batches go on). More than 10 such steps between two checkpoints
    stop the search in any case"""
    log_every: int | None = None
    """steps between two rows of metrics.jsonl; if not set 10, or as many more as leave 10,000 rows"""
    checkpoint_every: int = 100
    """steps between two checkpoints; there is one at the end of each epoch too"""
    data: DataSettings = field(default_factory=DataSettings)
    space: SpaceSettings = field(default_factory=SpaceSettings)
    estimator: EstimatorSettings = field(default_factory=EstimatorSettings)
    weights: WeightSettings = field(default_factory=WeightSettings)
    alphas: AlphaSettings = field(default_factory=AlphaSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)

    def __post_init__(self) -> None:
        self._one_of("method", tuple(METHODS))
        self._check_method(METHODS[self.method])
        self._at_least("epochs", 1)
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed)
        self._one_of("precision", PRECISIONS)
        for name, kinds in FORWARD_MODE.items():
            value = getattr(self.estimator, name)
            plain = value not in kinds
            require(plain or not self.compile, "compile", f"off with {flag(name)} {value}", True)
            limit = f"float32 with {flag(name)} {value}, which takes forward-mode derivatives"
            require(plain or self.precision == "float32", "precision", limit, self.precision)
        self._one_of("on_nonfinite", POLICIES)
        self._at_least("log_every", 1)
        self._at_least("checkpoint_every", 1)
        warmup = self.alphas.warmup_epochs
        require(
            warmup < self.epochs,
            "warmup_epochs",
            f"below --epochs {self.epochs} (else no alpha moves)",
            warmup,
        )

        part = math.ceil(self.estimator.batch_fraction * self.data.batch_size)
        require(
            part >= 2, "batch_fraction", f"large enough to leave 2 of {self.data.batch_size} images", part
        )
        shards = self.data.data_parallel
        require(
            part % shards == 0 and part >= 2 * shards,
            "batch_fraction",
            f"such that its images are a multiple of --data-parallel {shards}, at least 2 a shard",
            part,
        )

        clip = self.weights.grad_clip
        if self.weights.weights == "separate" and self.weights.trajectory_lr is not None:
            clip = None  # the estimator's own steps are not clipped
        if self.estimator.computation in ("directional", "difference") and clip is not None:
            raise ConfigError(
                f"--grad-clip must be None with --computation {self.estimator.computation}, which never has"
                f" the gradient to clip, got {clip}"
            )

    def _check_method(self, row: Method) -> None:
        """The space must be one that the method knows, and its options must have an effect."""
        known = tuple(row.spaces)
        require(
            self.space.space in known,
            "space",
            f"{' or '.join(known)} with --method {self.method}",
            self.space.space,
        )
        for name in ("partial_channels", "derivation", "threshold"):
            self.space._default_unless(name, name in row.options, f"a method that has it, not {self.method}")
        self.alphas._default_unless(
            "regulariser_weight", bool(row.regularisers), f"a method that has one, not {self.method}"
        )
        self.alphas._default_unless("zero_one", "squared" in row.regularisers, "--method fair-darts")
        in_benchmark = self.space.space == "nasbench201"
        self.watch._default_unless("table", in_benchmark, "--space nasbench201")
        layers = self.budget.budget_layers
        require(in_benchmark or layers is None or layers >= 3, "budget_layers", ">= 3", layers)
        derivation = self.space.derivation or ("strongest" if in_benchmark else "threshold")
        if derivation in ("top2", "strongest") and self.space.threshold is not None:
            raise ConfigError(
                f"--threshold only applies with a --derivation other than {derivation},"
                f" got {self.space.threshold}"
            )

    @classmethod
    def of_method(cls, name: str, kind: str = "source", without: Collection[str] = ()) -> Self:
        """The settings of a method's source, or the paper's ("paper"), but for those flags in `without`.

        Raises ConfigError.
        """
        try:
            flat = preset(name, kind)
        except InvalidValueError as error:
            raise ConfigError(f"--{error}") from None
        kept = {flag: value for flag, value in flat.items() if flag not in without}
        return cls(method=name, **by_group(cls, kept))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data, ready for JSON; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Reads what `to_dict` writes, all of it; raises ConfigError naming the first fault."""
        return read(cls, data, "config")
