"""Configuration of a training on images: what the command line, config.json and `table1` are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sgenas import data
from sgenas.data import ImageData, ImageSet, TrainImageSettings
from sgenas.data.settings import fewer_note
from sgenas.device import channels_last_on
from sgenas.errors import DataError, require, require_choice, require_counts
from sgenas.fields import option
from sgenas.optim import SGD
from sgenas.random import generator
from sgenas.run.callbacks import Callback
from sgenas.run.config import Configuration, merged
from sgenas.run.distributed import Processes, joined
from sgenas.spaces.darts_space.network import AUXILIARY_SIDE
from sgenas.spaces.genotype import Genotype
from sgenas.spaces.networks import build, takes_auxiliary
from sgenas.training import api
from sgenas.training.objectives import PRECISIONS, Classification
from sgenas.training.schedules import INTERVALS, WarmupCosine

DROP_PATH, AUXILIARY_WEIGHT = 0.2, 0.4
PASSED_ON = (
    *("genotype", "epochs", "seed", "device", "threads", "precision", "deterministic"),
    *("log_every", "checkpoint_every", "label_smoothing", "ema"),
)
"""Settings that are arguments of `sgenas.train` of the same name."""


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """A training of a cell's network on images. The defaults are those of DARTS (cnn/train.py).

    Args:
        genotype: Cells of the network.
        epochs: Passes through the training images; an incomplete last batch is left out of each.
        seed: The same seed gives the same run on the same machine and number of threads (on a GPU with
            deterministic).
        device: auto (a GPU if there is one), cpu, cuda or cuda:1.
        threads: CPU threads; PyTorch's setting if None.
        precision: ieee (float32), tf32 (on a GPU TF32 in convolutions and products of matrices), bf16 (bfloat16 for
            the layers that accept it), or auto: bf16 on a GPU and ieee on a CPU.
        deterministic: Only deterministic operations; slower on a GPU.
        log_every: Steps between two logged steps; if None 10, or more in long trainings.
        checkpoint_every: Steps between two checkpoints; there is one per epoch too.
        logger: Also log to tensorboard or wandb.
        channels: Channels of the first cell; if None 36 (16 for NAS-Bench-201; 32, of the stem, for
            NAS-Bench-Macro).
        layers: Number of cells; if None 20 (for NAS-Bench-201 5 per stage).
        drop_path: Probability of drop path at the end, rising by epoch from 0; if None 0.2 (NAS-Bench-201 has
            no drop path).
        auxiliary_weight: Weight of the auxiliary head's loss, 0 for no such head; if None 0.4 (NAS-Bench-201
            has none).
        lr: Largest learning rate.
        lr_min: Learning rate that the cosine schedule falls to.
        schedule: Whether the learning rate changes at each epoch or at each step.
        warmup: Epochs at the start in which the learning rate rises linearly.
        momentum: Momentum.
        nesterov: Nesterov momentum.
        weight_decay: Weight decay, of all weights.
        grad_clip: Largest gradient norm; None for no clipping.
        label_smoothing: Share of the target that is spread evenly over all classes.
        ema: Decay rate of an exponential moving average of the weights, which is then tested and exported;
            None for no average.
        data: Images.

    Raises:
        InvalidValueError: If a setting is out of range or has no effect.
    """

    genotype: Genotype
    epochs: int = 600
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str = option("tf32", choices=PRECISIONS)
    deterministic: bool = False
    log_every: int | None = None
    checkpoint_every: int = 500
    logger: str | None = None
    channels: int | None = None
    layers: int | None = None
    drop_path: float | None = None
    auxiliary_weight: float | None = None
    lr: float = 0.025
    lr_min: float = 0.0
    schedule: str = option("epoch", choices=INTERVALS)
    warmup: int = 0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 3e-4
    grad_clip: float | None = 5.0
    label_smoothing: float = 0.0
    ema: float | None = None
    data: TrainImageSettings = field(default_factory=TrainImageSettings)

    def __post_init__(self) -> None:
        counts = ("epochs", "checkpoint_every", "log_every", "threads", "channels", "layers")
        require_counts({name: getattr(self, name) for name in counts})
        require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed)
        require_choice("precision", self.precision, PRECISIONS)
        if not takes_auxiliary(self.genotype):
            for name in ("drop_path", "auxiliary_weight"):
                value = getattr(self, name)
                require(not value, name, f"0 in the space {self.genotype.space}, which has none", value)
        drop_path = self.final_drop_path
        require(0 <= drop_path < 1, "drop_path", "in [0, 1)", drop_path)
        require(self.epochs > 1 or not drop_path, "epochs", "> 1 with drop_path (0 in the first)", self.epochs)
        require(self.ema is None or 0 < self.ema < 1, "ema", "in (0, 1)", self.ema)
        # the parts check the rest
        self._optimizer()
        self._schedule().check(self.epochs, self.lr)
        self._objective(None)

    @property
    def final_drop_path(self) -> float:
        """The probability of drop path at the end, 0 in a space without."""
        return self._of_space(self.drop_path, DROP_PATH)

    @property
    def head_weight(self) -> float:
        """The weight of the auxiliary head's loss, 0 in a space without."""
        return self._of_space(self.auxiliary_weight, AUXILIARY_WEIGHT)

    def _of_space(self, value: float | None, default: float) -> float:
        if value is not None:
            return value
        return default if takes_auxiliary(self.genotype) else 0.0

    def _optimizer(self) -> SGD:
        return SGD(self.lr, self.momentum, self.nesterov, self.weight_decay, self.grad_clip)

    def _schedule(self) -> WarmupCosine:
        return WarmupCosine(self.lr_min, self.schedule, self.warmup)

    def _objective(self, class_weights: Tensor | None) -> Classification:
        return Classification(self.label_smoothing, self.head_weight, class_weights)

    @classmethod
    def of_recipe(cls, name: str, genotype: Genotype, settings: Mapping[str, Any] | None = None) -> Self:
        """The configuration of a recipe.

        Args:
            name: One of `RECIPES`.
            genotype: Cells of the network.
            settings: Changes by dotted path: ``{"epochs": 100, "data.data": "digits"}``.
        """
        require_choice("recipe", name, tuple(RECIPES))
        plain = merged(cls(genotype).to_dict(), RECIPES[name].settings)
        return cls.from_dict(merged(plain, settings or {}))

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
    ) -> "api.TrainResult":
        """Runs the training with `sgenas.train`.

        Args:
            run_dir: Run directory; None for no files.
            images: Images from Python (`sgenas.data.from_dataset`) instead of ``data.data``.
            overwrite: Replace a run that is in ``run_dir``.
            resume: True requires a run there, False refuses one.
            callbacks: Measure, show or decide something alongside.
            stop: Asked after each step; True ends the training with a checkpoint.
            processes: Processes that share the training; None for those that torchrun has started.
            progress: Show progress on standard error.
        """
        config = replace(self, data=data.absolute_paths(self.data, images))
        with joined(given=processes) as here:
            shards, count = self.data.data_parallel, here.size
            require(shards % count == 0, "data_parallel", f"a multiple of the {count} processes", shards)
            device = here.device(config.device)
            parts = here.build(lambda: TrainImageParts(config, images, device))
            return api.train(
                self.build(parts.images),
                parts.train,
                parts.test,
                **{name: getattr(self, name) for name in PASSED_ON},
                batch_size=self.data.batch_size,
                optimizer=self._optimizer(),
                schedule=self._schedule(),
                auxiliary_weight=self.head_weight,
                class_weights=parts.class_weights,
                drop_path=self.final_drop_path,
                callbacks=callbacks,
                loggers=() if self.logger is None else (self.logger,),
                run_dir=run_dir,
                overwrite=overwrite,
                resume=resume,
                channels_last=channels_last_on(device),
                shards=shards,
                progress=progress,
                stop=stop,
                processes=here,
                record=config.to_dict(),
                facts=parts.facts,
            )

    def build(self, images: ImageData) -> nn.Module:
        """The network for such images, with the initial weights of the seed."""
        auxiliary = self.head_weight > 0
        # both reductions round up: the smallest side that leaves AUXILIARY_SIDE pixels
        least, side = 4 * (AUXILIARY_SIDE - 1) + 1, min(images.height, images.width)
        limit = f"0 with images of less than {least} x {least} pixels"
        require(not auxiliary or side >= least, "auxiliary_weight", limit, self.head_weight)
        network: nn.Module = build(
            self.genotype,
            channels=self.channels,
            layers=self.layers,
            num_classes=len(images.classes),
            input_channels=images.channels,
            auxiliary=auxiliary,
            generator=generator(self.seed, "weights"),
        )
        return network


class TrainImageParts:
    """The data of a configuration's training.

    Args:
        config: Configuration with absolute paths.
        images: Images from Python instead of ``config.data.data``.
        device: Device of the batches, and of all images if they fit.
    """

    def __init__(self, config: TrainConfig, images: ImageData | None, device: torch.device) -> None:
        settings = config.data
        self.images = data.load_images(settings, config.seed, test=True, given=images)
        if self.images.test is None:
            raise DataError(f"data {settings.data} must have test images, got none")
        test = _test_sample(config, self.images.test).near(device)
        augmentation = data.make_augmentation(settings, self.images, self.images.train)
        self.class_weights = data.make_class_weights(settings, self.images, device)
        draws = generator(config.seed, "training batches")
        training, size = self.images.train.near(device), settings.batch_size
        self.train = data.BatchStream(training, size, augmentation, draws, device=device)
        self.test = partial(data.ordered_batches, test, size, augmentation, device)
        self.facts: dict[str, Any] = {
            "classes": list(self.images.classes),
            "images": {"training": len(self.images.train), "test": len(test)},
            "notes": [*self.images.notes, *fewer_note("test", config.data.test_images, len(test))],
            "input": [self.images.channels, self.images.height, self.images.width],
            "mean": list(augmentation.mean),
            "std": list(augmentation.std),
            "fingerprint": self.images.train.digest() + self.images.test.digest(),
        }


def _test_sample(config: TrainConfig, test: ImageSet) -> ImageSet:
    count = config.data.test_images
    if count is None or count >= len(test):
        return test
    try:
        chosen = data.sample_stratified(test.labels, count, generator(config.seed, "test sample"))
    except DataError as error:
        raise DataError(f"data {config.data.data}, test_images {count}: {error}") from None
    return test.subset(chosen)


@dataclass(frozen=True)
class Recipe:
    """Settings of a training by name.

    Args:
        source: Where the numbers are from.
        settings: What differs from the defaults, by dotted path.
    """

    source: str
    settings: Mapping[str, Any]


RECIPES = {
    "source": Recipe("cnn/train.py of DARTS (arXiv:1806.09055), with its --auxiliary and --cutout", {}),
    # what it says besides (momentum 0.9, weight decay 3e-4, cosine) is the source's; on all else it is silent
    "paper": Recipe("section 3 of the SGE paper, where it may also speak of the search", {"lr": 0.005}),
    "fast": Recipe(
        "usual choices for few epochs; measured at small scale only",
        {
            "epochs": 30,
            "precision": "auto",
            "data.batch_size": 128,
            "data.cutout": 8,
            "drop_path": 0.0,
            "auxiliary_weight": 0.0,
            "lr": 0.1,
            "schedule": "step",
            "warmup": 2,
            "nesterov": True,
            "weight_decay": 5e-4,
            "label_smoothing": 0.1,
            "ema": 0.999,
        },
    ),
}
