"""``folder:DIR``: one folder per class, directly in DIR, or below ``DIR/train`` and ``DIR/test`` or ``DIR/val``."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sgenas.data.decode import Encoded, decoded
from sgenas.data.images import ImageData
from sgenas.data.sources import (
    DATASET_SOURCES,
    DatasetSource,
    LoadRequest,
    absolute_path,
    held_out,
    split_notes,
)
from sgenas.errors import DataError, one_line

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
TRAIN_FOLDERS = ("train", "training")
SYSTEM_NAMES = ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information")
"""What macOS, Synology and Windows leave in folders, besides names that start with a dot; lower case."""
HIDDEN, STRAY, EMPTY = "hidden or system", "images outside of class folders", "empty class folder"


def load_folder(place: str, request: LoadRequest) -> ImageData:
    """The images of class folders, classes in alphabetical order as in torchvision's ``ImageFolder``."""
    root = Path(place).expanduser()
    skipped: Counter[str] = Counter()
    train_root, test_root, notes = _splits(root, request.test, skipped)
    images, labels, classes = _find(train_root, skipped)
    if len(classes) < 2:
        inside = train_root / classes[0]
        hint = f"; did you mean folder:{inside}?" if _folders(inside) else ""
        hint += "".join(f"; {what}" for what in skipped if what.startswith(EMPTY))[:90]
        raise DataError(f"{train_root} must have at least 2 classes (folders), got 1: {classes[0]!r}{hint}")
    chosen = request.choose(labels, classes)
    test = None
    if test_root is not None:
        test_images, test_labels, names = _find(test_root, skipped)
        for name in set(names) - set(classes):
            raise DataError(f"class folder {test_root / name} has no counterpart in {train_root}")
        test = test_images, torch.tensor([classes.index(name) for name in names])[test_labels]
    counted = ", ".join(f"{count:,} {what}" for what, count in skipped.items() if count)
    notes += (f"files and folders skipped: {counted}",) if counted else ()
    train = [images[index] for index in chosen.tolist()], labels[chosen]
    return decoded(request, train, test, classes, origin=str(root), notes=notes)


def _splits(root: Path, test: bool, skipped: Counter[str]) -> tuple[Path, Path | None, tuple[str, ...]]:
    """(the folder of training classes, that of test classes, notes), their names in any case."""
    folders = _folders(root)
    named = [folder for folder in folders if folder.name.lower() in TRAIN_FOLDERS]
    tests = held_out(folder.name for folder in folders)
    # a class may be called "train" or "test" too; then it has no folders inside
    train = [folder for folder in named if _folders(folder)]
    if not train:
        nested = [name for name in tests if _folders(root / name)]
        if nested or 0 < len(named) + len(tests) == len(folders):
            wanted = "one folder per class, or a folder train with one folder per class in it"
            raise DataError(f"{root} must have {wanted}, got {', '.join(folder.name for folder in folders)[:90]}")
        return root, None, ()
    if len(train) > 1:
        raise DataError(f"{root} must have one training folder, got {train[0].name} and {train[1].name}")
    skipped[STRAY] += len(_scan(root, skipped)[1])
    used = None
    if test and tests:
        used = next((name for name in tests if _folders(root / name)), None)
        if used is None:
            raise DataError(f"{root / tests[0]} must have one folder of images per class; sort its images, or move it")
    known = {train[0].name, used} if test else {train[0].name, *tests}
    unused = [folder.name for folder in folders if folder.name not in known]
    return train[0], None if used is None else root / used, split_notes("folder", used, unused)


def _find(root: Path, skipped: Counter[str]) -> tuple[list[Encoded], Tensor, tuple[str, ...]]:
    """Images, labels and class names below ``root``; counts in ``skipped`` what is left out."""
    folders, stray = _scan(root, skipped)
    skipped[STRAY] += len(stray)
    # macOS and Linux write the same accented letter in two ways
    classes: dict[str, list[Path]] = {}
    for name, folder in sorted((unicodedata.normalize("NFC", folder.name), folder) for folder in folders):
        others: Counter[str] = Counter()
        images = sorted(_walk(folder, others, {os.path.realpath(root)}), key=lambda path: (str(path.parent), path.name))
        skipped.update(others)
        if name in classes:
            raise DataError(f"{root} must have one folder per class, got two that are called {name!r}")
        if images:
            classes[name] = images
        elif set(others) <= {HIDDEN}:
            skipped[f"{EMPTY} {name!r}"] += 1
        else:
            raise DataError(f"{folder} has no image ({', '.join(EXTENSIONS)}), only {', '.join(others)}; convert them")
    if not classes:
        raise DataError(f"{root} must have one folder of images per class, got none")
    files = [Encoded(str(path), path) for images in classes.values() for path in images]
    labels = [index for index, images in enumerate(classes.values()) for _ in images]
    return files, torch.tensor(labels), tuple(classes)


def _walk(folder: Path, skipped: Counter[str], seen: set[str]) -> Iterator[Path]:
    """The image files below ``folder``; ``seen`` stops links that lead in a circle."""
    real = os.path.realpath(folder)
    if real in seen:
        skipped["links to a folder that was read already"] += 1
        return
    seen.add(real)
    folders, files = _scan(folder, skipped)
    yield from files
    for inside in folders:
        yield from _walk(inside, skipped, seen)


def _folders(folder: Path) -> list[Path]:
    return _scan(folder, Counter())[0]


def _scan(folder: Path, skipped: Counter[str]) -> tuple[list[Path], list[Path]]:
    """The visible folders and the image files directly in ``folder``; counts the others in ``skipped``."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                kind = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                    skipped[HIDDEN] += 1
                elif entry.is_dir():
                    folders.append(folder / entry.name)
                # a link without a target is a missing image, and a pipe would block
                elif kind in EXTENSIONS and (entry.is_file() or entry.is_symlink()):
                    files.append(folder / entry.name)
                else:
                    skipped[kind or "without extension"] += 1
    except OSError as error:
        raise DataError(f"{folder} must have one folder of images per class: {one_line(error)}") from None
    return folders, files


DATASET_SOURCES.register("folder", DatasetSource(load_folder, "DIR", absolute=absolute_path))
