"""``digits``: scikit-learn's handwritten digits, from its package directory."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from sgenas.data.images import ImageData, ImageSet
from sgenas.data.sources import DATASET_SOURCES, DatasetSource, LoadRequest
from sgenas.data.splits import split_stratified
from sgenas.errors import DataError, one_line


def load_digits(place: str, request: LoadRequest) -> ImageData:
    """1,797 digits of 8 x 8 pixels, gray levels 0..16 stretched to 0..255, split 80 to 20 by class.

    The split is part of the dataset: it is the same for every ``request.seed``.
    """
    # find_spec imports nothing; importing scikit-learn takes 2.3 s
    found = importlib.util.find_spec("sklearn")
    folders = (found.submodule_search_locations if found else None) or [""]
    path = Path(folders[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(path) as file:
            table = np.loadtxt(file, delimiter=",")
    except (OSError, ValueError) as error:
        raise DataError(f"digits cannot be read from scikit-learn's {path}: {one_line(error)}") from None
    levels = torch.from_numpy(table[:, :-1]).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1]).long()
    whole = ImageSet((levels * (255 / 16)).round().to(torch.uint8), labels)
    classes = tuple("0123456789")
    first, second = split_stratified(labels, 0.8, torch.Generator().manual_seed(0))
    train = whole.subset(first)
    return ImageData(
        request.spec,
        train.subset(request.choose(train.labels, classes)),
        whole.subset(second) if request.test else None,
        classes,
        horizontal_flip=False,
        origin="scikit-learn, split 80 to 20 by class",
    )


DATASET_SOURCES.register("digits", DatasetSource(load_digits, resizes=False))
