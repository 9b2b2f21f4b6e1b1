"""What a search on images needs: the space, streams of batches, callbacks."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sgenas import data
from sgenas.data import ImageData
from sgenas.errors import DataError, require
from sgenas.random import generator
from sgenas.run.callbacks import Callback
from sgenas.searching.callbacks import EarlyStopping, Evaluation, HessianEigenvalue, NaNGuard, TabulatedAccuracy

if TYPE_CHECKING:
    from sgenas.searching.config import SearchConfig


class ImageParts:
    """What a configuration's search needs: space, streams of batches, callbacks.

    Args:
        config: Configuration with absolute paths.
        images: Images from Python instead of ``config.data.data``.
        device: Device of the batches, and of all images if they fit.
    """

    def __init__(self, config: "SearchConfig", images: ImageData | None, device: torch.device) -> None:
        settings, seed = config.data, config.seed
        self.images = data.load_images(settings, seed, test=False, given=images)
        try:
            split = data.split_stratified(self.images.train.labels, settings.train_fraction, generator(seed, "split"))
        except DataError as error:
            raise DataError(f"data {settings.data}: {error}") from None
        training, validation = (self.images.train.subset(part) for part in split)
        augmentation = data.make_augmentation(settings, self.images, training)
        # datasets are often stored class by class, and batches of one class have misleading statistics
        order = torch.randperm(len(validation), generator=generator(seed, "evaluate"))
        training, validation = training.near(device), validation.subset(order).near(device)
        size = settings.batch_size
        for part, name in ((training, "training"), (validation, "validation")):
            require(size <= len(part), "batch_size", f"at most {len(part)} (the number of {name} images)", size)
        weights = data.make_class_weights(settings, self.images, device)
        self.train, self.val = (
            data.BatchStream(part, size, augmentation, generator(seed, name), weights, device)
            for part, name in ((training, "inner"), (validation, "outer"))
        )
        self.space = config.space.build(self.images.channels, len(self.images.classes))
        # with the factors of the classes: the eigenvalue is that of the outer loss; accuracies do without
        batches = partial(data.ordered_batches, validation, size, augmentation, device, weights)
        self.batches, self.device = batches, device
        self.callbacks: list[Callback] = []
        if config.eigenvalue_every:
            self.callbacks.append(HessianEigenvalue(batches, every=config.eigenvalue_every))
        if config.early_stop:
            self.callbacks.append(EarlyStopping(config.early_stop_from))
        self.callbacks.append(Evaluation(batches, derived_every=config.derived_every))
        if config.table is not None:
            tabulated = TabulatedAccuracy(config.table)
            # before the run directory is made
            tabulated.check(self.space)
            self.callbacks.append(tabulated)
        if config.on_nonfinite != "stop":
            self.callbacks.append(NaNGuard(config.on_nonfinite))
        self.facts: dict[str, Any] = {
            "classes": list(self.images.classes),
            "images": {"training": len(training), "validation": len(validation)},
            "notes": list(self.images.notes),
            "input": [self.images.channels, self.images.height, self.images.width],
            "fingerprint": self.images.train.digest(),
        }
