"""Image folders: one folder per class, directly in the given folder or below its `train/` and `test/`."""

from pathlib import Path

import torch
from torch import Tensor

from sgenas.data.decode import Encoded, image_data
from sgenas.data.images import ImageData, Pick
from sgenas.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Files with these endings, in either case, are images; other files are passed over."""


def read_folder(
    name: str, folder: Path, pick: Pick, with_test: bool = True, image_size: int | None = None
) -> ImageData:
    """The images below `folder`; classes are the names of their folders, in alphabetical order.

    `pick` chooses the training images to decode. image_size: as in `layout_of`. Raises DataError for what is
    missing or broken.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist")
    # a class may be called "train" too, and then holds images and no folders
    nested = (folder / "train").is_dir() and any(item.is_dir() for item in _entries(folder / "train"))
    train_root, test_root = (folder / "train" if nested else folder), folder / "test"
    train_classes = _list(train_root)
    classes = tuple(train_classes)
    files, labels = _flatten(train_classes, classes)
    chosen = pick(labels, classes)
    train, labels = [files[index] for index in chosen.tolist()], labels[chosen]

    test: list[Encoded] = []
    test_labels = torch.empty(0)
    if with_test and nested and test_root.is_dir():
        test_classes = _list(test_root)
        for class_name in test_classes:
            if class_name not in train_classes:
                raise DataError(f"class folder {test_root / class_name} has no counterpart in {train_root}")
        test, test_labels = _flatten(test_classes, classes)

    return image_data(
        name,
        (train, labels),
        (test, test_labels),
        classes,
        image_size=image_size,
        origin=str(folder),
        notes=_passed_over([train_root, test_root] if test else [train_root]),
    )


def _passed_over(roots: list[Path]) -> tuple[str, ...]:
    """A line on what lies beside the images in the class folders below `roots`, hidden files left out."""
    others = [
        entry
        for root in roots
        for folder in _entries(root)
        if folder.is_dir() and not folder.name.startswith(".")
        for entry in _entries(folder)
        if entry.suffix.lower() not in EXTENSIONS and not entry.name.startswith(".")
    ]
    if not others:
        return ()
    return (f"{len(others)} entries passed over that are no image by their ending, {others[0]} first",)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from None


def _list(root: Path) -> dict[str, list[Path]]:
    """{class: its image files}, both in alphabetical order."""
    found = {}
    for folder in _entries(root):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        found[folder.name] = [file for file in _entries(folder) if file.suffix.lower() in EXTENSIONS]
        if not found[folder.name]:
            raise DataError(f"class folder {folder} holds no image ({', '.join(EXTENSIONS)})")
    if not found:
        raise DataError(f"folder {root} holds no class folders")
    return found


def _flatten(found: dict[str, list[Path]], classes: tuple[str, ...]) -> tuple[list[Encoded], Tensor]:
    images = [Encoded(str(file), file) for files in found.values() for file in files]
    labels = [classes.index(name) for name, files in found.items() for _ in files]
    return images, torch.tensor(labels, dtype=torch.int64)
