"""Settings of a run's images, and what is made from them: dataset, augmentation, class weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sgenas.data.augmentation import Augmentation, statistics
from sgenas.data.batches import balanced
from sgenas.data.images import ImageData, ImageSet
from sgenas.data.sources import LoadRequest, absolute_path, find_source, load
from sgenas.errors import DataError, require, require_choice
from sgenas.fields import option
from sgenas.random import seed_of

AUGMENTATIONS = ("auto", "none")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class ImageSettings:
    """Where the images of a run come from, and how they are changed.

    Args:
        data: Dataset: digits, cifar10, cifar100, svhn, fashion_mnist, parquet:FILES_OR_DIR or folder:DIR
            (one folder per class).
        data_dir: Directory of downloaded datasets; ~/.cache/sgenas if None.
        train_images: Number of training images to use, drawn by class; all if None.
        image_size: Side in pixels that images are scaled and cropped to, except the digits; if None,
            all must have one size.
        batch_size: Images per batch.
        augment: Random crops, and horizontal flips if they keep the class (auto), or images as they are.
        cutout: Side in pixels of a square that is blanked in each training image; 0 for none.
        class_weights: Weight of an image in the losses: none, or balanced against class imbalance
            (n / (k n_c) with n training images, k classes and n_c images of its class).
        data_parallel: Equal shards per batch; each is normalized separately, and losses are their mean.
            Processes that torchrun starts share them.

    Raises:
        InvalidValueError: If a field is out of range.
    """

    data: str = "cifar10"
    data_dir: str | None = None
    train_images: int | None = None
    image_size: int | None = None
    batch_size: int = 64
    augment: str = option("auto", choices=AUGMENTATIONS)
    cutout: int = 0
    class_weights: str = option("none", choices=CLASS_WEIGHTS)
    data_parallel: int = 1

    def __post_init__(self) -> None:
        require(bool(self.data), "data", "the name of a dataset", self.data)
        # a batch of one image has no batch statistics
        least: dict[str, int] = {"train_images": 2, "image_size": 1, "batch_size": 2, "cutout": 0}
        for name, limit in least.items():
            value: Any = getattr(self, name)
            require(value is None or value >= limit, name, f">= {limit}", value)
        require_choice("augment", self.augment, AUGMENTATIONS)
        require_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        shards, size = self.data_parallel, self.batch_size
        require(shards >= 1, "data_parallel", ">= 1", shards)
        require(size % shards == 0, "batch_size", f"a multiple of data_parallel ({shards})", size)
        # a shard of one image has no batch statistics
        require(shards <= size // 2, "data_parallel", f"at most {size // 2} (half of batch_size)", shards)


@dataclass(frozen=True)
class SearchImageSettings(ImageSettings):
    """Images of a search run: one part of the training images trains the weights, the rest the alphas.

    Args:
        batch_size: Images per batch, inner and outer.
        train_fraction: Share of the training images that trains the weights; the rest trains the alphas.
    """

    train_fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.train_fraction < 1, "train_fraction", "in (0, 1)", self.train_fraction)


@dataclass(frozen=True)
class TrainImageSettings(ImageSettings):
    """Images of a training run: all training images train the network, the test images test it.

    Args:
        test_images: Number of test images to use, drawn by class; all if None.
    """

    batch_size: int = 96
    cutout: int = 16
    test_images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.test_images is None or self.test_images >= 2, "test_images", ">= 2", self.test_images)


Settings = TypeVar("Settings", bound=ImageSettings)


def load_images(settings: ImageSettings, seed: int, *, test: bool, given: ImageData | None = None) -> ImageData:
    """The dataset of a run.

    Args:
        settings: Where it is.
        seed: Seed of the run; ``train_images`` are drawn with its generator ``"sample"``.
        test: Whether to read the test images.
        given: Images from Python, used instead of loading; ``train_images`` applies to them too.

    Raises:
        DataError: If the dataset is missing or damaged.
    """
    limit, sample = settings.train_images, seed_of(seed, "sample")
    if given is not None:
        request = LoadRequest(given.name, None, limit, sample, test)
        chosen = request.choose(given.train.labels, given.classes)
        train = given.train if len(chosen) == len(given.train) else given.train.subset(chosen)
        found = replace(given, train=train, test=given.test if test else None)
    else:
        folder = None if settings.data_dir is None else Path(settings.data_dir)
        size = settings.image_size
        try:
            found = load(settings.data, data_dir=folder, train_images=limit, seed=sample, test=test, image_size=size)
        except DataError as error:
            raise DataError(f"data {settings.data}: {error}") from None
    notes = fewer_note("training", limit, len(found.train))
    return replace(found, notes=(*found.notes, *notes)) if notes else found


def fewer_note(part: str, wanted: int | None, there: int) -> tuple[str, ...]:
    """What to say of a part that has fewer images than are asked for."""
    return () if wanted is None or wanted <= there else (f"{part} images: all {there:,}, fewer than {wanted:,}",)


def absolute_paths(settings: Settings, given: ImageData | None = None) -> Settings:
    """The same settings with absolute paths, so that a run can be resumed from any directory.

    With ``given`` images from Python, ``data`` becomes their name.

    Raises:
        InvalidValueError: If there is no such source, or a setting contradicts ``given``.
    """
    if given is not None:
        for name in ("data_dir", "image_size"):
            value = getattr(settings, name)
            require(value is None, name, "None with images from Python", value)
        return replace(settings, data=given.name)
    source, place = find_source(settings.data)
    spec = settings.data
    if source.absolute is not None:
        spec = f"{spec.partition(':')[0]}:{source.absolute(place)}"
    folder = None if settings.data_dir is None else absolute_path(settings.data_dir)
    return replace(settings, data=spec, data_dir=folder)


def make_augmentation(settings: ImageSettings, images: ImageData, training: ImageSet) -> Augmentation:
    """Crop, flip and cutout of the settings, normalization by the statistics of the images that train."""
    side = min(images.height, images.width)
    require(settings.cutout <= side, "cutout", f"at most {side} (the image's side)", settings.cutout)
    mean, std = statistics(training.images)
    augment = settings.augment == "auto"
    return Augmentation(
        # an eighth of the side: 4 pixels of 32 as in DARTS
        pad=side // 8 if augment else 0,
        horizontal_flip=augment and images.horizontal_flip,
        cutout=settings.cutout,
        mean=mean,
        std=std,
    )


def make_class_weights(settings: ImageSettings, images: ImageData, device: torch.device | str = "cpu") -> Tensor | None:
    """Weight of each class in the losses, (k,), from all training images; None if all are equal."""
    if settings.class_weights == "none":
        return None
    return balanced(images.train.labels, len(images.classes)).to(device)
