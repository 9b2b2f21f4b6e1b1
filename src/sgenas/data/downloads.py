"""The data sets that torchvision can fetch, as arrays: CIFAR-10, CIFAR-100, SVHN and Fashion-MNIST."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sgenas import limits
from sgenas.data.images import ImageData, ImageSet, Pick
from sgenas.errors import DataError


class _Source(NamedTuple):
    """signs: one of these is in the folder where the data set is."""

    torchvision: str
    files: str
    mirror: bool
    signs: tuple[str, ...]


_SOURCES = {
    "cifar10": _Source(
        "CIFAR10",
        "cifar-10-python.tar.gz or its folder cifar-10-batches-py",
        True,
        ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ),
    "cifar100": _Source(
        "CIFAR100",
        "cifar-100-python.tar.gz or its folder cifar-100-python",
        True,
        ("cifar-100-python", "cifar-100-python.tar.gz"),
    ),
    "svhn": _Source("SVHN", "train_32x32.mat and test_32x32.mat", False, ("train_32x32.mat",)),
    "fashion_mnist": _Source(
        "FashionMNIST", "FashionMNIST/raw with its four idx files", True, ("FashionMNIST/raw",)
    ),
}
DOWNLOADS = tuple(_SOURCES)
"""Names that `read_download` knows."""
DEFAULT_FOLDER = Path("~/.cache/sgenas")


def read_download(name: str, folder: Path | None, pick: Pick, with_test: bool = True) -> ImageData:
    """The data set `name` from `folder` (~/.cache/sgenas if None), downloaded into it if not there.

    torchvision checks the MD5 sums of CIFAR and SVHN files before it reads them. `pick` chooses the training
    images to keep. Raises DataError, with the place to put the files, where they cannot be had or read.
    """
    root = (folder or DEFAULT_FOLDER).expanduser()
    train_images, train_labels, classes = _arrays(name, root, train=True)
    test = None
    if with_test:
        test_images, test_labels, _ = _arrays(name, root, train=False)
        test = ImageSet(test_images.contiguous(), test_labels)
    chosen = pick(train_labels, classes)
    return ImageData(
        name,
        ImageSet(train_images[chosen].contiguous(), train_labels[chosen]),
        test,
        classes,
        mirror=_SOURCES[name].mirror,
        origin=f"{root}, through torchvision",
    )


def is_there(name: str, folder: Path | None = None) -> bool:
    """Whether files of the data set `name` are in `folder` (~/.cache/sgenas if None); they are not read."""
    root = (folder or DEFAULT_FOLDER).expanduser()
    return any((root / sign).exists() for sign in _SOURCES[name].signs)


def _arrays(name: str, root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (N, C, H, W), labels (N,) and class names of one part."""
    data = _dataset(name, root, train)
    images = torch.as_tensor(data.data)
    if name == "svhn":
        return images, torch.as_tensor(data.labels), tuple(str(digit) for digit in range(10))
    images = images.unsqueeze(1) if name == "fashion_mnist" else images.permute(0, 3, 1, 2)
    return images, torch.as_tensor(data.targets, dtype=torch.int64), tuple(data.classes)


def _check_idx(folder: Path) -> None:
    """Raises DataError for a file that is too large: torchvision reads these whole and compares no sum."""
    for path in sorted(folder.glob("*-ubyte")):
        size = path.stat().st_size
        if size > limits.IDX:
            raise DataError(f"{path} must have at most {limits.IDX:,} bytes, got {size:,}")


def _dataset(name: str, root: Path, train: bool) -> Any:
    """torchvision's data set; downloads only what is not already in `root`."""
    import torchvision

    if name == "fashion_mnist":
        _check_idx(root / "FashionMNIST" / "raw")
    make: Callable[..., Any] = getattr(torchvision.datasets, _SOURCES[name].torchvision)
    part: dict[str, Any] = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    try:
        try:
            return make(root, download=False, **part)
        except RuntimeError:  # torchvision's way to say that files are missing or have the wrong MD5 sum
            # what it prints is noise, but its progress bar, on stderr, is worth having
            with redirect_stdout(io.StringIO()):
                return make(root, download=True, **part)
    except Exception as error:
        # network, disk, tar, pickle and scipy errors all end here, and have one remedy
        raise DataError(
            f"{name} cannot be read from {root} nor downloaded"
            f" ({type(error).__name__}: {' '.join(str(error).split())});"
            f" put {_SOURCES[name].files} into {root}"
        ) from None
