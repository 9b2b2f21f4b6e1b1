"""Datasets that torchvision downloads: CIFAR-10, CIFAR-100, SVHN and Fashion-MNIST."""

import io
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sgenas.data.decode import fitted
from sgenas.data.images import ImageData, ImageSet
from sgenas.data.sources import DATASET_SOURCES, DatasetSource, LoadRequest
from sgenas.errors import DataError, one_line

DEFAULT_DIR = Path("~/.cache/sgenas")
DOWNLOADS = {
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python"),
    "svhn": ("SVHN", "train_32x32.mat", "test_32x32.mat"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
}
"""name -> the class in torchvision.datasets, and its files."""


def load_download(name: str, place: str, request: LoadRequest) -> ImageData:
    """The dataset ``name`` from ``request.data_dir``, downloaded there if it is missing.

    torchvision checks the MD5 sums of CIFAR and SVHN files before it reads them.
    """
    root = (request.data_dir or DEFAULT_DIR).expanduser()
    train, classes = _read(name, root, train=True)
    chosen = request.choose(train.labels, classes)
    train = train if len(chosen) == len(train) else train.subset(chosen)
    test = _read(name, root, train=False)[0] if request.test else None
    side, notes = request.image_size, []
    if side is not None and (side, side) != tuple(train.images.shape[2:]):
        train = ImageSet(fitted(train.images, side), train.labels)
        test = None if test is None else ImageSet(fitted(test.images, side), test.labels)
        count = len(train) + (0 if test is None else len(test))
        notes.append(f"images changed: {count:,} scaled and cropped to {side} x {side}")
    return ImageData(
        request.spec,
        train,
        test,
        classes,
        notes=tuple(notes),
        horizontal_flip=name != "svhn",
        origin=f"{root}, through torchvision",
    )


def is_downloaded(name: str, data_dir: Path | None = None) -> bool:
    """Whether files of the dataset ``name`` are in ``data_dir``; they are not read."""
    root = (data_dir or DEFAULT_DIR).expanduser()
    return any((root / file).exists() for file in DOWNLOADS[name][1:])


def _read(name: str, root: Path, train: bool) -> tuple[ImageSet, tuple[str, ...]]:
    """Images and class names of one part."""
    dataset = _dataset(name, root, train)
    images = torch.as_tensor(dataset.data)
    labels = torch.as_tensor(dataset.labels if name == "svhn" else dataset.targets, dtype=torch.int64)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif name != "svhn":
        images = images.permute(0, 3, 1, 2)
    return ImageSet(images.contiguous(), labels), tuple(getattr(dataset, "classes", "0123456789"))


def _dataset(name: str, root: Path, train: bool) -> Any:
    import torchvision

    kind, *files = DOWNLOADS[name]
    part: dict[str, Any] = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    make = partial(getattr(torchvision.datasets, kind), root, **part)
    try:
        try:
            return make(download=False)
        except RuntimeError:  # files are missing or have another MD5 sum
            # torchvision prints to stdout, where a command's JSON goes; its progress bar is on stderr
            with redirect_stdout(io.StringIO()):
                return make(download=True)
    except Exception as error:
        # errors of network, disk, tar, pickle and scipy, all with one remedy
        message = f"{name} can be neither read from {root} nor downloaded ({one_line(error)})"
        raise DataError(f"{message}; put {' or '.join(files)} into {root}") from None


for _name in DOWNLOADS:
    DATASET_SOURCES.register(_name, DatasetSource(partial(load_download, _name), resizes=True))
