"""``folder:DIR``: one folder per class, directly in DIR, or below ``DIR/train`` and ``DIR/test`` or ``DIR/val``."""

import os
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from sgenas.data.decode import Encoded, decoded
from sgenas.data.images import ImageData
from sgenas.data.sources import (
    DATASET_SOURCES,
    TEST_SPLITS,
    DatasetSource,
    LoadRequest,
    absolute_path,
    held_out,
    split_notes,
)
from sgenas.errors import DataError, one_line

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
TRAIN_FOLDERS = ("train", "training")
HIDDEN = (".", "@eaDir")
"""Names that start so are skipped; Synology keeps a folder ``@eaDir`` of thumbnails in every folder of photos."""


def load_folder(place: str, request: LoadRequest) -> ImageData:
    """The images of class folders, classes in alphabetical order as in torchvision's ``ImageFolder``."""
    root = Path(place).expanduser()
    train_root, test_root, notes = _splits(root)
    images, labels, classes = _find(train_root)
    chosen = request.choose(labels, classes)
    test = None
    if request.test and test_root is not None:
        test_images, test_labels, names = _find(test_root)
        for name in set(names) - set(classes):
            raise DataError(f"class folder {test_root / name} has no counterpart in {train_root}")
        test = test_images, torch.tensor([classes.index(name) for name in names])[test_labels]
    train = [images[index] for index in chosen.tolist()], labels[chosen]
    return decoded(request, train, test, classes, origin=str(root), notes=notes)


def _splits(root: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """(the folder of training classes, that of test classes, notes), their names in any case."""
    folders = _folders(root)
    named = [name for name in folders if name.lower() in TRAIN_FOLDERS + TEST_SPLITS]
    # a class may be called "train" or "test" too; then it has no folders inside
    nested = [name for name in named if _folders(root / name)]
    train = [name for name in nested if name.lower() in TRAIN_FOLDERS]
    if not train:
        if nested or 0 < len(named) == len(folders):
            wanted = "one folder per class, or a folder train with one folder per class in it"
            raise DataError(f"{root} must have {wanted}, got {', '.join(folders)[:90]}")
        return root, None, ()
    if len(train) > 1:
        raise DataError(f"{root} must have one training folder, got {train[0]} and {train[1]}")
    test = next(iter(held_out(nested) or held_out(named)), None)
    unused = [name for name in folders if name not in (train[0], test)]
    return root / train[0], None if test is None else root / test, split_notes("folder", test, unused)


def _find(root: Path) -> tuple[list[Encoded], Tensor, tuple[str, ...]]:
    """Images, labels and class names below ``root``."""
    classes = _folders(root)
    if not classes:
        raise DataError(f"{root} must have one folder of images per class, got no folder; sort its images into folders")
    files: list[Encoded] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        paths = _images(root / name)
        if not paths:
            kinds = ", ".join(EXTENSIONS)
            raise DataError(f"class folder {root / name} must have an image ({kinds}), got none; add one or remove it")
        files += [Encoded(str(path), path) for path in paths]
        labels += [label] * len(paths)
    return files, torch.tensor(labels), tuple(classes)


def _folders(root: Path) -> list[str]:
    """The names of the visible folders directly in ``root``, sorted."""
    _, folders, _ = next(os.walk(root, onerror=_refuse))
    return sorted(name for name in folders if not name.startswith(HIDDEN))


def _images(folder: Path) -> list[Path]:
    """The image files below ``folder``, sorted by folder and name."""
    images: list[Path] = []
    # links are followed, but `ln -s` run twice leaves one that leads in a circle
    seen = {os.path.realpath(folder.parent)}
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        found = [Path(place, name) for name in names if not name.startswith(HIDDEN)]
        found = [path for path in found if path.suffix.lower() in EXTENSIONS]
        # a link without a target is a missing image, and a pipe would block
        images += [path for path in found if path.is_file() or path.is_symlink()]
    return sorted(images, key=lambda path: (str(path.parent), path.name))


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read: {one_line(error)}") from None


DATASET_SOURCES.register("folder", DatasetSource(load_folder, "DIR", absolute=absolute_path))
