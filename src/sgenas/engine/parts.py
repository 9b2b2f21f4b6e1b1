"""The parts of a run, made from its settings: device, images, space, estimator, random generators."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from sgenas import data, trees
from sgenas.bilevel import (
    SGD,
    SGE,
    ConjugateGradient,
    Estimator,
    EvolutionStrategies,
    FiniteDifference,
    FirstOrder,
    HypergradientResult,
    Neumann,
    Share,
    Unrolled,
)
from sgenas.bilevel.blocks import columns, deal
from sgenas.bilevel.problem import Loss
from sgenas.engine.class_weights import balanced
from sgenas.engine.config import CONTROL_VARIATES, AlphaSettings, SearchConfig, WeightSettings
from sgenas.engine.settings import flag
from sgenas.engine.train_config import TrainConfig
from sgenas.errors import ConfigError, DataError, InvalidValueError
from sgenas.methods import method
from sgenas.spaces import AccuracyTable, DartsSpace, NasBench201Space, space
from sgenas.trees import Tree

Space = DartsSpace | NasBench201Space
Forward = Callable[[Tree, Tree, torch.Tensor], torch.Tensor]
"""forward(weights, alphas, images) -> logits."""
AnyConfig = TypeVar("AnyConfig", SearchConfig, TrainConfig)


def make_estimator(config: SearchConfig, share: Share | None = None) -> Estimator:
    """The estimator that the settings name. A new estimator gets its row here.

    share: this process's directions, for estimators that have some.
    """
    settings = config.estimator
    estimators: dict[str, Callable[[], Estimator]] = {
        "first-order": FirstOrder,
        "second-order": FiniteDifference,
        "sge": lambda: SGE(
            settings.directions,
            smoothing(config),
            settings.computation,
            memory_limit=settings.memory_limit,
            batch_fraction=settings.batch_fraction,
            directions=settings.direction_kind,
            control_variate=CONTROL_VARIATES[settings.control_variate],
            blocks=settings.blocks,
            combine=settings.combine,
            share=share,
        ),
        "unrolled": lambda: Unrolled(settings.last_steps),
        "neumann": lambda: Neumann(settings.products, settings.scale, settings.damping),
        "conjugate-gradient": lambda: ConjugateGradient(
            settings.products, settings.tolerance, settings.damping
        ),
        "evolution": lambda: EvolutionStrategies(
            settings.directions, float(smoothing(config)), settings.direction_kind
        ),
    }
    return estimators[settings.estimator]()


def within_memory(estimator: Estimator, result: HypergradientResult) -> Estimator:
    """The same estimator, with the chunk that `result` came down to where memory ran out."""
    chunk = result.diagnostics.get("chunk")
    if chunk is None or not isinstance(estimator, SGE):
        return estimator
    return dataclasses.replace(estimator, chunk=int(chunk.item()))


def check_blocks(config: SearchConfig, alphas: Tree) -> None:
    """Raises ConfigError where `--blocks` makes more blocks of these alphas than there are directions."""
    settings = config.estimator
    group = 2 if settings.direction_kind == "antithetic" else 1
    try:
        deal(settings.directions, len(columns(settings.blocks, alphas)), group)
    except InvalidValueError as error:
        raise ConfigError(f"--blocks {settings.blocks}: {error}") from None


def load_images(
    config: SearchConfig | TrainConfig, *, test: bool, given: data.ImageData | None = None
) -> data.ImageData:
    """The data set of `--data`, with its test images or without; raises DataError where it cannot be had.

    given: images that a caller has in Python, taken in place of loading any; `--train-images` holds for them.
    """
    settings = config.data
    folder = None if settings.data_dir is None else Path(settings.data_dir)
    try:
        if given is not None:
            return data.limited(
                given if test else dataclasses.replace(given, test=None),
                settings.train_images,
                seed_of(config.seed, "sample"),
            )
        return data.load(
            settings.data,
            data_dir=folder,
            limit=settings.train_images,
            seed=seed_of(config.seed, "sample"),
            test=test,
            image_size=settings.image_size,
        )
    except DataError as error:
        raise data_error(config, error) from None


def data_error(config: SearchConfig | TrainConfig, error: DataError) -> DataError:
    """`error` with the flags that it is about in front."""
    settings = config.data
    flags = f"--data {settings.data}"
    if settings.train_images is not None:
        flags += f" --train-images {settings.train_images}"
    return DataError(f"{flags}: {error}")


def with_absolute_paths(config: AnyConfig, given: data.ImageData | None = None) -> AnyConfig:
    """The same settings with absolute paths to the data, so that a run can be resumed from anywhere.

    given: images from Python, whose name takes the place of `--data`. Raises ConfigError where a setting that
    says how to load images stands beside them.
    """
    settings = config.data
    if given is not None:
        for name in ("data_dir", "image_size"):
            value = getattr(settings, name)
            if value is not None:
                raise ConfigError(f"{flag(name)} must not be set with images from Python, got {value!r}")
        settings = dataclasses.replace(settings, data=given.name)
    kind, separator, paths = settings.data.partition(":")
    source = settings.data
    if separator and (kind in ("parquet", "folder") or (kind == "hf" and Path(paths).expanduser().exists())):
        places = paths.split(",") if kind == "parquet" else [paths]
        parts = [str(Path(path.strip()).expanduser().absolute()) for path in places if path.strip()]
        source = f"{kind}:{','.join(parts)}"
    folder = None if settings.data_dir is None else str(Path(settings.data_dir).expanduser().absolute())
    config = dataclasses.replace(config, data=dataclasses.replace(settings, data=source, data_dir=folder))
    if isinstance(config, SearchConfig) and config.watch.table is not None:
        table = str(Path(config.watch.table).expanduser().absolute())
        config = dataclasses.replace(config, watch=dataclasses.replace(config.watch, table=table))
    if isinstance(config, SearchConfig) and config.budget.latency_table is not None:
        table = str(Path(config.budget.latency_table).expanduser().absolute())
        config = dataclasses.replace(config, budget=dataclasses.replace(config.budget, latency_table=table))
    return config


def load_table(config: SearchConfig) -> AccuracyTable | None:
    """The table of `--table`; raises DataError where it cannot be read."""
    if config.watch.table is None:
        return None
    try:
        return AccuracyTable.load(config.watch.table)
    except DataError as error:
        raise DataError(f"--table {error}") from None


def make_space(config: SearchConfig, images: data.ImageData) -> Space:
    """The search space of `--method` for these images, its first weights drawn from the run's seed."""
    row, sizes = method(config.method), config.space
    if sizes.space == "darts":
        settings = {
            "layers": sizes.layers,
            "nodes": sizes.nodes,
            "operations": sizes.operations or row.operations,
            "pooling": sizes.pooling,
        }
    else:
        settings = {"cells": sizes.cells}
    chosen = {name: getattr(sizes, name) for name in row.options}
    made: Space = space(
        row.spaces[sizes.space],
        channels=sizes.channels,
        classes=len(images.classes),
        input_channels=images.channels,
        activation=activation(config),
        generator=generator(config.seed, "weights"),
        **settings,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return made


def activation(config: SearchConfig) -> str:
    """What bends the search network, `auto` decided: evidence in docs/choosing.md, "Kinks"."""
    if config.space.activation != "auto":
        return config.space.activation
    return "silu" if config.estimator.estimator in ("sge", "evolution") else "relu"


def smoothing(config: SearchConfig) -> float | str:
    """mu or "auto", decided where it is not set: evidence in docs/choosing.md, "Kinks"."""
    if config.estimator.smoothing is not None:
        return config.estimator.smoothing
    has_maximum = config.space.space == "darts" and config.space.pooling == "hard"
    return 0.1 if activation(config) == "relu" or has_maximum else 0.01


def regulariser(
    name: str, settings: AlphaSettings, epoch: int, epochs: int
) -> Callable[[Tree], torch.Tensor] | None:
    """What the method adds to the outer loss in that epoch, its weight included; None where nothing."""
    row = method(name)
    if not row.regularisers:
        return None
    form = row.regularisers[settings.zero_one or next(iter(row.regularisers))]
    weight = row.regulariser_weight if settings.regulariser_weight is None else settings.regulariser_weight
    if row.rising:
        weight *= epoch / epochs
    return lambda alphas: weight * form(alphas)


def with_terms(loss: Loss, *terms: Callable[[Tree], torch.Tensor] | None) -> Loss:
    """`loss` plus those of the functions of the alphas that there are."""
    there = [term for term in terms if term is not None]
    if not there:
        return loss
    return lambda weights, alphas, batch: sum((term(alphas) for term in there), loss(weights, alphas, batch))


def alpha_optimizer(settings: AlphaSettings, alphas: Tree) -> torch.optim.Optimizer:
    """What moves the alphas, in place."""
    tensors = list(alphas.values())
    if settings.alpha_optimizer == "sgd":
        return torch.optim.SGD(tensors, lr=settings.alpha_lr, weight_decay=settings.alpha_weight_decay)
    return torch.optim.Adam(
        tensors,
        lr=settings.alpha_lr,
        betas=(settings.alpha_beta1, settings.alpha_beta2),
        weight_decay=settings.alpha_weight_decay,
    )


def weight_optimizer(settings: WeightSettings, epoch: int, epochs: int) -> SGD:
    """The weights' steps in that epoch: a cosine from lr to lr_min, constant within an epoch."""
    cosine = (1 + math.cos(math.pi * epoch / epochs)) / 2
    lr = settings.lr_min + (settings.lr - settings.lr_min) * cosine
    return SGD(lr, settings.momentum, settings.weight_decay, settings.grad_clip)


def forward_passes(config: SearchConfig, made: Space, device: torch.device) -> tuple[Forward, Forward]:
    """The space's `logits` and `stacked_logits`, compiled where `--compile` says so.

    In the precision of `--precision`; given back in float32 from bfloat16.
    """
    passes: tuple[Forward, Forward] = made.logits, made.stacked_logits
    if config.compile:
        # whole graphs of fixed shapes: the number of members that go side by side changes seldom
        logits, stacked = (torch.compile(one, fullgraph=True, dynamic=False) for one in passes)
        passes = logits, stacked
    if config.precision == "float32":
        return passes
    return _in_bfloat16(passes[0], device), _in_bfloat16(passes[1], device)


def _in_bfloat16(forward: Forward, device: torch.device) -> Forward:
    def rounded(weights: Tree, alphas: Tree, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return forward(weights, alphas, images).float()

    return rounded


def make_augmentation(
    config: SearchConfig | TrainConfig, images: data.ImageData, training: data.ImageSet
) -> data.Augmentation:
    """Crop, mirroring and cutout as set, normalisation by the statistics of the images that train."""
    settings = config.data
    side = min(images.height, images.width)
    if settings.cutout > side:
        raise ConfigError(f"--cutout must be at most the image's side {side}, got {settings.cutout}")
    mean, std = data.statistics(training.images)
    augment = settings.augment == "auto"
    return data.Augmentation(
        # an eighth of the side: DARTS' 4 pixels for 32
        pad=side // 8 if augment else 0,
        mirror=augment and images.mirror,
        cutout=settings.cutout,
        mean=mean,
        std=std,
    )


def class_weights(
    config: SearchConfig | TrainConfig, images: data.ImageData, device: torch.device
) -> torch.Tensor | None:
    """What each class counts in the losses, (classes,), by all training images; None where all are alike.

    A search cuts the images by class, so that both of its losses have the same weights but for rounding.
    """
    if config.data.class_weights == "none":
        return None
    return balanced(images.train.labels, len(images.classes)).to(device)


def find_device(name: str) -> torch.device:
    """The device of `--device`; raises ConfigError when this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"--device must be auto or a device of this machine, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu or cuda, got {name!r}")
    return device


def generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for one use, named; the uses do not share numbers."""
    return torch.Generator().manual_seed(seed_of(seed, name))


def seed_of(seed: int, name: str) -> int:
    """A seed for the generator `name`: a new one never shifts the numbers of the others."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def digest_of(images: data.ImageSet) -> str:
    """A fingerprint of images and labels, to notice when a data set changed between stop and resume."""
    total = hashlib.blake2b(digest_size=16)
    for tensor in (images.images, images.labels):
        total.update(tensor.cpu().contiguous().numpy().data)
    return total.hexdigest()


def to_device(tree: Tree, device: torch.device) -> Tree:
    """The tensors of `tree` on `device`, without their history."""
    return trees.map_tree(lambda tensor: tensor.detach().to(device), tree)


def exact_convolutions(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On a GPU: the same convolutions each time, and no TF32, whose rounding drowns steps of size mu."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def fast_convolutions(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On a GPU: TF32, and for each shape the fastest of cuDNN's ways; no two runs need be equal there."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)
