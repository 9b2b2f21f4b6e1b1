"""Data sets by name: `load` turns a specification such as `cifar10` or `parquet:FILES` into images."""

import random
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sgenas.data.downloads import DOWNLOADS, read_download
from sgenas.data.folder import read_folder
from sgenas.data.hugging_face import read_hugging_face
from sgenas.data.images import ImageData, ImageSet, Pick, check_labels
from sgenas.data.parquet import read_parquet
from sgenas.data.splits import sample_stratified, split_stratified
from sgenas.errors import DataError

KNOWN_SOURCES = ("digits", *DOWNLOADS, "parquet:PATHS", "folder:DIR", "hf:PATH_OR_NAME")
"""What `load` accepts, for help texts; PATHS are comma-separated files or folders."""
FILE_KINDS = ("parquet", "folder", "hf")
"""Kinds that stand before a colon: encoded images of any size."""


def load(
    spec: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    test: bool = True,
    image_size: int | None = None,
) -> ImageData:
    """Loads a data set into memory, as uint8 on the CPU.

    `spec`: one of `KNOWN_SOURCES`. `digits` comes with scikit-learn; `cifar10`, `cifar100`, `svhn` and
    `fashion_mnist` are read from `data_dir` (~/.cache/sgenas if None) and downloaded into it when not there;
    `parquet:`, `folder:` and `hf:` are described in `read_parquet`, `read_folder` and `read_hugging_face`.

    `limit`: keep that many training images, drawn by class with a generator seeded by `seed`, at least one
    of each class; a limit above the number of images keeps all.
    `test`: read the test images too; there are none in the result otherwise.
    `image_size`: of `folder:`, `parquet:` and `hf:`, side in pixels that images are brought to: scaled until
    they just cover a square and cut on both sides alike. By default all must have one size.

    Raises DataError, in one line that names the file and the fault, where the data set cannot be had.
    """
    pick = _picker(spec, limit, seed)
    kind, separator, place = spec.partition(":")
    files = separator and kind in FILE_KINDS
    if image_size is not None and image_size < 1:
        raise DataError(f"image size must be at least 1, got {image_size}")
    if image_size is not None and (spec == "digits" or spec in DOWNLOADS):
        raise DataError(f"image size only applies with {', '.join(FILE_KINDS)}, got {image_size}")
    if spec == "digits":
        return _read_digits(pick, test)
    if spec in DOWNLOADS:
        return read_download(spec, data_dir, pick, test)
    if separator and kind == "python":
        raise DataError(
            f"images of {spec} were handed over in Python and must be again: run_search, resume_search,"
            " run_training, resume_training or evaluate_run with images=..."
        )
    if files and not place.strip():
        raise DataError(f"data set {spec!r} must name a path after the colon")
    if kind == "parquet" and separator:
        return read_parquet(spec, place, pick, test, image_size)
    if kind == "folder" and separator:
        return read_folder(spec, Path(place).expanduser(), pick, test, image_size)
    if kind == "hf" and separator:
        return read_hugging_face(spec, place.strip(), pick, test, image_size)
    raise DataError(f"data set must be one of {', '.join(KNOWN_SOURCES)}, got {spec!r}")


def limited(images: ImageData, limit: int | None, seed: int = 0) -> ImageData:
    """The same data set with `limit` training images, drawn as `load` draws them; None for all."""
    pick = _picker(images.name, limit, seed)
    if limit is None or limit >= len(images.train):
        return images
    return replace(images, train=images.train.subset(pick(images.train.labels, images.classes)))


def _picker(name: str, limit: int | None, seed: int) -> Pick:
    """What draws `limit` training images of the data set `name`; DataError for a limit below 1."""
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}")

    def pick(labels: Tensor, classes: tuple[str, ...]) -> Tensor:
        check_labels(name, labels, classes)
        if limit is None or limit >= len(labels):
            return torch.arange(len(labels))
        if limit < len(classes):
            raise DataError(f"limit must be at least {len(classes)}, the classes of {name}, got {limit}")
        return sample_stratified(labels, limit, torch.Generator().manual_seed(seed))

    return pick


def _read_digits(pick: Pick, with_test: bool) -> ImageData:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, grey levels 0..16 stretched to 0..255, cut 80 to 20.

    The cut is part of the data set: the same whatever the seed of `load`.
    """
    # this import brings in rich, which draws from Python's global generator when it is imported
    state = random.getstate()
    from sklearn.datasets import load_digits

    random.setstate(state)

    bunch = load_digits()
    levels = torch.as_tensor(bunch.images).unsqueeze(1)
    every = ImageSet((levels * (255 / 16)).round().to(torch.uint8), torch.as_tensor(bunch.target).long())
    classes = tuple(str(name) for name in bunch.target_names)
    first, second = split_stratified(every.labels, 0.8, torch.Generator().manual_seed(0))
    train, test = every.subset(first), every.subset(second) if with_test else None
    return ImageData(
        "digits",
        train.subset(pick(train.labels, classes)),
        test,
        classes,
        mirror=False,
        origin="scikit-learn, cut 80 to 20 by class",
    )
